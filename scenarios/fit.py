"""Choose a rule's numbers on one half of the cases, and say what they do on the other.

The search is coordinate descent over small grids on the negative log-likelihood of references: the
figure is smooth in each number and cheap, since it needs no model (`scenarios.models.predictions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge_runtime.errors import UsageError
from edge_runtime.rules import PRESETS
from edge_runtime.steering import Method
from scenarios.methods import score
from scenarios.metrics import LEVEL, Estimate, gap_captured
from scenarios.models.predictions import CLOUD, UPLOAD, Predictions

GRIDS: dict[str, tuple[float, ...]] = {
    "gain": (0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.1, 1.3, 1.6),
    "mix": (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3),
}
"""Numbers that are tried, one after the other, until none improves."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The chosen rule, its gap on the cases it was chosen on, and on those it never saw."""

    method: Method
    fitted: Estimate
    expected: Estimate
    unseen: tuple[int, ...] = ()
    """Indices of the cases that it was not chosen on."""


def halves(count: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """Indices of two disjoint halves of `count` cases, drawn from `seed`."""
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0xF17,))).permutation(
        count
    )
    middle = (count + 1) // 2
    return sorted(int(i) for i in order[:middle]), sorted(int(i) for i in order[middle:])


def fit(
    kept: Sequence[Predictions],
    start: Method = PRESETS["blend"],
    *,
    seed: int = 0,
    level: float = LEVEL,
) -> Fit:
    """The best numbers for `start`'s rule on half of `kept`; its gap on either half.

    Raises `UsageError` with fewer than four cases.
    """
    if len(kept) < 4:
        raise UsageError(
            "fit", "too few cases with a reference", got=len(kept), allowed="at least 4"
        )
    mine, others = halves(len(kept), seed)
    train = [kept[i] for i in mine]
    best, least = start, _nll(start, train)
    improved = True
    while improved:
        improved = False
        for name, grid in GRIDS.items():
            for value in grid:
                numbers: dict[str, Any] = {name: value}
                tried = replace(best, **numbers)
                nll = _nll(tried, train)
                if nll < least - 1e-9:
                    best, least, improved = tried, nll, True
    best = replace(best, name="fitted")
    unseen = [kept[i] for i in others]
    return Fit(best, _gap(best, train, level), _gap(best, unseen, level), tuple(others))


def _nll(rule: Method, kept: Sequence[Predictions]) -> float:
    return sum(score(rule, one).nll for one in kept)


def _gap(rule: Method, kept: Sequence[Predictions], level: float) -> Estimate:
    return gap_captured(
        [score(rule, one).nll for one in kept],
        [one.nll(CLOUD) for one in kept],
        [one.nll(UPLOAD) for one in kept],
        level=level,
    )
