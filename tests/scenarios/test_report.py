"""A study's page and files: what the rows say, complete in itself, the same every time."""

from __future__ import annotations

import json
import math
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import costeer
from edge_runtime.errors import EnvironmentFailure, SpecError, UsageError
from edge_runtime.rules import method
from scenarios.cli_study import study_path
from scenarios.compare import _change, compare
from scenarios.figures.figure import Figure
from scenarios.figures.fronts import Arm, place
from scenarios.figures.joined import read_quality
from scenarios.figures.which import of_study
from scenarios.pages.draw_fields import fields
from scenarios.pages.rows import row_table
from scenarios.pages.timeline import PARTS
from scenarios.report import write_report
from scenarios.spec import Scenario, read_scenario, scenario
from scenarios.store import Store, content_key

LIBRARY = Path(__file__).resolve().parents[2] / "scenarios" / "library"


def finished(folder: Path, *, slower: float = 1.0, **axes: Any) -> Path:
    """A finished time study whose rows follow a formula."""
    plan = scenario(
        {
            "name": "test",
            "case": {"query": "q", "context": "c"},
            "answer": {"schedule": ["lockstep", "runahead"], "codec": ["topk:8", "full"]},
            "network": {"profile": ["5g", "lte"], "rtt_ms": [10.0, 100.0]},
            "seed": [0, 1, 2],
            **axes,
        }
    )
    store = Store(folder)
    keys = []
    for cell in plan.cells():
        key = content_key(cell.settings())
        keys.append(key)
        store.put(key, result(cell, slower))
    described = {
        "name": plan.name,
        "about": "about </script><script>alert(1)</script>",
        "measure": plan.measure,
        "varied": list(plan.varied),
    }
    store.finish(described, keys)
    return folder


def result(cell: Any, slower: float) -> dict[str, Any]:
    rounds = 1.0 if cell.schedule == "lockstep" else 0.3
    ms = slower * (20.0 + rounds * cell.rtt_ms + cell.seed)
    parts = dict.fromkeys(PARTS, 0.0) | {"device": 20.0, "downlink": ms - 20.0}
    token = {"token": 1, "text": " x", "at_ms": ms, "parts": parts, "moved": 1.0, "instead": " y"}
    row = {
        "case": cell.case.id,
        "method": cell.method,
        "gain": method(cell.method, cell.gain).gain,
        "codec": cell.codec,
        "schedule": cell.schedule,
        "profile": cell.network,
        "rtt_ms": cell.rtt_ms,
        "seed": cell.seed,
        "device_profile": cell.device,
        "cloud_profile": cell.cloud,
        "tokens": [1, 1],
        "text": f"{cell.codec} {cell.seed}",
        "ttft_ms": ms,
        "token_ms_p50": ms,
        "token_ms_p95": ms,
        "tokens_per_s": 1e3 / ms,
        "uplink_bytes": 40,
        "downlink_bytes": 100 if cell.codec == "topk:8" else 5000,
    }
    return {"row": row, "tokens": [token | {"source": "steered"}] * 2}


def test_the_report_is_complete_in_itself(tmp_path: Path) -> None:
    made = write_report(finished(tmp_path))
    text = made.page.read_text()
    ours = re.sub(r"<script>.*?</script>", "", text, count=1, flags=re.S)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", ours)
    assert "alert(1)</script>" not in ours
    names = {path.name for path in made.figures}
    assert {"time-by-round-trip.png", "time-by-round-trip.svg", "time-by-round-trip.csv"} <= names
    assert {"where-which-schedule-wins.csv", "bytes-and-time.csv", "time-by-link.png"} <= names
    assert made.trace is not None
    events = json.loads(made.trace.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}


def test_all_rows_show_what_varies_first_and_say_the_rest_once() -> None:
    rows = pd.DataFrame(
        {
            "method": "light",
            "profile": "lte",
            "seed": [0, 1, 0, 1],
            "arrivals_per_s": [1.0, 1.0, 64.0, 64.0],
            "token_ms_p50": [10.0, 11.0, 80.0, None],
        }
    )
    table = row_table(rows, ["network", "arrivals_per_s"])
    head = re.findall("<th>(.*?)</th>", table)
    assert head == ["profile", "arrivals_per_s", "seed", "token_ms_p50"]
    assert "In every row: method light." in table
    assert re.findall("<td>(.*?)</td>", table)[-4:] == ["lte", "64", "1", "–"]


def test_fields_are_a_table_with_every_text_and_the_darkest_where_most_is() -> None:
    grid = (("a<b", "x", 1.0, "one\ntwo"), ("a<b", "y", 3.0, "three"), ("c", "x", 2.0, ""))
    text = fields(Figure("f", "t", "across", "down", kind="grid", grid=grid))
    assert '<th colspan="2">across</th>' in text
    assert '<th scope="row">a&lt;b</th>' in text
    assert '<td style="background:#fff7e0"><b>one</b><br>two</td>' in text
    assert '<td style="background:#f0a830">three</td>' in text
    assert text.count("<td></td>") == 2, "a corner, and a field that is not there"


def test_figures_say_what_the_rows_say(tmp_path: Path) -> None:
    store = Store(finished(tmp_path))
    found = {f.name: f for f in of_study(store.rows(), "time", store.study()["varied"])}
    wins = {text.split()[0] for _, _, _, text in found["where-which-schedule-wins"].grid}
    assert wins == {"runahead"}
    line = next(
        s for s in found["time-by-round-trip"].series if "lockstep" in s.name and "full" in s.name
    )
    assert [point.x for point in line.points] == [10.0, 100.0]
    assert line.points[0].y == pytest.approx(31.0)
    assert line.points[0].y_low is not None
    assert line.points[0].y_low < 31.0


def test_the_front_holds_what_nothing_beats() -> None:
    ones = [1.0, 1.0]
    points = [(1, 5), (2, 4), (3, 4.5), (4, 1), (1, 6)]
    arms = [Arm(f"{x} {y}", ([x, x], ones), ([y, y], ones)) for x, y in points]
    placed = place(arms, y_high=False)
    assert [one.name for one in placed if one.on_front] == ["1 5", "2 4", "4 1"]
    assert [one.share for one in placed] == [1, 1, 0, 1, 0]


def test_a_front_is_as_sure_as_its_cases() -> None:
    # Arm b is better in two cases of three by a little, and far worse in the third.
    ones = [1.0] * 3
    a = Arm("a", (ones, ones), ([1.0, 1.0, 1.0], ones))
    b = Arm("b", (ones, ones), ([1.1, 1.1, 0.1], ones))
    sure_a, sure_b = place([a, b])
    assert sure_a.on_front
    assert not sure_b.on_front
    # b wins only where the third case is not drawn: (2/3)^3 of the resamples.
    assert sure_b.share == pytest.approx((2 / 3) ** 3, abs=0.05)
    assert sure_a.share == pytest.approx(1 - (2 / 3) ** 3, abs=0.05)


def test_the_same_study_gives_the_same_files(tmp_path: Path) -> None:
    one, two = (write_report(finished(tmp_path / name)) for name in ("one", "two"))
    for a, b in zip(one.figures, two.figures, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_a_slower_study_is_worse_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = finished(tmp_path / "a"), finished(tmp_path / "b", slower=1.2)
    by_name = {change.figure: change for change in compare(Store(a), Store(b))}
    assert by_name["token_ms_p50"].change == pytest.approx(0.2)
    assert by_name["token_ms_p50"].verdict(0.02) == "worse"
    assert by_name["downlink_bytes"].verdict(0.02) == "same"
    assert costeer.run(["compare", str(a), str(b), "--json"]) == 4
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "token_ms_p50" in json.loads(last)["worse"]
    assert costeer.run(["compare", str(b), str(a)]) == 0


def test_more_links_make_no_difference_surer(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    before, after = rng.normal(100, 5, 6), rng.normal(104, 5, 6)
    once = _change("token_ms_p50", before, after, [np.arange(6)])
    groups = [np.repeat(np.arange(6), 8)]
    often = _change("token_ms_p50", np.repeat(before, 8), np.repeat(after, 8), groups)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert often.cells == 8 * once.cells


def test_quality_of_an_evaluation_stands_beside_the_times(tmp_path: Path) -> None:
    folder = finished(tmp_path / "study", answer={"method": "light", "gain": [0.476, 1.0]})
    told = tmp_path / "evaluated.json"
    gaps = {"light": 0.5, "costeer@1": 0.2, "blend": 0.7}
    rows = {
        n: {"gap_captured": {"value": v, "low": v - 0.1, "high": v + 0.1}} for n, v in gaps.items()
    }
    told.write_text("progress\n" + json.dumps(rows) + "\n")
    made = write_report(folder, quality=told)
    # A figure for each of two links, with two round trips.
    drawn = sorted(path.name for path in made.figures if "joined" in path.name)
    assert len(drawn) == 2 * 3
    lines = (folder / "figures" / "quality-joined-1.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in lines[1:] if line.startswith("10 ms,")] == ["0.5", "0.2"]
    told.write_text(json.dumps({"upload": rows["light"]}))
    with pytest.raises(UsageError, match="none of the study's rules"):
        write_report(folder, quality=told)


def test_a_rule_without_a_gain_stands_beside_its_times(tmp_path: Path) -> None:
    folder = finished(tmp_path / "study", answer={"method": ["cloud-only", "light"]})
    told = tmp_path / "evaluated.json"
    gap = {"value": 0.5, "low": 0.4, "high": 0.6}
    none = dict.fromkeys(gap)
    rows = {
        "cloud-only": {"gap_captured": dict.fromkeys(gap, 0.0)},
        "light": {"gap_captured": gap},
        "costeer": {"gap_captured": none},
        "fitted": {"gap_captured": gap, "method": {"gain": 0.5}},
    }
    told.write_text(json.dumps(rows))
    write_report(folder, quality=told)
    lines = (folder / "figures" / "quality-joined-1.csv").read_text().splitlines()
    assert {line.split(",")[2] for line in lines[1:]} == {"0.0", "0.5"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nothing", "not what costeer evaluate --json prints"),
        ("[]", "it is no object of methods"),
        ("{}", "it has no method"),
        ('{"light": 5}', r"evaluated.json: light: .*this method has no figures \(got 5\)"),
        ('{"light": {}}', "no method in it has a gap_captured"),
        ('{"light": {"gap_captured": 1}}', r"light.gap_captured: .*this is no figure \(got 1\)"),
        ('{"ligth": {"gap_captured": {}}}', "ligth: .*Did you mean light"),
    ],
)
def test_what_is_no_quality_is_told_in_one_line(tmp_path: Path, text: str, line: str) -> None:
    told = tmp_path / "evaluated.json"
    told.write_text(text)
    with pytest.raises(SpecError, match=line):
        read_quality(told)


def test_what_shows_an_answer_is_for_its_owner_alone(tmp_path: Path) -> None:
    made = write_report(finished(tmp_path))
    answers = [path for path in made.figures if path.name.startswith(("answer-", "timeline-"))]
    cells = list((tmp_path / "cells").iterdir())
    assert made.trace is not None
    assert answers
    for path in (made.page, made.trace, tmp_path / "results.parquet", *answers, *cells):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize("damaged", ['{"row": {"case": "case"}}', '{"row": {"text": "x"}}', "[]"])
def test_a_cell_without_its_answer_is_told_in_one_line(tmp_path: Path, damaged: str) -> None:
    store = Store(finished(tmp_path))
    key = store.study()["cells"][0]
    (tmp_path / "cells" / f"{key}.json").write_text(damaged)
    with pytest.raises(EnvironmentFailure, match=f"{key}.json: this result has no"):
        write_report(tmp_path)


def test_answers_of_one_token_have_no_time_per_token_and_a_report(tmp_path: Path) -> None:
    store = Store(finished(tmp_path))
    study = store.study()
    for key in study["cells"]:
        cell = store.get(key)
        none = dict.fromkeys(("token_ms_p50", "token_ms_p95", "tokens_per_s"), math.nan)
        store.put(key, {"row": cell["row"] | none | {"tokens": [1]}, "tokens": cell["tokens"][:1]})
    store.finish(study, study["cells"])
    made = write_report(tmp_path)
    assert {path.name for path in made.figures} >= {"answer-1.png"}
    assert not any("nan" in path.read_text() for path in made.figures if path.suffix == ".csv")


def test_less_likely_answers_are_worse(tmp_path: Path) -> None:
    change = _change("upload_logp", np.array([-10.0, -12.0]), np.array([-15.0, -18.0]))
    assert change.change == pytest.approx(-0.5)
    assert change.verdict(0.02) == "worse"
    assert _change("upload_logp", np.array([-2.0]), np.array([-1.0])).verdict(0.02) == "better"


def test_studies_without_a_common_cell_are_refused(tmp_path: Path) -> None:
    a = finished(tmp_path / "a")
    b = finished(tmp_path / "b", seed=[7])
    with pytest.raises(UsageError, match="no cell in common"):
        compare(Store(a), Store(b))


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_that_ships_reads(path: Path) -> None:
    plan: Scenario = read_scenario(path)
    assert plan.name == path.stem
    assert plan.about
    assert len(list(plan.cells())) == len(plan) > 0
    assert study_path(path.stem) == path


def test_the_page_of_studies_lists_each_with_its_cells() -> None:
    pages = LIBRARY.parents[1] / "docs" / "studies"
    page = (pages / "README.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| `([\w-]+)` \|.*?\| (\d+) \|", page, re.M))
    shipped = {path.stem: len(read_scenario(path)) for path in LIBRARY.glob("*.toml")}
    shipped.pop("dinner")  # for `costeer simulate`
    assert listed == {name: str(count) for name, count in shipped.items()}
    for name in shipped.keys() - {"quickstart"}:
        assert f"costeer sweep {name}" in (pages / f"{name}.md").read_text("utf-8"), name


def test_a_fleets_figures_have_a_line_for_each_schedule() -> None:
    rows = pd.DataFrame(
        [
            {
                "schedule": s,
                "arrivals_per_s": r,
                "seed": n,
                "token_ms_p50": r,
                "token_ms_p95": 2 * r,
            }
            for s in ("lockstep", "runahead")
            for r in (4.0, 1.0)
            for n in (0, 1)
        ]
    )
    high, median, served = of_study(rows, "fleet", ["schedule", "arrivals_per_s", "seed"])
    assert [s.name for s in high.series] == ["lockstep", "runahead"]
    assert [(p.x, p.y) for p in high.series[0].points] == [(1.0, 2.0), (4.0, 8.0)]
    assert [(p.x, p.y) for p in median.series[1].points] == [(1.0, 1.0), (4.0, 4.0)]
    # No rate that was tried is too much: the highest is what is known to be served.
    assert [p.y for p in served.series[0].points] == [4.0, 4.0]
    assert served.x_names == ("lockstep (or more)", "runahead (or more)")
