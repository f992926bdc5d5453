"""Metrics against hand-worked answers and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.interval_coverage import POPULATIONS, coverage
from scenarios.metrics import (
    difference,
    distinct,
    facts_of,
    facts_told,
    gap_captured,
    kl,
    mean,
    quotient,
    ratio,
    rouge,
)

sums = st.lists(st.floats(1.0, 100.0), min_size=3, max_size=30)


@given(sums)
def test_an_interval_holds_its_figure_and_lies_in_the_range(values: list[float]) -> None:
    estimate = mean(values)
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.cases == len(values)


def test_the_interval_of_a_mean_is_that_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(5.0, 2.0, 40)
    drawn = [rng.choice(values, 40).mean() for _ in range(4000)]
    low, high = np.quantile(drawn, [0.05, 0.95])
    estimate = mean(values)
    assert estimate.low == pytest.approx(low, abs=0.08)
    assert estimate.high == pytest.approx(high, abs=0.08)


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        estimate = mean(rng.normal(0.0, 1.0, 40))
        hits += estimate.low <= 0.0 <= estimate.high
    assert 0.84 <= hits / 400 <= 0.95


def test_few_cases_have_intervals_that_are_too_narrow_and_another_kind_is_no_cure() -> None:
    even, skewed, _ = POPULATIONS
    assert coverage(even, 3, 400)[0] < 0.7
    for population, most in ((even, 0.92), (skewed, 0.90)):
        plain, corrected = coverage(population, 12, 400)
        assert 0.72 <= plain <= most
        assert abs(plain - corrected) < 0.06


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(3.0, 1.0, 40)  # how hard a case is, common to both methods
    one, two = hard + 0.1, hard + rng.normal(0.0, 0.05, 40)
    ones = np.ones(40)
    paired = difference((one, ones), (two, ones))
    alone = mean(one)
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)
    assert paired.low > 0.0
    assert paired.value == pytest.approx((one - two).mean())


def test_rows_of_one_case_are_no_further_evidence() -> None:
    values = np.random.default_rng(8).normal(5.0, 1.0, 12)
    once = mean(values)
    often = mean(np.repeat(values, 9), groups=[np.repeat(np.arange(12), 9)])
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert often.cases == once.cases == 12


def crossed(
    rng: np.random.Generator, cases: int, seeds: int, of_seed: float
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Values [cases x seeds] around 0: each case's own, each seed's own, and noise."""
    values = (
        rng.normal(0, 1, (cases, 1))
        + rng.normal(0, of_seed, (1, seeds))
        + rng.normal(0, 0.2, (cases, seeds))
    )
    labels = np.indices((cases, seeds)).reshape(2, -1)
    return values.ravel(), list(labels)


@pytest.mark.parametrize("of_seed", [0.0, 1.0])
def test_cases_and_seeds_are_drawn_each_by_itself(of_seed: float) -> None:
    """Where seeds (places on a road) decide, pairs of case and seed are not so many samples."""
    rng = np.random.default_rng(11)
    hits = {"crossed": 0, "pairs": 0}
    for _ in range(200):
        values, groups = crossed(rng, 20, 12, of_seed)
        for name, found in (("crossed", mean(values, groups=groups)), ("pairs", mean(values))):
            hits[name] += found.low <= 0.0 <= found.high
    assert 0.82 <= hits["crossed"] / 200 <= 0.95
    assert hits["pairs"] / 200 < 0.6


def test_what_was_not_varied_is_not_drawn() -> None:
    values = np.random.default_rng(9).normal(5.0, 1.0, 8)
    one_seed = mean(values, groups=[np.arange(8), np.zeros(8)])
    one_case = mean(values, groups=[np.zeros(8), np.arange(8)])
    for one in (one_seed, one_case):
        plain = mean(values)
        assert (one.low, one.high) == pytest.approx((plain.low, plain.high))
    alone = mean(values, groups=[np.zeros(8), np.zeros(8)])
    assert (alone.low, alone.high, alone.cases) == (alone.value, alone.value, 1)


def test_gap_captured_is_0_for_the_cloud_and_1_for_the_upload() -> None:
    cloud, upload = np.array([330.0, 310.0, 350.0]), np.array([300.0, 290.0, 330.0])
    assert gap_captured(cloud, cloud, upload).value == 0.0
    assert gap_captured(upload, cloud, upload).value == 1.0
    half = gap_captured((cloud + upload) / 2, cloud, upload)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    assert gap_captured(cloud + 10, cloud, upload).value == pytest.approx(-30 / 70)


def test_figures_of_one_study_share_their_resamples() -> None:
    rng = np.random.default_rng(2)
    above, below = rng.uniform(1, 2, 12), rng.uniform(3, 4, 12)
    assert ratio(above, below) == ratio(above, below)
    same = quotient((above, below), (above * 2, below))
    assert (same.value, same.low, same.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_ratio_with_nothing_below_is_no_number_and_no_crash() -> None:
    assert math.isnan(ratio([1.0, 2.0], [0.0, 0.0]).value)


def test_kl_of_a_coin() -> None:
    p, q = np.log([0.5, 0.5]), np.log([0.9, 0.1])
    assert kl(p, q) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert kl(q, q) == pytest.approx(0.0)
    assert kl(np.log([[1.0, 1e-300]]), np.log([[0.5, 0.5]]))[0] == pytest.approx(math.log(2))


def test_facts_are_names_and_numbers_that_only_the_note_holds() -> None:
    context = "My sister Ottoline lives at Brannock Quay since 2014. She likes Plum cake, and Kiwi."
    reference = "Dear Ottoline, the Plum cake of Brannock needs 350 g; since 2014 I bake it in May."
    assert facts_of(reference, context, "Write to her about plum cake in 2014") == (
        "Ottoline",
        "Brannock",
    )
    assert facts_of(reference, "", "x") == ()
    assert "Dear" not in facts_of(reference, context + " Dear", "x")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("At brannock quay, 41-gram stones.", 2),
        ("Brannock. Quay 41", 2),
        ("Brannocks Quay", 0),
        ("Brannock Quay's stones weigh 411 grams", 1),
        ("", 0),
    ],
)
def test_a_fact_is_told_as_whole_words(answer: str, told: int) -> None:
    assert facts_told(answer, ("Brannock Quay", "41")) == told


def test_numbers_with_points_and_commas_are_facts_too() -> None:
    assert facts_told("It weighs 82.5 kg and costs 9,400.", ("82.5", "9,400")) == 2
    assert facts_told("It weighs 82 kg, 5 of them.", ("82.5",)) == 0


def test_distinct_counts_repeats() -> None:
    assert distinct(["a", "b", "a", "b"], 1) == 0.5
    assert distinct(["a", "b", "a", "b"], 2) == pytest.approx(2 / 3)
    assert distinct([], 2) == 1.0


def test_rouge_of_the_reference_with_itself() -> None:
    assert rouge("one two three", "one two three") == (1.0, 1.0)
    assert rouge("three two one", "one two three") == pytest.approx((1.0, 1 / 3))
