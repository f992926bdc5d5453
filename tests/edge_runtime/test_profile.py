"""The profile of a bundle, measured for real in its own process on the tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.bundle import Bundle
from edge_runtime.cli_profile import modelled
from edge_runtime.roofline import bandwidth_gbps, step_bytes

ROOT = Path(__file__).parents[2]


def costeer(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "costeer", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def report(tiny_bundle: Bundle) -> dict:
    run = costeer(
        "profile", str(tiny_bundle.path), "--context-tokens", "200", "--past", "64",
        "--rounds", "5", "--memory-mb", "4000", "--token-ms", "10000", "--json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout.splitlines()[-1]))


def test_the_report_has_what_it_promises(report: dict) -> None:
    promised = (
        "rows threads past step_ms step_ms_candidate_head one_row_ms sequential_ms prefill_ms "
        "floor_ms bandwidth_gbps peak_rss_mb peak_uss_mb bundle_mb load_ms outside_ms budget"
    )
    assert set(promised.split()) <= set(report)
    assert (report["rows"], report["threads"], report["past"]) == (2, 1, 64)
    for key in ("step_ms", "step_ms_candidate_head", "one_row_ms", "sequential_ms"):
        assert 0 < report[key]["p50"] <= report[key]["p95"] <= report[key]["p99"]
    assert set(report["prefill_ms"]) == {"32", "128"}
    assert [line["name"] for line in report["budget"]] == ["memory_mb", "token_ms"]
    assert report["floor_ms"] == pytest.approx(
        report["bytes_per_token"] / report["bandwidth_gbps"] / 1e6
    )
    assert "GroupQueryAttention" in report["ops_ms"]


def test_the_report_is_a_device_profile_of_the_simulator(report: dict) -> None:
    costs = report["costs"]
    assert costs["step_ms"] == report["step_ms_without_head"]["p50"]
    # The line through the shortest and the longest prompt meets both, unless it was cut at zero.
    for length in (32, 128):
        line = costs["prefill_ms"] + length * costs["prefill_ms_per_token"]
        assert costs["prefill_ms"] == 0 or line == pytest.approx(report["prefill_ms"][str(length)])
    assert {"machine", "engine", "date", "bundle"} <= set(report)


def test_memory_stands_still_while_an_answer_grows(report: dict) -> None:
    assert report["grown_mb_after_500_tokens"] < 1


def test_over_the_budget_the_exit_code_is_1(tiny_bundle: Bundle) -> None:
    run = costeer(
        "profile", str(tiny_bundle.path), "--context-tokens", "64", "--past", "16",
        "--rounds", "3", "--token-ms", "0.000001", "--json",
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    (line,) = json.loads(run.stdout.splitlines()[-1])["budget"]
    assert not line["ok"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--threads", "many"), "--threads: not a list of numbers"),
        (("--threads", "0"), "threads: not a possible number (got 0; allowed 1 to 64)."),
        (("--token-ms", "-1"), "--token-ms: a budget must be positive (got -1.0)."),
        (("--context-tokens", "999999"), "--context-tokens: the model of this bundle does not"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    tiny_bundle: Bundle, words: tuple[str, ...], text: str
) -> None:
    run = costeer("profile", str(tiny_bundle.path), *words)
    assert run.returncode == 2
    assert run.stderr.startswith(text)
    assert run.stderr.count("\n") == 1


def test_a_step_reads_all_weights_but_the_table(tiny_bundle: Bundle) -> None:
    shape = tiny_bundle.manifest.architecture
    some, kv = step_bytes(tiny_bundle, 100, candidates=10)
    whole, _ = step_bytes(tiny_bundle, 100, candidates=None)
    assert whole - some == (shape.vocabulary_size - 10) * shape.hidden
    assert kv == 2 * 100 * 2 * shape.layers * shape.kv_heads * shape.head_dim * 4


def test_bandwidth_is_a_bandwidth() -> None:
    assert 0.1 < bandwidth_gbps(1 << 22, rounds=2) < 10_000


def test_published_devices_are_scaled_by_their_bandwidth() -> None:
    rows = {row["device"]: row for row in modelled(100_000_000)}
    assert rows
    for row in rows.values():
        assert row["origin"] == "modelled"
        assert row["step_ms"] == pytest.approx(100 / row["bandwidth_gbps"])
