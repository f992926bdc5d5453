"""Choosing one token: what a decision says about itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edge_runtime.candidates import CandidateSet, TopK
from edge_runtime.device import CloudOnlyDevice, SteeredDevice, choose
from edge_runtime.rules import PRESETS, method
from edge_runtime.sampling import GREEDY, Sampler
from edge_runtime.steering import log_softmax
from edge_runtime.text import Prompts


class Rows:
    """Branches over a fixed logit table [length, 2, V], that record what they are asked."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.vocabulary_size = table.shape[2]
        self.tokens: list[int] = []
        self.asked: list[int | None] = []
        self.prompt = 0

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def past(self) -> int:
        return self.prompt + len(self.tokens)

    def prefill(self, aware: Sequence[int], agnostic: Sequence[int], *, note: int = 0) -> None:
        self.tokens, self.prompt = [], max(len(aware), len(agnostic))

    def extend(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens

    def rollback(self, length: int) -> None:
        del self.tokens[length:]

    def logits(self, ids: np.ndarray | None = None, position: int | None = None) -> np.ndarray:
        self.asked.append(None if ids is None else len(ids))
        row = self.table[self.length if position is None else position]
        return row if ids is None else row[:, ids]


@pytest.fixture
def rows() -> Rows:
    draws = np.random.default_rng(0).normal(0, 2, (4, 2, 500))
    return Rows(draws.astype(np.float32))


def candidates_of(seed: int, kept: int = 64) -> CandidateSet:
    base = log_softmax(np.random.default_rng(seed).normal(0, 3, 500))
    return TopK(kept).decode(TopK(kept).encode(base))


def test_a_steered_device_computes_the_candidates_rows_alone(rows: Rows) -> None:
    device = SteeredDevice(rows, Prompts((1, 2, 3), (3,)), method("light"), end_ids=[0])
    device.prefill()
    assert device.load("prefill").tokens == 3
    candidates = candidates_of(1)
    decision = device.choose(0, candidates, device.head(candidates))
    assert rows.asked == [64]
    expected = (
        candidates.logprobs
        + method("light").gain * (rows.table[0, 0] - rows.table[0, 1])[candidates.ids]
    )
    assert decision.token == candidates.ids[np.argmax(expected)]
    assert decision.base_token == candidates.best
    assert decision.source == "steered"
    best, second = np.sort(expected)[::-1][:2]
    assert decision.margin == pytest.approx(best - second, abs=1e-4)
    device.extend([decision.token])
    assert (device.length, device.load("step", tokens=1).past) == (1, 4)
    device.rollback(0)
    assert device.length == 0


def test_rules_with_normalisers_get_the_whole_head(rows: Rows) -> None:
    device = SteeredDevice(rows, Prompts((1,), (1,)), PRESETS["blend"])
    device.prefill()
    candidates = candidates_of(1)
    device.choose(0, candidates, device.head(candidates))
    assert rows.asked == [None]
    assert device.load("head", candidates=64).candidates == 500


def test_the_decision_holds_the_policys_and_the_clouds_log_probability() -> None:
    candidates = candidates_of(2)
    scores = np.random.default_rng(3).normal(0, 1, (2, 64)).astype(np.float32)
    decision = choose(method("costeer"), GREEDY, 0, candidates, scores)
    at = int(np.flatnonzero(candidates.ids == decision.token)[0])
    base = log_softmax(candidates.logprobs.astype(np.float64))
    steered = log_softmax(base + method("costeer").gain * (scores[0] - scores[1]))
    assert decision.base_logprob == pytest.approx(base[at], abs=1e-5)
    assert decision.policy_logprob == pytest.approx(steered[at], abs=1e-5)


def test_at_a_temperature_the_ratio_is_that_of_what_was_drawn() -> None:
    candidates = candidates_of(2)
    scores = np.zeros((2, 64), np.float32)
    decision = choose(method("light"), Sampler(temperature=0.5, seed=1), 3, candidates, scores)
    # No delta: the token tells the cloud nothing, at any temperature.
    assert decision.policy_logprob == pytest.approx(decision.base_logprob, abs=1e-6)


def test_a_cloud_only_device_takes_the_clouds_best_and_needs_no_model() -> None:
    device = CloudOnlyDevice(end_ids=[7])
    device.prefill()
    candidates = candidates_of(4)
    decision = device.choose(0, candidates, device.head(candidates))
    assert decision.token == decision.base_token == candidates.best
    assert decision.source == "cloud"
    assert not decision.diverged
    assert decision.policy_logprob == decision.base_logprob
    device.extend([1, 2])
    device.rollback(1)
    assert device.length == 1
    assert device.load("step", tokens=1).rows == 0


def test_names_need_their_own_rows_of_the_head_and_no_others(rows: Rows) -> None:
    candidates = candidates_of(1)
    new = [v for v in range(500) if v not in candidates.ids][:3]
    names = tuple(sorted([*new, int(candidates.ids[0])]))
    device = SteeredDevice(rows, Prompts((1, 2), (2,), names=names), PRESETS["names"])
    device.prefill()
    device.choose(0, candidates, device.head(candidates))
    assert rows.asked == [64 + 3]
    assert device.load("head", candidates=64).candidates == 64 + 4
