"""A user's file is refused in one line that names file, key, value and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from edge_runtime.checked import Checked, check, read_json, read_toml
from edge_runtime.errors import SpecError


class Link(Checked):
    rate_bps: Annotated[float, Field(gt=0)] = 1.0
    kind: Literal["wifi", "lte"] = "lte"


class Plan(Checked):
    name: str
    uplink: Link | None = None
    links: tuple[Link, ...] = ()


def refused(text: str, tmp_path: Path) -> str:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_toml(path, Plan)
    assert caught.value.exit_code == 2
    return str(caught.value).removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('name="a"\nlink=[]', "plan.toml: unknown key 'link'. Did you mean links?"),
        (
            'name="a"\n[uplink]\nrate_bsp=3',
            "plan.toml: uplink: unknown key 'rate_bsp'. Did you mean rate_bps?",
        ),
        (
            'name="a"\n[[links]]\n[[links]]\nkin="lte"',
            "plan.toml: links[2]: unknown key 'kin'. Did you mean kind?",
        ),
        (
            'name="a"\n[uplink]\nrate_bps=-3',
            "plan.toml: uplink.rate_bps: input should be greater than 0 (got -3).",
        ),
        (
            'name="a"\n[uplink]\nkind="lt"',
            "plan.toml: uplink.kind: no such choice (got lt; allowed wifi, lte). Did you mean lte?",
        ),
        ("[uplink]", "plan.toml: name: this key is needed. Add it."),
        ("nam='a'", "plan.toml: unknown key 'nam'. Did you mean name?"),
        ("name=", "plan.toml: not valid TOML: Invalid value (at end of document)."),
    ],
)
def test_what_is_wrong_is_named(text: str, line: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path) == line


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "dinner.toml").write_text("")
    with pytest.raises(SpecError, match=r"diner\.toml: no such file\. Did you mean dinner\.toml"):
        read_toml(tmp_path / "diner.toml", Plan)


def test_broken_json_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"name": "a",\n "links": [}')
    with pytest.raises(SpecError, match=r"plan\.json:2: not valid JSON"):
        read_json(path, Plan)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "uplink", "links", "rate_bps", "kind", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(data=JSON)
def test_anything_else_is_one_line_too(data: object) -> None:
    try:
        plan = check(data, Plan, where="plan")
    except SpecError as error:
        line = str(error)
    else:
        line = f"plan {plan.name}".replace("\n", " ")
    assert line.startswith("plan")
    assert "\n" not in line


class Case(Checked):
    query: str = ""
    context: str = ""


class Question(Checked):
    case: Case = Case()
    level: Literal[1] = 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('case.context=["I am ill"]', "case.context: input should be a valid string (got a list"),
        ('[[case]]\ncontext="I am ill"', "case: a table of keys is needed here (got a list of 1)"),
        ('level=2\ncase.context="I am ill"', "level: input should be 1 (got 2; allowed 1)"),
        ("level=" + "9" * 5000, "not valid TOML: "),
        ("case=" + "[" * 5000, "not valid TOML: "),
        ("case.query=inf", "case.query: input should be a valid string"),
    ],
)
def test_what_is_somebody_s_own_is_not_repeated(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "q.toml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_toml(path, Question)
    told = str(caught.value)
    assert "ill" not in told
    assert "\n" not in told


def test_infinity_is_no_number_of_a_user_s_file(tmp_path: Path) -> None:
    assert "finite number" in refused('name="a"\n[uplink]\nrate_bps=inf', tmp_path)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('\ufeffname="a"', encoding="utf-8")
    assert read_toml(tmp_path / "p.toml", Plan).name == "a"
