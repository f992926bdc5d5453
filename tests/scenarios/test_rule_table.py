"""The table of rules along references: what tempering takes out, and what it counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.rule_table import along, best_tempered, line, table
from edge_runtime.rules import method
from edge_runtime.steering import log_softmax
from scenarios.methods import parse_all, score
from scenarios.models.predictions import AGNOSTIC, AWARE, CLOUD, UPLOAD, Predictions, gather


def made(seed: int, temper: float, size: int = 30, tokens: int = 80) -> Predictions:
    """References drawn from the informed cloud, of which each model says too sharp a version."""
    rng = np.random.default_rng(seed)
    truth = log_softmax(rng.normal(0, 1.5, (tokens, size)))
    uninformed = log_softmax(truth + rng.normal(0, 0.7, (tokens, size)))
    tables: list[np.ndarray] = [truth] * 4
    tables[CLOUD], tables[UPLOAD] = log_softmax(uninformed * temper), log_softmax(truth * temper)
    tables[AWARE], tables[AGNOSTIC] = log_softmax(truth * 0.8), log_softmax(uninformed * 0.8)
    drawn = [int(rng.choice(size, p=np.exp(row))) for row in truth]
    kept = gather(tables, drawn, keep={CLOUD: size})
    return replace(kept, names=tuple(range(3)))


def test_the_temperature_that_undoes_a_sharpening_is_found() -> None:
    cases = [along(method("upload"), made(seed, 1.4)) for seed in range(12)]
    temper, suited = best_tempered(cases)
    assert temper == pytest.approx(1.4, abs=0.11)
    assert sum(suited) < sum(case.nll(1.0) for case in cases)


def test_a_rules_likelihood_is_that_of_evaluate() -> None:
    kept = made(1, 1.0)
    for rule in parse_all("cloud-only,light,names,costeer@1,light@1:rule=positive"):
        assert along(rule, kept).nll(1.0) == pytest.approx(score(rule, kept).nll, rel=1e-6)


def test_less_sure_is_worth_nothing_once_all_are_tempered() -> None:
    found = table(parse_all("cloud-only,upload"), [made(seed, 1.4) for seed in range(8)])
    plain, cooled = found["cloud-only"], found["cloud-only / 1.2"]
    assert cooled["gap"].value > 0.2
    assert cooled["all_tempered"].value == pytest.approx(0, abs=0.02)
    assert (cooled["differs"].value, cooled["facts"]) == (0, plain["facts"])
    assert [plain[key].value for key in ("gap", "all_tempered", "differs")] == [0, 0, 0]
    assert found["upload"]["all_tempered"].value == pytest.approx(1)
    assert found["upload"]["kl_upload"].value == pytest.approx(0, abs=1e-6)
    assert found["upload"]["differs"].value > 0


def test_facts_are_positions_whose_best_token_is_a_name() -> None:
    kept = [made(2, 1.0), made(3, 1.0)]
    best = [int(np.argmax(one.position(at)[1][CLOUD][:-1])) for one in kept for at in range(80)]
    found = table(parse_all("cloud-only"), kept)
    assert found["cloud-only"]["facts"] == sum(token < 3 for token in best)


def test_a_line_has_a_column_each() -> None:
    row = table(parse_all("light"), [made(seed, 1.0) for seed in range(4)])["light"]
    assert line("light", row).count("|") == 9
