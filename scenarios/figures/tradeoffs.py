"""Figures that weigh one thing against another, each with its Pareto front (`fronts`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scenarios.figures.arms import arms, by_sample, drawn, gap_sums, others
from scenarios.figures.figure import Figure, Point, Series
from scenarios.figures.fronts import Arm, Placed, place
from scenarios.metrics import Groups

if TYPE_CHECKING:
    import pandas as pd

MOST_FRONTS = 6
"""A figure with more fronts than these cannot be read."""
HOW = (
    "Joined: the Pareto front. Full marks are on it in at least half of the resamples of the "
    "cases; the CSV has each share."
)
Sums = Callable[["pd.DataFrame"], tuple[Any, Any]]


def worth_and_time(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Gap captured against time per token, a front for each link."""
    return _figure(
        rows,
        varied,
        _mean("token_ms"),
        gap_sums,
        Figure(
            "quality-and-time",
            "Quality against time per token, by link",
            "ms per token (mean)",
            "share of the gap captured",
            x_log=True,
            note=f"Upper left is better; bars: 90 % intervals over cases. {HOW}",
        ),
    )


def codec_front(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Gap captured against bytes per token: one front, whatever the link."""
    if "payload_bytes" in rows:
        rows = rows.assign(bytes_per_token=rows["payload_bytes"])
    elif "downlink_bytes" in rows:
        rows = _bytes(rows)
        links = [name for name in ("profile", "rtt_ms", "device_profile") if name in rows]
        rows = rows.drop_duplicates(
            [
                name
                for name in rows
                if name in (*others(varied), "case", "seed") and name not in links
            ]
        )
        varied = [name for name in varied if name not in ("network", "rtt_ms", "device", "cloud")]
    if "codec" not in varied and "schedule" not in varied:
        return None
    return _figure(
        rows,
        varied,
        _mean("bytes_per_token"),
        gap_sums,
        Figure(
            "quality-and-bytes",
            "Quality against bytes per token",
            "bytes per token, both ways" if "downlink_bytes" in rows else "bytes a prediction",
            "share of the gap captured",
            x_log=True,
            note=f"Upper left is better; bars: 90 % intervals over cases. {HOW}",
        ),
    )


def bytes_front(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Bytes per token against time per token, a front for each link."""
    if "downlink_bytes" not in rows or "token_ms" not in rows:
        return None
    rows = _bytes(rows)
    if rows["bytes_per_token"].max() < 1.01 * rows["bytes_per_token"].min():
        return None
    return _figure(
        rows,
        varied,
        _mean("bytes_per_token"),
        _mean("token_ms"),
        Figure(
            "bytes-and-time",
            "Bytes against time per token, by link",
            "bytes per token, both ways",
            "ms per token (mean)",
            x_log=True,
            y_log=True,
            note=f"Lower left is better; bars: 90 % intervals over cases and seeds. {HOW}",
        ),
        y_high=False,
    )


def divergence_front(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Gap captured against how often the token is another than the cloud's."""
    tokens = "reference_tokens" if "reference_tokens" in rows else "tokens"
    timing = ("network", "rtt_ms", "device", "cloud", "schedule", "placement")
    axes = others(varied, *timing)
    rows = rows.drop_duplicates([n for n in rows if n in (*axes, "case", "seed")])
    return _figure(
        rows,
        axes,
        lambda part: (part["diverged"].to_numpy(), part[tokens].to_numpy()),
        gap_sums,
        Figure(
            "gap-and-divergence",
            "What is gained against what is changed",
            "share of tokens that are not the cloud's best",
            "share of the gap captured",
            note="Each token that is not the cloud's best costs run-ahead a round trip. "
            f"Upper left is better; 90 % intervals over cases. {HOW}",
        ),
    )


def _figure(
    rows: pd.DataFrame,
    varied: Sequence[str],
    x: Sums,
    y: Sums,
    frame: Figure,
    *,
    y_high: bool = True,
) -> Figure | None:
    # Links and machines are not ours to choose: fronts are drawn within one.
    split = [axis for axis in ("network", "rtt_ms", "device", "cloud") if axis in varied]
    worlds = list(arms(rows, split))
    if len(worlds) > MOST_FRONTS:
        return None
    series: list[Series] = []
    for colour, (world, within) in enumerate(worlds):
        compared: list[Arm] = []
        samples: Groups = ()
        for name, part in arms(within, others(varied, *split)):
            ordered = by_sample(within, part)
            if ordered is None:
                return None  # arms on different cases cannot be weighed
            compared.append(Arm(name, x(ordered), y(ordered)))
            samples = drawn(ordered)  # the same for all
        placed = place(compared, y_high=y_high, groups=samples)
        name = "arms" if world == "all" else world
        front = sorted((p for p in placed if p.on_front), key=lambda p: p.x.value)
        exact = bool(compared) and len(np.asarray(compared[0].x[0])) < 2
        line = tuple(_point(p, exact) for p in front)
        series.append(Series(f"{name}: front", line, joined=True, colour=colour, named=False))
        series.append(Series(name, tuple(_point(p, exact) for p in placed), colour=colour))
    return Figure(
        frame.name,
        frame.title,
        frame.x_label,
        frame.y_label,
        tuple(series),
        frame.note,
        x_log=frame.x_log,
        y_log=frame.y_log,
    )


def _point(found: Placed, exact: bool) -> Point:
    x, y = found.x, found.y
    if exact:
        return Point(x.value, y.value, found.name, front=found.share)
    return Point(x.value, y.value, found.name, y.low, y.high, x.low, x.high, found.share)


def _mean(name: str) -> Sums:
    return lambda part: (part[name].to_numpy(), np.ones(len(part)))


def _bytes(rows: pd.DataFrame) -> pd.DataFrame:
    both = rows["uplink_bytes"] + rows["downlink_bytes"]
    return rows.assign(bytes_per_token=both / rows["tokens"].map(_length))


def _length(tokens: str) -> int:
    return max(1, tokens.count(",") + 1)
