"""How often a 90 % interval over few cases holds the truth: percentile bootstrap beside BCa.

    python -m benchmarks.interval_coverage [--samples 2000]

Figures are drawn from populations whose true value is known, n cases each time; counted is how
often the interval of `scenarios.metrics` holds it, and how often the bias-corrected and accelerated
one (Efron 1987) on the same resamples does. Prints Markdown (docs/metrics.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from scenarios.metrics import LEVEL, RESAMPLES, weights

CASES = (2, 3, 4, 6, 8, 12, 20, 40)
Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True)
class Population:
    """Cases of one kind: what a figure's two sums are for each, and its true value."""

    name: str
    draw: Draw
    truth: float


def _even(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    return rng.normal(5.0, 1.0, shape), np.ones(shape)


def _skewed(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    return np.exp(rng.normal(0.0, 1.0, shape)), np.ones(shape)


def _gap(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Half of what a note is worth is captured, and some noise; its worth differs from case to case
    by as much as it is."""
    whole = rng.normal(12.0, 12.0, shape)
    return 0.5 * whole + rng.normal(0.0, 4.0, shape), whole


POPULATIONS = (
    Population("even: a mean of normal numbers", _even, 5.0),
    Population("skewed: a mean of log-normal numbers", _skewed, float(np.exp(0.5))),
    Population("gap: a ratio, cases worth 12 ± 12 nats", _gap, 0.5),
)


def coverage(
    population: Population, cases: int, samples: int, seed: int = 0
) -> tuple[float, float]:
    """The share of `samples` samples whose interval holds the truth: percentile, BCa."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(cases,)))
    above, below = population.draw(rng, (cases, samples))
    drawn = weights(cases)
    figures = np.sort((drawn @ above) / (drawn @ below), axis=0)
    levels = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    plain = np.quantile(figures, levels, axis=0)
    return _held(plain, population.truth), _held(bca(above, below, figures), population.truth)


def bca(above: Floats, below: Floats, figures: Floats) -> Floats:
    """Both ends [2, samples] from sorted resampled `figures` [resamples, samples]."""
    normal = NormalDist()
    value = above.sum(0) / below.sum(0)
    apart = (above.sum(0) - above) / (below.sum(0) - below)
    off = apart.mean(0) - apart
    with np.errstate(invalid="ignore"):
        speed = np.nan_to_num((off**3).sum(0) / (6 * (off**2).sum(0) ** 1.5))
    share = np.clip((figures < value).mean(0), 1 / RESAMPLES, 1 - 1 / RESAMPLES)
    bias = np.array([normal.inv_cdf(float(one)) for one in share])
    ends = []
    for level in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        moved = bias + normal.inv_cdf(level)
        at = [normal.cdf(float(z)) for z in bias + moved / (1 - speed * moved)]
        ends.append([np.quantile(column, a) for column, a in zip(figures.T, at, strict=True)])
    return np.array(ends)


def _held(ends: Floats, truth: float) -> float:
    return float(((ends[0] <= truth) & (truth <= ends[1])).mean())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--samples", type=int, default=2000)
    chosen = options.parse_args()
    print("| cases | " + " | ".join(str(cases) for cases in CASES) + " |")
    print("|---" * (len(CASES) + 1) + "|")
    for population in POPULATIONS:
        found = [coverage(population, cases, chosen.samples) for cases in CASES]
        for place, how in enumerate(("percentile", "BCa")):
            shares = " | ".join(f"{one[place]:.0%}".replace("%", " %") for one in found)
            print(f"| {population.name}; {how} | {shares} |")


if __name__ == "__main__":
    main()
