"""The table of greedy answers: paired with the informed cloud's own, counted, and printed."""

from __future__ import annotations

import pytest

from benchmarks.answer_table import line, paired, table
from edge_runtime.rules import method
from scenarios.evaluate import Evaluation, Result
from scenarios.models.written import Answer


def answers(
    logp: float, told: list[int], diverged: int = 0, guess: float | None = None
) -> list[Answer]:
    """One a case, ten tokens each, more alike within a rule than the cases are among each other."""
    return [
        Answer(
            "text", 10, 10 * logp - case, -8.0, diverged, min(1, names), 2, names, 0.25, 0.2, 1.0,
            guessed_logp=guess,
        )
        for case, names in enumerate(told)
    ]  # fmt: skip


def evaluation() -> Evaluation:
    made = {
        "cloud-only": answers(-0.6, [0, 0, 1]),
        "upload": answers(-0.5, [2, 4, 6]),
        "light": answers(-0.7, [1, 2, 3], diverged=1, guess=-2.0),
        "names": answers(-0.8, [2, 6, 4], diverged=2, guess=-2.2),
    }
    results = {name: Result(method(name), answers=some) for name, some in made.items()}
    return Evaluation([], [], results, 0.9)


def test_every_row_is_paired_with_the_informed_clouds_own_answers() -> None:
    found = table(evaluation())
    own = found["upload"]["less_upload"]
    assert (own["upload_logp"].value, own["note_facts"].value) == (0, 1)
    light = found["light"]
    # Cases differ by a nat from each other; paired, every one says the same.
    less = light["less_upload"]["upload_logp"]
    assert (less.value, less.low, less.high) == pytest.approx((-0.2, -0.2, -0.2))
    assert light["less_upload"]["note_facts"].value == pytest.approx(0.5)
    assert (light["note_facts"], light["facts"], light["of_facts"]) == (6, 3, 6)
    assert light["differs"] == pytest.approx(0.1)


def test_the_device_chooses_by_what_a_name_is_worth_to_it() -> None:
    found = table(evaluation())
    # A guess of .02 nats a token more is worth less than one name, at either price.
    assert found["chosen, 0.05 nats a name"]["note_facts"] == 2 + 6 + 4
    assert "chosen, 0.1 nats a name" in found


def test_pairs_that_were_not_measured_are_left_out() -> None:
    pairs = paired(evaluation().results, "names/light,light/costeer@1")
    assert list(pairs) == ["names against light"]
    assert pairs["names against light"]["note_facts"].value == pytest.approx(2)


def test_a_line_has_the_columns_of_the_page() -> None:
    text = line("light", table(evaluation())["light"])
    assert text.startswith("| `light` | -0.8")
    assert text.count("|") == 10
    assert "| 3 of 6 | 0.250 | 10% |" in text
