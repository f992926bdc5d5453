"""What a bundle must reach to be called ready.

The goals of the default target were set before any of it was built. A target that gives up
precision for speed or size declares its `tolerance`: how many times the default's error in a logit
its users accept. KL grows as the square of a small error in the logits, and the share of best
tokens that change as the error itself, so a tolerance of t allows t² times the KL and t times the
share. Tolerances are powers of two, a bit of precision each. A target's is the smallest that it
passed when it was first measured, so it is a class of precision and a guard against getting worse;
only the goals themselves were set without knowing the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Marks = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Nats a token and shares of positions, on the shipped cases and texts (`export.verify`)."""

    kl: float
    """Of each branch, and of plain text: a guard, since users see the steered policy."""
    steered_kl: Mapping[str, float]
    """By gain."""
    steered_top1: float
    """At gain 0.476: how often the best token is the float policy's."""


GOALS = Limits(0.01, {"0.476": 0.004, "1.783": 0.014}, 0.97)
"""Of `cpu-int8`. The KL of a branch is twice the NPU's goal."""

NPU_KL = 0.005
"""The goal for each branch on an NPU with fp16 activations."""


def limits(tolerance: int = 1) -> Limits:
    """The goals widened for a target that may err `tolerance` times as much in a logit."""
    square = tolerance**2
    return Limits(
        GOALS.kl * square,
        {gain: limit * square for gain, limit in GOALS.steered_kl.items()},
        1 - (1 - GOALS.steered_top1) * tolerance,
    )


def quality_marks(report: Mapping[str, Any], allowed: Limits) -> Marks:
    """The marks that every target has: each figure with its limit and verdict."""
    out = {
        name: at_most(report[name], allowed.kl)
        for name in ("kl_aware", "kl_agnostic", "text_kl")
        if name in report
    }
    for gain, limit in allowed.steered_kl.items():
        out[f"steered_kl@{gain}"] = at_most(report["steered_kl"][gain], limit)
    out["steered_top1@0.476"] = at_least(report["steered_top1"]["0.476"], allowed.steered_top1)
    return out


def at_most(value: float, limit: float) -> dict[str, Any]:
    """A mark that is met by no more than `limit`; a NaN meets none."""
    return {"value": value, "limit": f"<= {limit:.4g}", "pass": bool(value <= limit)}


def at_least(value: float, limit: float) -> dict[str, Any]:
    """A mark that is met by no less than `limit`."""
    return {"value": value, "limit": f">= {limit:.4g}", "pass": bool(value >= limit)}


def passed(marks: Marks) -> bool:
    """Whether all of them are met."""
    return all(mark["pass"] for mark in marks.values())
