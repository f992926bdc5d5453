"""Proxy tuning: the delta is between two models and not between two prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_runtime.assembly import device_for
from edge_runtime.bundle import Bundle
from edge_runtime.errors import UsageError
from edge_runtime.rules import PRESETS
from edge_runtime.text import Text
from scenarios.cells.measures import Measures
from scenarios.datasets import Case, read
from scenarios.evaluate import Plan, evaluate
from scenarios.methods import parse_all
from scenarios.models.branches import ModelBranches
from scenarios.models.pair import Lengths, Pair, along, both_along, open_pair
from scenarios.models.predictions import Store
from scenarios.models.written import generate
from scenarios.spec import scenario
from tests.tiny import write_model

LENGTHS = Lengths(note_tokens=40, reference_tokens=10)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("models")
    big, small, tuned = (
        str(write_model(folder / name, seed=seed))
        for name, seed in (("big", 1), ("small", 2), ("tuned", 3))
    )
    return open_pair(f"float:{small}", big, cloud_dtype="float32", tuned=f"float:{tuned}")


@pytest.fixture
def case(pair: Pair) -> Case:
    return pair.cut(read("notes", limit=1)[0], LENGTHS)


def test_the_rows_are_the_two_models_on_the_query_alone(pair: Pair, case: Case) -> None:
    tokens = pair.reference(case, LENGTHS)
    branches, own = pair.rows(case)
    found = both_along(branches, pair.prompts(case), tokens)
    assert pair.tuned is not None
    for table, small in zip(found, (pair.tuned, pair.branches), strict=True):
        assert isinstance(small, ModelBranches)
        assert table == pytest.approx(along(small.model, case.query, tokens), abs=1e-4)
    other, more = pair.rows(replace(case, context="something else", aware="something else"))
    again = both_along(other, pair.prompts(case), tokens)
    np.testing.assert_array_equal(found, again)
    for one in (*own, *more):
        one.close()


def test_a_greedy_answer_is_the_best_of_base_and_delta(pair: Pair, case: Case) -> None:
    answer = generate(PRESETS["proxy"], case, pair, 6, "full")
    assert isinstance(pair.tuned, ModelBranches)
    assert isinstance(pair.branches, ModelBranches)
    tokens: list[int] = []
    while len(tokens) < 6 and (not tokens or tokens[-1] not in pair.cloud.end_ids):
        base, more, less = (
            along(model, case.query, [*tokens, 0])[-1]
            for model in (pair.cloud, pair.tuned.model, pair.branches.model)
        )
        tokens.append(int(np.argmax(base + more - less)))
    assert answer.tokens == len(tokens)
    shown = [token for token in tokens if token not in pair.cloud.end_ids]
    assert answer.text == pair.spoken.decode(shown)


def test_an_evaluation_measures_it_and_refuses_rules_that_read_the_note(
    pair: Pair, tmp_path: Path
) -> None:
    cases = read("notes", limit=3)
    plan = Plan(parse_all("cloud-only,proxy,proxy@0.5,upload"), LENGTHS)
    result = evaluate(cases, pair, plan, Store(tmp_path))
    assert result.row("proxy")["nll"] != result.row("proxy@0.5")["nll"]
    assert result.row("cloud-only")["gap_captured"]["value"] == pytest.approx(0, abs=1e-3)
    for name in ("light", "names", "device-only"):
        with pytest.raises(UsageError, match=f"method {name}: with --tuned the small models read"):
            evaluate(cases, pair, Plan(parse_all(name), LENGTHS), Store(tmp_path))


def test_without_a_tuned_model_it_is_refused_everywhere(
    pair: Pair, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    said = "method proxy: it steers with a small model that was tuned, and there is none here"
    cases = read("notes", limit=1)
    plan, text = Plan(parse_all("proxy"), LENGTHS), Text.open(tiny_bundle)
    with pytest.raises(UsageError, match=said):
        evaluate(cases, replace(pair, tuned=None), plan, Store(tmp_path))
    with pytest.raises(UsageError, match=said):
        device_for(tiny_bundle, text, "Q?", "N.", PRESETS["proxy"], max_tokens=4)
    content = {
        "name": "t",
        "case": {"query": "q"},
        "device": {"bundle": str(tiny_bundle.path)},
        "answer": {"method": "proxy"},
    }
    with pytest.raises(UsageError, match=said):
        list(Measures(tmp_path).run(list(scenario(content).cells())))


def test_the_command_takes_a_tuned_model(tmp_path: Path) -> None:
    import costeer

    big, small, tuned = (write_model(tmp_path / str(seed), seed=seed) for seed in (1, 2, 3))
    result = CliRunner().invoke(
        costeer.app("evaluate"),
        ["evaluate", "notes", "--device", f"float:{small}", "--cloud-model", str(big),
         "--cloud-dtype", "float32", "--tuned", f"float:{tuned}", "--methods", "proxy",
         "--limit", "2", "--reference-tokens", "6", "--note-tokens", "30", "--generate", "3",
         "--cache", str(tmp_path / "cache"), "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout.strip().splitlines()[-1])["proxy"]
    assert row["cases"] == row["answers"] == 2
