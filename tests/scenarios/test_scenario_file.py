"""Scenario files: axes multiply, settings override, and what is wrong is named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.errors import CosteerError
from scenarios.settings import apply
from scenarios.spec import ScenarioTable, read_scenario

TEXT = """
name = "dinner"
[case]
query = "Where to eat?"
context = "I am a vegetarian."
[network]
profile = ["5g", "lte"]
[answer]
method = ["light", "cloud-only"]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "dinner.toml"
    path.write_text(TEXT)
    return path


def test_axes_multiply_in_a_fixed_order(path: Path) -> None:
    scenario = read_scenario(path)
    cells = list(scenario.cells())
    assert [(cell.method, cell.network) for cell in cells] == [
        ("light", "5g"),
        ("light", "lte"),
        ("cloud-only", "5g"),
        ("cloud-only", "lte"),
    ]
    assert len(scenario) == 4
    assert scenario.varied == ("method", "network")
    assert cells[0].case.context == "I am a vegetarian."


def test_settings_override_the_file(path: Path) -> None:
    scenario = read_scenario(
        path, ["network.profile=slow-4g", "answer.gain=[0.5, 1.0]", "seed=3", "answer.codec=full"]
    )
    cells = list(scenario.cells())
    assert {cell.network for cell in cells} == {"slow-4g"}
    assert [cell.gain for cell in cells] == [0.5, 1.0, 0.5, 1.0]
    assert {(cell.seed, cell.codec) for cell in cells} == {(3, "full")}


@pytest.mark.parametrize(
    ("more", "settings", "line"),
    [
        ("[answr]", [], "dinner.toml: unknown key 'answr'. Did you mean answer?"),
        (
            "[device]\nbundel='x'",
            [],
            "dinner.toml: device: unknown key 'bundel'. Did you mean bundle?",
        ),
        (
            "[device]\nbundle=['a','a']",
            [],
            "dinner.toml: bundle: a value is there twice (got a, a).",
        ),
        ("", ["network.rtt_ms=1e308"], "dinner.toml: network.rtt_ms[1]: input should be less than"),
        ("", ["case.contxt=I am ill"], "--set case.contxt: unknown key 'contxt' in case."),
        ("", ["answer.methd=x"], "--set answer.methd: unknown key 'methd' in answer. Did you"),
        (
            "[device]\nalign='map'",
            [],
            'dinner.toml: device.align: only measure = "quality" looks across two tokenizers',
        ),
        (
            "[device]\nalign=['none','byte']",
            ["measure=codec"],
            'dinner.toml: device.align: only measure = "quality" looks across two tokenizers',
        ),
        ("", ["nonsense"], "--set: not a setting (got nonsense; allowed KEY=VALUE). As in seed=3."),
        ("", ["seed.x=1"], "--set seed.x: unknown key 'x' in seed. Leave it out."),
        ("", ["seed=-1"], "dinner.toml: seed[1]: input should be greater than or equal to 0"),
        ("", ["case.dataset=own"], "dinner.toml: case: needs either a query (with its context) or"),
    ],
)
def test_what_is_wrong_is_named(path: Path, more: str, settings: list[str], line: str) -> None:
    path.write_text(TEXT + more)
    with pytest.raises(CosteerError) as caught:
        read_scenario(path, settings)
    assert caught.value.exit_code == 2
    assert str(caught.value).removeprefix(f"{path.parent}/").startswith(line)


def test_a_setting_inside_what_is_no_table_is_refused() -> None:
    with pytest.raises(CosteerError, match=r"--set answer\.gain: the file has something else"):
        apply({"answer": 3}, "answer.gain=1", ScenarioTable)


def test_a_second_line_of_a_setting_is_part_of_the_text(path: Path) -> None:
    study = read_scenario(path, ['case.query=Where?\nname="z"'])
    assert study.name == "dinner"
    assert [case.query for case in study.cases] == ['Where?\nname="z"']
