"""Pareto fronts of arms that were measured on the same cases, and how sure they are.

An arm is on the front if no other is better in both figures. Over other cases another arm might
be: so the front is drawn anew for each bootstrap resample of the cases, the same resample for all
arms, and an arm's `share` says in how many of them it is on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scenarios.metrics import Estimate, Groups, Numbers, ratio, ratios, weights

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm's two figures, each as sums over the same cases: (above, below)."""

    name: str
    x: tuple[Numbers, Numbers]
    y: tuple[Numbers, Numbers]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where an arm is, and whether anything beats it."""

    name: str
    x: Estimate
    y: Estimate
    on_front: bool
    share: float
    """Of the resamples in which it is on the front."""


def place(arms: Sequence[Arm], *, y_high: bool = True, groups: Groups = ()) -> list[Placed]:
    """Each arm with its intervals and its share; x is better when low, y when high (or low).

    All arms need the same cases in the same order; `groups` as in `scenarios.metrics`.
    """
    if not arms:
        return []
    cases = len(np.asarray(arms[0].x[0]))
    resampled = weights(cases, groups, RESAMPLES)
    whole = np.ones((1, cases))
    sign = 1.0 if y_high else -1.0
    drawn = _unbeaten(
        np.stack([ratios(*arm.x, resampled) for arm in arms]),
        sign * np.stack([ratios(*arm.y, resampled) for arm in arms]),
    )
    measured = _unbeaten(
        np.stack([ratios(*arm.x, whole) for arm in arms]),
        sign * np.stack([ratios(*arm.y, whole) for arm in arms]),
    )
    return [
        Placed(
            arm.name,
            ratio(*arm.x, groups=groups),
            ratio(*arm.y, groups=groups),
            bool(measured[index, 0]),
            float(drawn[index].mean()),
        )
        for index, arm in enumerate(arms)
    ]


def _unbeaten(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """[arms, resamples]: nobody is at least as good in both and better in one."""
    kept = np.ones(x.shape, bool)
    for index in range(len(x)):
        as_good = (x <= x[index]) & (y >= y[index])
        better = (x < x[index]) | (y > y[index])
        kept[index] = ~(as_good & better).any(axis=0)
    return kept
