"""Tables out of a study: figures are what its rows say, intervals are over samples, arms pair."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import costeer
from edge_runtime.errors import UsageError
from scenarios.figures.sums import FIGURES
from scenarios.figures.table import only, table, written
from scenarios.metrics import Estimate, difference, ratio
from scenarios.store import Store, parquet

CASES, LINKS = ("a", "b", "c", "d"), ("5g", "lte")


def finished(folder: Path) -> Store:
    """Two codecs over two links and four cases of 10, 20, 30 and 40 tokens."""
    store, keys = Store(folder), []
    for number, case in enumerate(CASES, 1):
        for codec, lost in (("full", 0.0), ("topk:8", 0.1 * number**2)):
            for link in LINKS:
                tokens = 10 * number
                row = {
                    "case": case,
                    "seed": 0,
                    "codec": codec,
                    "profile": link,
                    "nll": 2.0 * tokens - number + lost,
                    "cloud_nll": 2.0 * tokens,
                    "upload_nll": 2.0 * tokens - 2 * number,
                    "reference_tokens": tokens,
                    "tokens": list(range(tokens)),
                    "tokens_per_s": 20.0 if link == "5g" else 10.0,
                    "uplink_bytes": 2 * tokens,
                    "downlink_bytes": 30 * tokens,
                }
                keys.append(f"{case}{codec}{link}")
                store.put(keys[-1], {"row": row})
    study = {"name": "t", "about": "", "measure": "both", "varied": ["codec", "network"]}
    store.finish(study, keys)
    return store


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return finished(tmp_path_factory.mktemp("study")).rows()


def cells(made: Any, **where: Any) -> list[dict[str, Any]]:
    return [cell for cell in made.cells if where.items() <= cell.items()]


def test_a_figure_is_a_ratio_of_sums_over_cases(rows: pd.DataFrame) -> None:
    made = table(rows, down=["codec"], show=["gap", "token_ms", "bytes", "nll"])
    lost = [0.1, 0.4, 0.9, 1.6]
    wanted = ratio([n - one for n, one in enumerate(lost, 1)], [2.0, 4, 6, 8])
    [gap] = cells(made, figure="gap", codec="topk:8")
    assert gap["value"] == pytest.approx(wanted.value)
    assert (gap["low"], gap["high"]) == pytest.approx((wanted.low, wanted.high))
    [ms] = cells(made, figure="token_ms", codec="full")
    assert ms["value"] == pytest.approx((50 + 100) / 2)
    assert cells(made, figure="bytes", codec="full")[0]["value"] == pytest.approx(32)
    assert cells(made, figure="nll", codec="full")[0]["value"] == pytest.approx(190 / 100)


def test_cells_of_one_case_are_no_further_samples(rows: pd.DataFrame) -> None:
    both = table(rows, down=["codec"], show=["gap"])
    one = table(only(rows, ["network=lte"]), down=["codec"], show=["gap"])
    assert both.cells == one.cells
    assert {cell["samples"] for cell in both.cells} == {len(CASES)}
    assert both.samples == "4 cases"
    assert both.warning.startswith("Intervals over 4 cases are too narrow")
    many = rows.assign(case=[f"c{at}" for at in range(len(rows))])
    assert not table(many, down=["codec"], show=["token_ms"]).warning


def test_arms_are_subtracted_case_by_case(rows: pd.DataFrame) -> None:
    made = table(rows, down=["codec"], across=["network"], show=["gap"], against="codec=full")
    ones, whole = [1.0, 2, 3, 4], [2.0, 4, 6, 8]
    wanted = difference(([0.9, 1.6, 2.1, 2.4], whole), (ones, whole))
    for cell in cells(made, codec="topk:8"):
        assert cell["less_value"] == pytest.approx(wanted.value)
        assert cell["less_low"] == pytest.approx(wanted.low)
    assert not any("less_value" in cell for cell in cells(made, codec="full"))
    assert made.head == ("codec", "5g", "less full", "lte", "less full")


def test_the_page_form_has_a_cell_for_every_figure(rows: pd.DataFrame) -> None:
    made = table(rows, down=["codec"], across=["network"], show=["gap", "token_ms"])
    lines = made.markdown().splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "| full | 50.0 % | 50.0 |" in lines[2]


def test_small_figures_keep_their_sign_and_nothing_has_none() -> None:
    assert written(Estimate(-0.05, -0.06, 0.0, 4), percent=False) == "-0.050 [-0.060, 0.000]"
    assert written(Estimate(-1e-9, -0.012, 0.2, 4), percent=True) == "0.00 % [-1.20, 20.00]"
    assert written(Estimate(1234.5, 1234.5, 1234.5, 1), percent=False) == "1,234"


def test_only_needs_a_value_that_is_there(rows: pd.DataFrame) -> None:
    assert set(only(rows, ["codec=full"])["codec"]) == {"full"}
    with pytest.raises(UsageError, match="topk:8"):
        only(rows, ["codec=topk:9"])


def test_what_a_study_has_not_is_named_with_what_it_has(rows: pd.DataFrame) -> None:
    with pytest.raises(UsageError, match="Did you mean token_ms"):
        table(rows, down=["codec"], show=["tokn_ms"])
    with pytest.raises(UsageError, match="Did you mean codec"):
        table(rows, down=["codek"], show=["gap"])


def test_every_figure_needs_only_columns_that_rows_have() -> None:
    known = {
        "cloud_nll",
        "upload_nll",
        "full_nll",
        "nll",
        "tokens",
        "reference_tokens",
        "cloud_logp",
    }
    known |= {"uplink_bytes", "downlink_bytes", "evidence_bits", "context_bits", "of_facts", "same"}
    known |= {one.needs for one in FIGURES.values()} | {"full_bytes"}
    frame = pd.DataFrame({name: [2.0] for name in known} | {"tokens": ["[1, 2]"]})
    for name, one in FIGURES.items():
        assert one.above(frame).shape == one.below(frame).shape == (1,), name


def test_a_figure_that_no_cell_has_is_a_dash(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key, speed in (("one", math.nan), ("two", 20.0)):
        row = {"case": "a", "seed": 0, "codec": key, "tokens_per_s": speed, "tokens": [7]}
        store.put(key, {"row": row})
    assert "NaN" not in (tmp_path / "cells" / "one.json").read_text()
    study = {"name": "t", "about": "", "measure": "time", "varied": ["codec"]}
    store.finish(study, ["one", "two"])
    made = table(store.rows(), down=["codec"], show=["token_ms"])
    assert made.rows == (("one", "–"), ("two", "50.0"))
    store.finish(study, ["one"])
    assert table(store.rows(), down=["codec"], show=["token_ms"]).rows == (("one", "–"),)


def test_a_sample_without_the_figure_does_not_count(rows: pd.DataFrame) -> None:
    some = rows.assign(token_ms=rows["token_ms"].where(rows["case"] != "a"))
    [cell] = cells(table(some, down=["codec"], show=["token_ms"]), codec="full")
    assert cell["value"] == pytest.approx((50 + 100) / 2)
    assert cell["samples"] == 3


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("study.json", b"", "study.json: the study cannot be read"),
        ("study.json", b"\xff\x00", "study.json: the study cannot be read"),
        ("study.json", b"[]", "study.json: this is no study"),
        ("study.json", b'{"schema": 1}', "the study has no proper name"),
        ("study.json", b'{"schema": 99}', r"another version \(got schema 99; allowed 1\)"),
        ("results.parquet", b"", "results.parquet: the rows cannot be read"),
        ("results.parquet", b"PAR1", "results.parquet: the rows cannot be read"),
        ("results.parquet", None, "results.parquet: the rows cannot be read: No such file"),
        ("results.parquet", parquet([]), "not the rows of study.json"),
        ("results.parquet", parquet([{"case": "a"}] * 16), "not the rows of study.json"),
    ],
)
def test_a_damaged_study_is_told_in_one_line(
    tmp_path: Path,
    name: str,
    content: bytes | None,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finished(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for verb in (
        ["table", str(tmp_path), "--rows", "codec", "--show", "gap"],
        ["compare", str(tmp_path), str(tmp_path)],
        ["report", str(tmp_path)],
    ):
        assert costeer.run(verb) == 3
        told = capsys.readouterr().err
        assert re.search(line, told)
        assert "Run costeer sweep for this folder again." in told


def test_the_verb_prints_markdown_and_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path)
    arguments = ["table", str(tmp_path), "--rows", "codec", "--show", "gap", "--json"]
    assert costeer.run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| codec | gap captured |"
    assert json.loads(lines[-1])["cells"][0]["value"] == pytest.approx(0.5)
