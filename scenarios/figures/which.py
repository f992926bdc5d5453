"""Which figures a study's rows can carry.

Every figure over cases or seeds has its bootstrap interval (`scenarios.metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from scenarios.figures.arms import columns
from scenarios.figures.figure import Figure
from scenarios.figures.quality import answers_told, quality, sizes
from scenarios.figures.times import capacity, crowd, crowd_median, over_rtt, privacy, times, winners
from scenarios.figures.tradeoffs import bytes_front, codec_front, divergence_front, worth_and_time

if TYPE_CHECKING:
    import pandas as pd

Maker = Callable[["pd.DataFrame", Sequence[str]], Figure | list[Figure] | None]

TIME: tuple[Maker, ...] = (winners, over_rtt, times, bytes_front, privacy)
QUALITY: tuple[Maker, ...] = (quality, divergence_front)
MAKERS: dict[str, tuple[Maker, ...]] = {
    "time": TIME,
    "quality": QUALITY,
    "both": (worth_and_time, codec_front, answers_told, *QUALITY, *TIME),
    "fleet": (crowd, crowd_median, capacity),
    "codec": (codec_front, sizes),
}
"""By what the study measures, the ones to decide by first."""


def of_study(rows: pd.DataFrame, measure: str, varied: Sequence[str]) -> list[Figure]:
    """Every figure that the study's rows can carry."""
    axes = [name for name in varied if name in columns(rows)]
    figures: list[Figure] = []
    for make in MAKERS[measure]:
        made = make(rows, axes)
        figures += made if isinstance(made, list) else [made] if made is not None else []
    return [one for one in map(_drawn, figures) if one.grid or any(s.points for s in one.series)]


def _drawn(figure: Figure) -> Figure:
    """Without marks that are nowhere: an answer of one token has no time per token."""
    return replace(
        figure,
        series=tuple(
            replace(one, points=tuple(p for p in one.points if math.isfinite(p.x + p.y)))
            for one in figure.series
        ),
    )
