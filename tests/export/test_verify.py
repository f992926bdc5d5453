"""Verification: its figures against a plain computation, its marks, and what they lead to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import costeer
from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.errors import FELL_SHORT, BundleError, UsageError
from edge_runtime.text import Text
from export.marks import GOALS, limits
from export.pipeline import export_bundle, verify_existing
from export.recipes import RECIPES
from export.runner import BundleRunner, Node, census
from export.shipped import shipped_cases, shipped_texts
from export.verify import (
    Logits,
    compare,
    compare_text,
    kl,
    log_softmax,
    pass_marks,
    rows_bit_equal,
)

KEYS = {
    "target", "ready", "size_mb", "kl_aware", "kl_agnostic", "delta_rel_error", "delta_cosine",
    "steered_kl", "steered_top1", "rows_bit_equal", "integer_matmuls", "float_matmuls",
    "coverage", "peak_rss_mb", "seconds", "text_kl", "table", "mobile", "load_ms", "step_ms",
    "export_peak_rss_mb",
}  # fmt: skip


@pytest.fixture(scope="module")
def report(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("verified") / "tiny"
    made = export_bundle(str(tiny_model_dir), out)
    assert made.report is not None
    return made.path, made.report


def test_the_report_has_what_it_promises(report: tuple[Path, dict]) -> None:
    path, figures = report
    assert figures.keys() >= KEYS
    written = json.loads((path / "export_report.json").read_text())
    assert written == figures
    assert figures["rows_bit_equal"]
    assert figures["branches"] == open_bundle(path, force=True).manifest.branches == "together"
    assert figures["coverage"] == {"CPUExecutionProvider": 1.0}
    # Two layers of four products (qkv, o, gate+up, down), and the head.
    assert (figures["integer_matmuls"], figures["float_matmuls"]) == (9, 0)
    assert figures["term_sums"] == 8
    assert 30 < figures["peak_rss_mb"] < 500
    assert figures["cpu_seconds"] > 0


def test_the_command_prints_them_as_one_json_line(
    report: tuple[Path, dict], tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, figures = report
    code = costeer.run(["verify", str(path), "--against", str(tiny_model_dir), "--json"])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == (0 if row["ready"] else FELL_SHORT)
    assert row.keys() >= KEYS
    assert row["steered_kl"] == figures["steered_kl"]
    assert {mark["pass"] for mark in row["marks"].values()} <= {True, False}


def test_a_random_model_misses_the_marks_and_is_refused(report: tuple[Path, dict]) -> None:
    path, figures = report
    assert figures["ready"] == all(mark["pass"] for mark in figures["marks"].values())
    if not figures["ready"]:
        with pytest.raises(BundleError, match="failed its verification"):
            open_bundle(path)


def test_a_bundle_is_its_own_perfect_reference(tiny_bundle: Bundle) -> None:
    runner = BundleRunner(tiny_bundle)
    cases = shipped_cases(Text.open(tiny_bundle), 512)[:2]

    def itself(ids: Sequence[int], last: int) -> Logits:
        return runner.logits(runner.hidden([ids], runner.caches(1, len(ids)))[0, -last:])

    figures = compare(itself, runner, cases, lambda what, done: None)
    assert figures["positions"] == sum(len(case.answer) for case in cases)
    assert figures["kl_aware"] == pytest.approx(0, abs=1e-12)
    assert figures["delta_rel_error"] == pytest.approx(0, abs=1e-6)
    assert figures["delta_cosine"] == pytest.approx(1)
    assert set(figures["steered_top1"].values()) == {1.0}
    assert set(figures["argmax_flips"].values()) == {0}
    texts = shipped_texts(Text.open(tiny_bundle), 512)[:3]  # an odd one: its partner counts once
    plain = compare_text(itself, runner, texts, lambda what, done: None)
    assert plain["text_positions"] == sum(len(text) - 1 for text in texts)
    assert plain["text_kl"] == pytest.approx(0, abs=1e-12)
    assert plain["text_top1"] == 1.0


def test_rows_that_depend_on_each_other_are_found(tiny_bundle: Bundle) -> None:
    class Coupled(BundleRunner):
        def hidden(self, rows, caches, past=()):  # type: ignore[no-untyped-def]
            states = super().hidden(rows, caches, past)
            return np.nextafter(states, np.float32(1)) if len(rows) == 2 else states

    cases = shipped_cases(Text.open(tiny_bundle), 512)
    assert rows_bit_equal(BundleRunner(tiny_bundle), cases)
    assert not rows_bit_equal(Coupled(tiny_bundle), cases)


def test_kl_against_the_definition() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    expected = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert kl(log_softmax(np.log(p) + 7), log_softmax(np.log(q) - 3)) == pytest.approx(expected)


def passing() -> dict:
    return {
        "target": "cpu-int8",
        "kl_aware": 0.001,
        "kl_agnostic": 0.001,
        "text_kl": 0.001,
        "steered_kl": {"0.476": 0.001, "1.0": 0.002, "1.783": 0.003},
        "steered_top1": {"0.476": 0.99},
        "integer_matmuls": 121,
        "float_matmuls": 0,
    }


def test_marks() -> None:
    assert all(mark["pass"] for mark in pass_marks(passing(), 30).values())


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"kl_aware": 0.5}, "kl_aware"),
        ({"kl_aware": float("nan")}, "kl_aware"),
        ({"text_kl": 0.02}, "text_kl"),
        ({"steered_kl": {"0.476": 0.001, "1.783": 0.02}}, "steered_kl@1.783"),
        ({"steered_top1": {"0.476": 0.9}}, "steered_top1@0.476"),
        ({"integer_matmuls": 0}, "integer_matmuls"),
        ({"float_matmuls": 3}, "float_matmuls"),
    ],
)
def test_one_missed_mark_fails(change: dict, failed: str) -> None:
    marks = pass_marks(passing() | change, 30)
    assert [name for name, mark in marks.items() if not mark["pass"]] == [failed]


def test_a_tolerance_widens_kl_by_its_square_and_flips_by_itself() -> None:
    assert limits(1) == GOALS
    twice = limits(2)
    assert twice.kl == pytest.approx(4 * GOALS.kl)
    assert twice.steered_kl == pytest.approx({"0.476": 0.016, "1.783": 0.056})
    assert 1 - twice.steered_top1 == pytest.approx(2 * (1 - GOALS.steered_top1))
    for recipe in RECIPES.values():
        assert recipe.tolerance.bit_count() == 1, "powers of two, a bit of precision each"


def test_attention_written_out_may_multiply_floats() -> None:
    portable = passing() | {"target": "portable", "float_matmuls": 62}
    assert pass_marks(portable, 30)["float_matmuls"]["pass"]
    assert not pass_marks(portable | {"float_matmuls": 63}, 30)["float_matmuls"]["pass"]


def test_what_calibration_reads_is_not_what_verification_reads() -> None:
    package = resources.files("export")
    calibration = " ".join(package.joinpath("npu", "calibration.txt").read_text("utf-8").split())
    held_out = package.joinpath("data", "texts.txt").read_text("utf-8").splitlines()
    for line in package.joinpath("data", "cases.jsonl").read_text("utf-8").splitlines():
        held_out += json.loads(line).values()
    sentences = [part for text in held_out for part in text.split(". ") if len(part) > 20]
    assert len(sentences) > 30
    assert not [part for part in sentences if part in calibration]


def test_the_census_counts_each_node_once() -> None:
    cpu = "CPUExecutionProvider"
    counts = census([Node("QGemm", cpu, 576)] * 3 + [Node("MatMul", "X", 576)])
    assert (counts["integer_matmuls"], counts["float_matmuls"]) == (3, 1)
    assert counts["coverage"] == {cpu: 0.75, "X": 0.25}


@pytest.mark.parametrize(("inner", "products"), [(1, 1), (2, 0), (3, 1), (576, 1)])
def test_a_sum_of_two_terms_is_no_product_of_weights(inner: int, products: int) -> None:
    counts = census([Node("MatMul", "CPUExecutionProvider", inner)])
    assert (counts["float_matmuls"], counts["term_sums"]) == (products, 1 - products)


def test_verify_again_updates_the_verdict(
    report: tuple[Path, dict], tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(report[0], tmp_path / "copy")
    (path / "export_report.json").unlink()
    made = verify_existing(path, against=str(tiny_model_dir))
    assert made.report is not None
    assert made.report["steered_kl"] == report[1]["steered_kl"]
    assert open_bundle(path, force=True).manifest.verified


def test_verify_takes_a_path_relative_to_where_it_is_called(
    report: tuple[Path, dict], tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = report[0]
    monkeypatch.chdir(bundle.parent)
    made = verify_existing(Path(bundle.name), against=str(tiny_model_dir))
    assert made.report is not None
    assert made.report["step_ms"] > 0


def test_verify_wants_the_very_model(
    tiny_bundle: Bundle, tmp_path: Path, tiny_model_dir: Path
) -> None:
    from tests.tiny import write_model

    with pytest.raises(UsageError, match="--against: the bundle does not say"):
        verify_existing(tiny_bundle.path)
    other = write_model(tmp_path / "other", seed=8)
    with pytest.raises(UsageError, match="not the model that the bundle was made from"):
        verify_existing(tiny_bundle.path, against=str(other))


@pytest.mark.weights
def test_smollm2_reaches_its_figures(smollm2_bundle: Bundle) -> None:
    figures = json.loads(smollm2_bundle.report.read_text())
    assert smollm2_bundle.manifest.ready
    assert figures["size_mb"] <= 140
    assert figures["steered_kl"]["1.783"] <= 0.014
    assert figures["steered_kl"]["0.476"] <= 0.004
    assert figures["steered_top1"]["0.476"] >= 0.97
    assert figures["rows_bit_equal"]
