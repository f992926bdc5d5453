"""Tables out of a finished study: any figure by any axes, each with its interval.

    costeer table DIR --rows codec --columns profile --show token_ms

Every figure is a ratio of sums over samples (cases and seeds), so one bootstrap serves them all
(`scenarios.metrics`), and two arms on the same samples are subtracted sample by sample (`against`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.errors import UsageError, did_you_mean
from scenarios.compare import AXES
from scenarios.figures.arms import SAMPLES, column, none, sampled, shown, too_few
from scenarios.figures.sums import FIGURES, Shown
from scenarios.metrics import Estimate, Groups, difference, ratio

if TYPE_CHECKING:
    import pandas as pd

Place = tuple[tuple[str, Any], ...]
"""Axes with one value each: a row of the table, or a column."""


@dataclass(frozen=True, slots=True)
class Table:
    """A head and rows of text; `cells` are the same figures as numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    cells: tuple[dict[str, Any], ...]
    samples: str
    """What the intervals are over; empty: there is only one sample."""
    warning: str
    """What is to be said of that."""

    def markdown(self) -> str:
        """For a page."""
        lines = [self.head, tuple("---" for _ in self.head), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(
    rows: pd.DataFrame,
    *,
    down: Sequence[str],
    across: Sequence[str] = (),
    show: Sequence[str],
    against: str = "",
) -> Table:
    """Figures `show` of a study's `rows`: axes `down` make rows, axes `across` columns.

    `against` (AXIS=VALUE) adds to every figure what it is less that of the arm with this value,
    paired over samples. Raises `UsageError` for an axis, a figure or a value that is not there.
    """
    figures = [(name, figure(name, rows)) for name in show]
    down, across = ([axis(name, rows) for name in names] for names in (down, across))
    base = _value(against, rows) if against else None
    columns = _places(rows, across)
    head = [name.removesuffix("_profile") for name in down]
    for place in columns:
        at = _named(place)
        for _, one in figures:
            title = one.title if not at else at if len(figures) == 1 else f"{one.title}, {at}"
            head += [title, f"less {shown(base[1], base[0])}"] if base else [title]
    lines: list[tuple[str, ...]] = []
    cells: list[dict[str, Any]] = []
    for line in _places(rows, down):
        texts = [shown(value, name) if not none(value) else "" for name, value in line]
        for place in columns:
            part = _at(rows, (*line, *place))
            for name, one in figures:
                found = _estimate(part, one)
                cell = {"figure": name, **dict((*line, *place)), **_numbers(found)}
                texts.append(written(found, one.percent))
                if base and base in (*line, *place):
                    texts.append("")
                elif base:
                    other = _at(rows, (*[at for at in (*line, *place) if at[0] != base[0]], base))
                    less = _difference(part, other, one)
                    cell |= {f"less_{key}": value for key, value in _numbers(less).items()}
                    texts.append(written(less, one.percent))
                cells.append(cell)
        lines.append(tuple(texts))
    return Table(tuple(head), tuple(lines), tuple(cells), sampled(rows), too_few(rows))


def only(rows: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """The rows with these values (each AXIS=VALUE). Raises `UsageError` when none has one."""
    for text in where:
        rows = _at(rows, [_value(text, rows)])
    return rows


def figure(name: str, rows: pd.DataFrame) -> Shown:
    """The figure called so. Raises `UsageError` when `rows` do not have it."""
    there = [key for key, one in FIGURES.items() if one.needs in rows]
    if name not in there:
        raise UsageError(
            "--show",
            "this study has no such figure",
            got=name,
            allowed=", ".join(there),
            todo=did_you_mean(name, there),
        )
    return FIGURES[name]


def axis(name: str, rows: pd.DataFrame) -> str:
    """The column of the axis called so. Raises `UsageError` when `rows` do not have it."""
    found = column(name.strip())
    if found not in rows:
        there = sorted(set(AXES) & set(rows))
        raise UsageError(
            "axis",
            "this study has no such axis",
            got=name,
            allowed=", ".join(there),
            todo=did_you_mean(name, there),
        )
    return found


def _value(text: str, rows: pd.DataFrame) -> tuple[str, Any]:
    """AXIS=VALUE as the column and what stands in it."""
    name, _, wanted = text.partition("=")
    found = axis(name, rows)
    values = list(rows[found].unique())
    for value in values:
        if wanted in (str(value), shown(value)):
            return found, value
    raise UsageError(
        name, "no cell has this value", got=wanted, allowed=", ".join(str(one) for one in values)
    )


def _places(rows: pd.DataFrame, axes: Sequence[str]) -> list[Place]:
    """Every combination that is there, in the study's order; one empty one without axes."""
    if not axes:
        return [()]
    there = rows[list(axes)].drop_duplicates().itertuples(index=False, name=None)
    return [tuple(zip(axes, values, strict=True)) for values in there]


def _at(rows: pd.DataFrame, place: Sequence[tuple[str, Any]]) -> pd.DataFrame:
    keep = np.ones(len(rows), bool)
    for name, value in place:
        there = rows[name].isna() if none(value) else rows[name] == value
        keep &= there.to_numpy(bool)
    return rows[keep]


def _named(place: Place) -> str:
    return " · ".join(shown(value, name) for name, value in place if not none(value))


def _sums(part: pd.DataFrame, one: Shown) -> pd.DataFrame:
    """Both sums of each sample: cells that share one (over links, say) are no further evidence.

    Without cells that do not have the figure (an answer of one token has no time per token).
    """
    found = part[[name for name in SAMPLES if name in part]].assign(
        above=one.above(part), below=one.below(part)
    )
    found = found.dropna(subset=["above", "below"])
    # In the study's order: every interval over the same cases draws the same resamples.
    return found.groupby([name for name in SAMPLES if name in part], sort=False).sum()


def _estimate(part: pd.DataFrame, one: Shown) -> Estimate | None:
    """None where no cell is; no number where no cell has the figure."""
    if not len(part):
        return None
    sums = _sums(part, one)
    if not len(sums):
        return Estimate(math.nan, math.nan, math.nan, 0)
    return ratio(sums["above"].to_numpy(), sums["below"].to_numpy(), groups=_groups(sums))


def _difference(part: pd.DataFrame, other: pd.DataFrame, one: Shown) -> Estimate | None:
    """None where the two have not the same samples."""
    if not len(part) or not len(other):
        return None
    mine, base = _sums(part, one), _sums(other, one)
    if not len(mine) or len(mine) != len(base) or not mine.index.isin(base.index).all():
        return None
    base = base.reindex(mine.index)
    first, second = ((sums["above"].to_numpy(), sums["below"].to_numpy()) for sums in (mine, base))
    return difference(first, second, groups=_groups(mine))


def _groups(sums: pd.DataFrame) -> Groups:
    return [sums.index.get_level_values(at).to_numpy() for at in range(sums.index.nlevels)]


def _numbers(found: Estimate | None) -> dict[str, Any]:
    if found is None:
        return {"value": None, "low": None, "high": None, "samples": 0}
    return {**found.dict(), "samples": found.cases}


def written(found: Estimate | None, percent: bool = False) -> str:
    """A figure with its interval, where it has one, for people; a dash where it is no number."""
    if found is None:
        return ""
    if not math.isfinite(found.value):
        return "–"
    scale, unit = (100.0, " %") if percent else (1.0, "")
    values = [scale * one for one in (found.value, found.low, found.high)]
    digits = _digits(values[0], percent)
    # + 0.0: what is rounded to nothing has no sign.
    value, low, high = (f"{round(one, digits) + 0.0:,.{digits}f}" for one in values)
    sure = found.cases < 2 or low == high == value
    return f"{value}{unit}" if sure else f"{value}{unit} [{low}, {high}]"


def _digits(value: float, percent: bool) -> int:
    """Behind the point."""
    size = abs(value)
    if percent:
        return 2 if 0 < size < 0.95 else 1
    return 0 if size >= 1000 else 1 if size >= 10 else 3
