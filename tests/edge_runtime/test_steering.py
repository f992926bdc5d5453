"""The closed-form gain against the paper's own rounds, and the rules and samplers around it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.candidates import CandidateSet
from edge_runtime.errors import UsageError
from edge_runtime.rules import PRESETS, method
from edge_runtime.sampling import Sampler, uniform
from edge_runtime.steering import Method, gain, log_softmax, policy, steer

Array = npt.NDArray[np.floating]
Numbers = tuple[int, float, float, float, float]


def paper_rounds(
    base: Array, delta: Array, rounds: int, alpha: float, beta: float, lam: float, eta: float
) -> Array:
    """The update of arXiv 2507.04756, round by round, with a log-softmax in each: the oracle."""
    x, u = base.copy(), np.zeros_like(base)
    for t in range(1, rounds + 1):
        u = u + alpha * (x - base) + beta * delta
        x = log_softmax((t * lam * base + u + x / eta) / (t * lam + 1 / eta))
    return x


hyperparameters = st.tuples(
    st.integers(1, 30),  # T
    st.floats(0, 3),  # alpha
    st.floats(0, 3),  # beta
    st.floats(0.5, 5),  # lambda
    st.floats(0.5, 50),  # eta
)


def a_position(size: int, seed: int, dtype: type) -> tuple[Array, Array, Array]:
    """Log-probabilities of a cloud, an aware and an agnostic model over `size` tokens."""
    draws = np.random.default_rng(seed).normal(0, 2, (3, size))
    base, aware, agnostic = log_softmax(draws).astype(dtype)
    return base, aware, agnostic


def test_the_papers_gains() -> None:
    assert gain(1) == pytest.approx(0.4761904762, abs=1e-10)
    assert gain(5) == pytest.approx(1.1256, abs=1e-4)
    assert gain(20) == pytest.approx(1.7832568431, abs=1e-10)
    assert PRESETS["costeer"].gain == gain(20)
    assert PRESETS["light"].gain == gain(1)
    assert gain(0) == 0


@settings(max_examples=80, deadline=None)
@given(hyperparameters, st.integers(2, 3000), st.integers(0, 2**32 - 1))
def test_the_rounds_are_one_gain_in_float64(numbers: Numbers, size: int, seed: int) -> None:
    base, aware, agnostic = a_position(size, seed, np.float64)
    k = gain(*numbers)
    # The identity is exact; what float64 loses grows with the exponents themselves.
    scale = max(1.0, abs(k) / 10)
    expected = paper_rounds(base, aware - agnostic, *numbers)
    np.testing.assert_allclose(
        steer(base, aware - agnostic, k), expected, atol=1e-10 * scale, rtol=1e-10
    )


@settings(max_examples=40, deadline=None)
@given(hyperparameters, st.integers(2, 3000), st.integers(0, 2**32 - 1))
def test_the_rounds_are_one_gain_in_float32_probabilities(
    numbers: Numbers, size: int, seed: int
) -> None:
    base, aware, agnostic = a_position(size, seed, np.float64)
    expected = np.exp(paper_rounds(base, aware - agnostic, *numbers))
    ours = steer(base.astype(np.float32), (aware - agnostic).astype(np.float32), gain(*numbers))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(np.exp(ours), expected, atol=1e-4)


def test_the_defaults_hold_on_a_whole_vocabulary() -> None:
    base, aware, agnostic = a_position(151_936, 3, np.float64)
    expected = paper_rounds(base, aware - agnostic, 20, 2, 1, 2, 10)
    np.testing.assert_allclose(steer(base, aware - agnostic, gain()), expected, atol=1e-10)
    in_float32 = steer(base.astype(np.float32), (aware - agnostic).astype(np.float32), gain())
    np.testing.assert_allclose(in_float32, expected, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    hyperparameters,
    st.integers(70, 2000),
    st.integers(2, 64),
    st.floats(-50, 50),
    st.integers(0, 2**32 - 1),
)
def test_restricted_candidates_and_raw_logits_give_the_restricted_rounds(
    numbers: Numbers, size: int, kept: int, offset: float, seed: int
) -> None:
    base, aware, agnostic = a_position(size, seed, np.float64)
    ids = np.sort(np.random.default_rng(seed).permutation(size)[:kept])
    k = gain(*numbers)
    if k > 100:
        return
    expected = paper_rounds(log_softmax(base[ids]), (aware - agnostic)[ids], *numbers)
    # The device has raw logits: each row off by a constant of its own.
    logits = np.stack([aware[ids] + offset, agnostic[ids] - 3])
    steered = policy(Method("m", k), CandidateSet(ids, base[ids]), logits)
    np.testing.assert_array_equal(steered.ids, ids)
    np.testing.assert_allclose(steered.policy, expected, atol=1e-9, rtol=1e-10)


def candidate_set(
    size: int = 200, kept: int = 20, seed: int = 0
) -> tuple[CandidateSet, Array, Array, Array]:
    base, aware, agnostic = a_position(size, seed, np.float64)
    ids = np.sort(np.argsort(-base)[:kept])
    left_out = 1 - float(np.exp(base[ids]).sum())
    return CandidateSet(ids, base[ids], left_out=left_out), aware, agnostic, base


def test_blend_is_the_mixture_it_says() -> None:
    candidates, aware, agnostic, base = candidate_set()
    everything = CandidateSet(np.arange(200), base, full=True)
    steered = policy(PRESETS["blend"], everything, np.stack([aware + 7, agnostic - 2]))
    expected = 0.85 * np.exp(steer(base, np.maximum(aware - agnostic, 0), 0.75))
    expected += 0.15 * np.exp(aware)
    np.testing.assert_allclose(np.exp(steered.policy), expected, rtol=1e-9)
    # On the cloud's best alone, the device's own best tokens join, ascending, and are reachable.
    few = policy(PRESETS["blend"], candidates, np.stack([aware + 7, agnostic - 2]))
    assert int(np.argmax(aware)) in few.ids
    assert (np.diff(few.ids) > 0).all()
    assert set(candidates.ids) <= set(few.ids)
    np.testing.assert_allclose(np.exp(few.policy).sum(), 1)
    outside = ~np.isin(few.ids, candidates.ids)
    assert outside.any()
    assert few.base[outside].max() <= few.base[~outside].min()


def test_device_only_and_context_steering_leave_the_cloud_out() -> None:
    _, aware, agnostic, base = candidate_set()
    everything = CandidateSet(np.arange(200), base, full=True)
    logits = np.stack([aware, agnostic])
    own = policy(PRESETS["device-only"], everything, logits)
    np.testing.assert_allclose(own.policy, aware, atol=1e-12)
    cos = policy(method("context-steering", 0.5), everything, logits)
    np.testing.assert_allclose(cos.policy, log_softmax(1.5 * aware - 0.5 * agnostic), atol=1e-12)


def test_no_gain_is_the_cloud() -> None:
    candidates, aware, agnostic, _ = candidate_set()
    logits = np.stack([aware, agnostic])[:, candidates.ids]
    steered = policy(PRESETS["cloud-only"], candidates, logits)
    np.testing.assert_array_equal(steered.policy, steered.base)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 5), st.floats(0.1, 3), st.integers(0, 2**32 - 1))
def test_a_clip_bounds_what_a_token_can_tell(bound: float, k: float, seed: int) -> None:
    """The exponents of two notes differ by at most 2 k c, so log-policies by at most 4 k c."""
    candidates, aware, agnostic, _ = candidate_set(seed=seed)
    clipped = Method("m", k, clip=bound)
    policies = [
        policy(clipped, candidates, np.stack([row[candidates.ids], agnostic[candidates.ids]]))
        for row in (aware, np.roll(aware, 7) * 3)
    ]
    assert np.abs(policies[0].policy - policies[1].policy).max() <= 4 * k * bound + 1e-9


@given(st.floats(0.5, 3.0), st.floats(0.0, 2.0), st.integers(0, 2**31))
def test_tempering_divides_log_odds_and_keeps_the_best_token(
    temper: float, k: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    base = log_softmax(rng.normal(0, 3, 40))
    logits = rng.normal(0, 3, (2, 40))
    candidates = CandidateSet(np.arange(40), base, full=True)
    plain = policy(Method("plain", k), candidates, logits).policy
    soft = policy(Method("soft", k, temper=temper), candidates, logits).policy
    # A policy without gain does not steer, and is the cloud's own: nothing to temper.
    expected = plain if k == 0 else log_softmax(plain / temper)
    np.testing.assert_allclose(soft, expected, atol=1e-9)
    assert soft.argmax() == plain.argmax()


def test_the_tempered_policy_maximises_gain_minus_cost_plus_entropy() -> None:
    """k E[D] - KL(p || base) + h H(p) is largest at softmax((L + k D) / (1 + h))."""
    rng = np.random.default_rng(8)
    base, delta, k, h = log_softmax(rng.normal(0, 2, 12)), rng.normal(0, 2, 12), 1.0, 0.2

    def worth(logprobs: np.ndarray) -> float:
        chances = np.exp(logprobs)
        return float((chances * (k * delta - (1 + h) * logprobs + base)).sum())

    best = worth(steer(base, delta, k, 1 + h))
    for _ in range(200):
        other = log_softmax(steer(base, delta, k, 1 + h) + rng.normal(0, 0.3, 12))
        assert worth(other) < best


def test_a_decaying_gain() -> None:
    decaying = Method("m", 1.8, late_gain=0.4, decay_tokens=24)
    assert [decaying.gain_at(p) for p in (0, 12, 24, 100)] == pytest.approx([1.8, 1.1, 0.4, 0.4])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: method("costear"), "method: no such method (got costear). Did you mean costeer?"),
        (
            lambda: method("cloud-only", 1.0),
            "method cloud-only: this method has no gain (got 1.0). Leave the gain out.",
        ),
        (
            lambda: method("light", -1.0),
            "method light: the gain is out of range (got -1.0; allowed 0 to 100).",
        ),
        (
            lambda: Sampler(top_p=0),
            "sampler: top-p is out of range (got 0; allowed above 0, at most 1).",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(make: Callable[[], object], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert str(caught.value) == text


def draw(sampler: Sampler, logprobs: Array, position: int) -> int:
    return sampler.token(np.arange(len(logprobs)), logprobs, position)


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    assert draw(Sampler(), np.log([0.2, 0.4, 0.4]), 0) == 1


def test_one_uniform_number_a_position_in_any_order() -> None:
    forwards = [uniform(7, p) for p in range(50)]
    backwards = [uniform(7, p) for p in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 50
    assert uniform(8, 0) != forwards[0]
    assert uniform(7, 0, "accept") != forwards[0]
    draws = np.array([uniform(1, p) for p in range(4000)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert ((draws >= 0) & (draws < 1)).all()


def test_sampling_follows_the_distribution() -> None:
    probabilities = np.array([0.5, 0.1, 0.3, 0.1])
    sampler = Sampler(temperature=1.0, seed=5)
    drawn = [draw(sampler, np.log(probabilities), p) for p in range(4000)]
    counts = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(counts, probabilities, atol=0.03)
    sharp = Sampler(temperature=0.5, seed=5)
    sharper = np.bincount([draw(sharp, np.log(probabilities), p) for p in range(4000)], minlength=4)
    np.testing.assert_allclose(
        sharper / 4000, probabilities**2 / (probabilities**2).sum(), atol=0.03
    )


def test_top_p_draws_only_from_the_nucleus() -> None:
    logprobs = np.log(np.array([0.05, 0.5, 0.05, 0.3, 0.1]))
    sampler = Sampler(temperature=1.0, top_p=0.75, seed=1)
    assert {draw(sampler, logprobs, p) for p in range(500)} == {1, 3}
    tight = Sampler(temperature=1.0, top_p=0.01, seed=1)
    assert {draw(tight, logprobs, p) for p in range(50)} == {1}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_a_draw_does_not_depend_on_candidates_without_mass(seed: int, position: int) -> None:
    logprobs = np.array([-1e9, np.log(0.6), -1e9, np.log(0.4), -1e9])
    with_them = draw(Sampler(temperature=1.0, seed=seed), logprobs, position)
    without = draw(Sampler(temperature=1.0, seed=seed), logprobs[[1, 3]], position)
    assert with_them == [1, 3][without]


@pytest.mark.parametrize("mix", [0.0, 0.15])
def test_names_of_the_note_get_what_the_aware_row_gives_them(mix: float) -> None:
    _, aware, agnostic, base = candidate_set()
    names = (3, 57, 120)
    rule = Method("m", 0.5, temper=1.3, copy=0.8, mix=mix).about(names)
    everything = CandidateSet(np.arange(200), base, full=True)
    steered = policy(rule, everything, np.stack([aware + 7, agnostic - 2]))
    share = np.full(200, mix)
    share[list(names)] = 0.8
    mixed_in = share * np.exp(aware)
    rest = np.exp(steer(base, aware - agnostic, 0.5, 1.3))
    expected = (1 - mixed_in.sum()) * rest + mixed_in
    np.testing.assert_allclose(np.exp(steered.policy), expected, rtol=1e-9)


def test_without_names_nothing_is_copied() -> None:
    _, aware, agnostic, base = candidate_set()
    everything = CandidateSet(np.arange(200), base, full=True)
    logits = np.stack([aware, agnostic])
    with_none = policy(PRESETS["names"].about(()), everything, logits)
    plain = policy(Method("plain", gain(1), temper=1.2), everything, logits)
    np.testing.assert_allclose(with_none.policy, plain.policy, atol=1e-12)


def test_a_name_that_the_cloud_did_not_send_can_be_chosen() -> None:
    candidates, aware, agnostic, _ = candidate_set()
    missing = next(v for v in range(200) if v not in candidates.ids)
    aware = aware.copy()
    aware[missing] = aware.max() + 4
    rule = PRESETS["names"].about((missing,))
    assert not rule.full_head
    support = rule.support(candidates)
    assert set(support) == {*candidates.ids.tolist(), missing}
    # Raw logits, over the candidates and the names alone.
    logits = np.stack([aware[support] + 3, agnostic[support] - 1])
    chosen = policy(rule, candidates, logits)
    np.testing.assert_array_equal(chosen.ids, support)
    assert chosen.ids[int(np.argmax(chosen.policy))] == missing
    np.testing.assert_allclose(np.exp(chosen.policy).sum(), 1)
    assert chosen.base[support == missing] <= chosen.base.min()
    p_aware = np.exp(log_softmax(aware[support]))[support == missing]
    np.testing.assert_allclose(np.exp(chosen.policy)[support == missing], p_aware, rtol=1e-2)
