"""Rules as a user writes them: what is read is what was meant, and a slip is named in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import UsageError
from edge_runtime.rules import NUMBERS, PRESETS, WORDS, method
from edge_runtime.steering import Method


def test_a_presets_name_is_the_preset() -> None:
    for name, rule in PRESETS.items():
        assert method(name) == method(f" {name} ") == rule


def test_other_numbers_and_what_they_are_called() -> None:
    assert method("costeer@1.20") == replace(PRESETS["costeer"], name="costeer@1.2", gain=1.2)
    assert method("names:temper=1.0:copy=.5") == replace(
        PRESETS["names"], name="names:temper=1:copy=0.5", temper=1.0, copy=0.5
    )
    assert method("light@2:rule=positive") == Method("light@2:rule=positive", 2.0, "positive")
    assert method("costeer:late_gain=0.4:decay_tokens=24").gain_at(24) == pytest.approx(0.4)


def test_a_gain_beside_the_name_leaves_the_name() -> None:
    assert method("light", 1.0) == replace(PRESETS["light"], gain=1.0)
    assert method("light@2", 1.0).gain == 1.0


@given(
    st.sampled_from(["costeer", "light", "names", "blend"]),
    st.dictionaries(st.sampled_from(["gain", "mix", "copy"]), st.floats(0, 1), max_size=3),
)
def test_a_rule_is_read_back_from_its_own_name(name: str, numbers: dict[str, float]) -> None:
    text = ":".join([name, *(f"{field}={value:g}" for field, value in numbers.items())])
    rule = method(text)
    assert method(rule.name) == rule


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lihgt", r"method: no such method \(got lihgt\)\. Did you mean light\?"),
        ("", r"method: no such method"),
        ("light@", r"method light@: the gain is no number \(got nothing\)"),
        ("light@nan", r"method light@nan: the gain is no number \(got nan\)"),
        ("light:temper", r"method light:temper: the temper is no number \(got nothing\)"),
        ("light:tempr=1", r"no such number \(got tempr; allowed gain.*\)\. Did you mean temper\?"),
        ("light:names=1", r"no such number \(got names; allowed gain"),
        ("light:rule=positiv", r"no such rule \(got positiv; allowed linear, positive\)"),
        ("light:mix=2", r"the mix is out of range \(got 2\.0; allowed 0 to 1\)"),
        ("upload@1", r"method upload: this method has no gain"),
        ("cloud-only:temper=1.2", r"does not steer, so nothing is tempered \(got 1\.2\)"),
    ],
)
def test_a_slip_is_named(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        method(text)


def test_every_field_that_is_a_rules_number_can_be_written() -> None:
    fields = set(Method.__dataclass_fields__) - {"name", "names", "tuned"}
    assert fields == {*NUMBERS, *WORDS}
