"""A study's figures as plain data: what is drawn, and the numbers that stand behind it.

One `Figure` is drawn twice, by plotly for the page (`draw_page`) and by matplotlib for PNG and SVG
(`draw_print`), and written as CSV; so all of them show the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c")
"""Okabe and Ito's, which people with any colour vision tell apart; then marks differ too."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""matplotlib's names; `draw_page` has plotly's for the same."""


@dataclass(frozen=True, slots=True)
class Point:
    """One mark: its place, its intervals (None: exact), and what it is."""

    x: float
    y: float
    label: str = ""
    y_low: float | None = None
    y_high: float | None = None
    x_low: float | None = None
    x_high: float | None = None
    front: float | None = None
    """Share of resamples in which nothing beats it (`figures.fronts`); None: not asked."""


@dataclass(frozen=True, slots=True)
class Series:
    """Marks that belong together."""

    name: str
    points: tuple[Point, ...]
    joined: bool = False
    colour: int | None = None
    """Series with the same number look alike; None: by their order."""
    named: bool = True
    """Whether it has a line in the legend."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure."""

    name: str
    """File name without ending."""
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...] = ()
    note: str = ""
    x_log: bool = False
    y_log: bool = False
    y_zero: bool = False
    """Whether y begins at 0, so that heights compare as times do."""
    x_names: tuple[str, ...] = ()
    """Names of the places 0, 1, ... where x is no number."""
    kind: Literal["marks", "grid", "bars", "text"] = "marks"
    """`bars`: series stacked upon each other; `text`: labels in a row, coloured by y."""
    grid: tuple[tuple[str, str, float, str], ...] = field(default=())
    """`grid`: (row, column, value, text) of each field."""

    def table(self) -> list[dict[str, Any]]:
        """The numbers, one row a mark."""
        if self.kind == "grid":
            return [dict(zip(("y", "x", "value", "text"), cell, strict=True)) for cell in self.grid]
        return [
            {"series": series.name}
            | {name: getattr(point, name) for name in Point.__dataclass_fields__}
            for series in self.series
            for point in series.points
        ]
