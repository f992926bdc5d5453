"""What the cloud believes the device will take: proper chances, and learned from what it took."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_sim.session.odds import EQUAL, POWERS, Belief
from edge_runtime.candidates import CandidateSet


def candidates(size: int, seed: int, width: float = 3.0) -> CandidateSet:
    logits = np.random.default_rng(seed).normal(0, width, size)
    logprobs = logits - np.log(np.exp(logits).sum())
    return CandidateSet(np.arange(10, 10 + size), logprobs.astype(np.float32))


@given(size=st.integers(1, 64), seed=st.integers(0, 1000))
def test_chances_are_a_distribution_in_the_clouds_order(size: int, seed: int) -> None:
    base = candidates(size, seed)
    choices = Belief().choices(base, size)
    assert sum(math.exp(choice.chance) for choice in choices) == pytest.approx(1, abs=1e-6)
    assert choices[0].token == base.best
    chances = [choice.chance for choice in choices]
    assert chances == sorted(chances, reverse=True)
    for choice in choices:
        assert choice.belief.weights.sum() == pytest.approx(1)
        np.testing.assert_allclose(
            choice.belief.weights, Belief().after(base, choice.token).weights
        )


def test_the_belief_is_bayes_rule() -> None:
    base = candidates(5, 1, width=1.0)
    each = np.exp(POWERS[:, None] * base.logprobs.astype(float))
    each /= each.sum(1, keepdims=True)
    weights = EQUAL * each[:, 3]
    moved = 0.98 * weights / weights.sum() + 0.02 * EQUAL
    np.testing.assert_allclose(Belief().after(base, 13).weights, moved, rtol=1e-5)
    (chance,) = [c.chance for c in Belief().choices(base, 5) if c.token == 13]
    assert chance == pytest.approx(math.log(weights.sum()), abs=1e-5)


@pytest.mark.parametrize("power", [0.7, 4.0])
def test_a_light_and_a_heavy_hand_are_told_apart(power: float) -> None:
    """After 60 tokens drawn from one power, its own chances are nearly what is believed."""
    drawn = np.random.default_rng(7)
    belief, loss, least = Belief(), 0.0, 0.0
    for step in range(120):
        base = candidates(32, step)
        own = np.exp(power * base.logprobs.astype(float))
        own /= own.sum()
        token = int(drawn.choice(base.ids, p=own))
        if step >= 60:
            (chance,) = [c.chance for c in belief.choices(base, 32) if c.token == token]
            loss -= chance / 60
            least -= math.log(own[token - 10]) / 60
        belief = belief.after(base, token)
    assert loss < least + 0.05


def test_a_token_that_is_no_candidate_moves_it_to_a_heavy_hand() -> None:
    base = candidates(8, 3)
    belief = Belief()
    for _ in range(4):
        belief = belief.after(base, 999)
    assert belief.weights @ POWERS < EQUAL @ POWERS
    assert np.isfinite(belief.weights).all()


def test_of_a_whole_vocabulary_only_the_best_are_looked_at() -> None:
    base = candidates(5000, 2)
    choices = Belief().choices(base, 16)
    best = np.argsort(-base.logprobs, kind="stable")[:16]
    assert [choice.token for choice in choices] == base.ids[best].tolist()
