"""Two finished studies against each other: what got better or worse, with intervals.

Cells are paired; intervals are over cases and seeds, which were drawn. Cells of one case over many
links are no further evidence: which links a study has was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_runtime.errors import UsageError
from scenarios.figures.arms import drawn
from scenarios.metrics import Groups, difference
from scenarios.store import Store

FIGURES = {
    "ttft_ms": "lower",
    "tokens_per_s": "higher",
    "token_ms_p50": "lower",
    "token_ms_p95": "lower",
    "uplink_bytes": "lower",
    "downlink_bytes": "lower",
    "payload_bytes": "lower",
    "nll": "lower",
    "kl_upload": "lower",
    "top1_upload": "higher",
    "upload_logp": "higher",
    "facts": "higher",
}
"""What is compared, and which way is better."""

AXES = (
    *("case", "method", "gain", "bundle", "cloud_model", "codec", "schedule", "profile"),
    *("rtt_ms", "device_profile", "cloud_profile", "seed", "align", "placement"),
    *("devices", "arrivals_per_s"),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One figure, B against A, relative to A; over the cells that both have."""

    figure: str
    a: float
    b: float
    change: float
    low: float
    high: float
    cells: int

    def verdict(self, tolerance: float) -> str:
        """`worse` or `better` only where the whole interval is beyond the tolerance."""
        sign = 1 if FIGURES[self.figure] == "lower" else -1
        if sign * self.change > 0 and min(sign * self.low, sign * self.high) > tolerance:
            return "worse"
        if sign * self.change < 0 and max(sign * self.low, sign * self.high) < -tolerance:
            return "better"
        return "same"


def compare(a: Store, b: Store) -> list[Change]:
    """Each figure that both studies have, over cells with the same settings.

    Raises `UsageError` when the studies have no cell in common.
    """
    import pandas as pd

    left, right = a.rows(), b.rows()
    axes = [name for name in AXES if name in left and name in right]
    both = pd.merge(left, right, on=axes, suffixes=(" a", " b"))
    if both.empty:
        raise UsageError(
            "compare",
            "the two studies have no cell in common",
            got=f"{a.folder}, {b.folder}",
            todo="Compare studies of the same axes",
        )
    changes = []
    for figure in FIGURES:
        if f"{figure} a" not in both:
            continue
        there = both.dropna(subset=[f"{figure} a", f"{figure} b"])
        if len(there):
            before, after = (there[f"{figure} {side}"].to_numpy(float) for side in "ab")
            changes.append(_change(figure, before, after, drawn(there)))
    return changes


def _change(figure: str, before: Any, after: Any, groups: Groups = ()) -> Change:
    ones = [1.0] * len(before)
    # Of a log-likelihood too, more is more.
    scale = abs(float(before.mean())) or 1.0
    found = difference((after, ones), (before, ones), groups=groups)
    return Change(
        figure,
        float(before.mean()),
        float(after.mean()),
        found.value / scale,
        found.low / scale,
        found.high / scale,
        len(before),
    )
