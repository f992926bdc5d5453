"""What is written on a figure's marks and axes, for both drawings of it: names, and log ticks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scenarios.figures.figure import Figure, Point

MOST_LABELS = 14
"""With more marks than these, only the last series' have their names: they are alike in all."""
MOST_DECADES = 3.0
"""An axis over more has its powers of ten alone."""
LETTER = 0.56
"""Width of a letter over the size of its font, about."""


@dataclass(frozen=True, slots=True)
class Label:
    """A name at a mark, and where it stands: beginning or ending there, above or below it."""

    point: Point
    right: bool
    up: bool
    rows: int = 0
    """Lines further away, where marks are close."""


def ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 and their multiples by ten around `low` to `high`, or powers of ten alone."""
    if not 0 < low <= high:
        return []
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    wide = math.log10(high / low) > MOST_DECADES
    step = max(1, (last - first) // 7)
    if wide:
        return [10.0**power for power in range(first, last + 1, step)]
    return [times * 10.0**power for power in range(first, last + 1) for times in (1, 2, 5)]


def extent(figure: Figure, axis: str) -> tuple[float, float]:
    """The least and the greatest number on an axis (x or y), intervals included."""
    names = (axis, f"{axis}_low", f"{axis}_high")
    found = [
        value
        for series in figure.series
        for point in series.points
        for value in (getattr(point, name) for name in names)
        if value is not None and math.isfinite(value)
    ]
    return (min(found), max(found)) if found else (0.0, 1.0)


def named(figure: Figure) -> list[Point]:
    """The marks that need their name beside them: those that the legend does not tell apart."""
    if figure.x_names or any(s.joined and s.named for s in figure.series):
        return []
    marks = [series for series in figure.series if not series.joined]
    shown = [point for series in marks for point in series.points]
    if len({point.label for point in shown}) < 2:
        return []
    if all(series.name == point.label for series in marks for point in series.points):
        return []
    return shown if len(shown) <= MOST_LABELS else list(marks[-1].points)


def labels(figure: Figure, *, width: float, height: float, font: float) -> list[Label]:
    """The names of `named`, each where it covers no other; one with no room is left out.

    `width` and `height` of the plot and `font` in one unit.
    """
    wanted = sorted(named(figure), key=lambda point: (point.x, point.y))
    across = _scale(extent(figure, "x"), figure.x_log, width)
    up = _scale(extent(figure, "y"), figure.y_log, height)
    marks = [
        (across(point.x), up(point.y))
        for series in figure.series
        if not series.joined
        for point in series.points
    ]
    taken: list[tuple[float, float, float, float]] = []
    found = []
    for point in wanted:
        x, y = across(point.x), up(point.y)
        wide = LETTER * font * len(point.label)
        for right, above, rows in _ways():
            left = x + 0.8 * font if right else x - 0.8 * font - wide
            floor = y + (0.3 + 1.1 * rows) * font if above else y - (1.3 + 1.1 * rows) * font
            box = (left, floor, left + wide, floor + font)
            outside = left < -0.02 * width or left + wide > width
            if outside or any(_meet(box, other) for other in taken):
                continue
            if rows < 2 and any(_covers(box, mark) for mark in marks):
                continue
            taken.append(box)
            found.append(Label(point, right, above, rows))
            break
    return found


def _ways() -> Iterator[tuple[bool, bool, int]]:
    for rows in (0, 1, 2, 3):
        for right in (True, False):
            for above in (True, False):
                yield right, above, rows


def _scale(ends: tuple[float, float], log: bool, size: float) -> _Axis:
    low, high = (math.log10(max(end, 1e-12)) for end in ends) if log else ends
    return _Axis(low, (high - low) or 1.0, size, log)


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    span: float
    size: float
    log: bool

    def __call__(self, value: float) -> float:
        at = math.log10(max(value, 1e-12)) if self.log else value
        # Both drawings leave about 5 % beyond the outermost marks.
        return self.size * (0.05 + 0.9 * (at - self.low) / self.span)


Box = Sequence[float]


def _meet(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def _covers(box: Box, mark: tuple[float, float]) -> bool:
    return box[0] < mark[0] < box[2] and box[1] < mark[1] < box[3]
