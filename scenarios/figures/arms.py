"""A study's rows cut into arms: what is compared, by the axes that vary."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scenarios.figures.figure import Point
from scenarios.metrics import Estimate, Groups, mean, ratio

if TYPE_CHECKING:
    import pandas as pd

UNITS = {
    "rtt_ms": "{} ms",
    "gain": "gain {}",
    "arrivals_per_s": "{}/s",
    "devices": "{} phones",
    "align": "align {}",
    "seed": "seed {}",
}
SAMPLES = ("case", "seed")
"""What is drawn and not chosen: intervals are over these."""
ENOUGH = 8
"""Cases (or seeds) from which on an interval holds the truth nearly as often as it says."""


def arms(rows: pd.DataFrame, by: Sequence[str]) -> Iterable[tuple[str, pd.DataFrame]]:
    """Rows by what varies, each with its name."""
    by = [column(name) for name in by]
    if not by:
        yield "all", rows
        return
    for values, part in rows.groupby(by, sort=False, dropna=False):
        named = zip(values, by, strict=True)
        yield " · ".join(shown(value, axis) for value, axis in named if not none(value)), part


def others(varied: Sequence[str], *but: str) -> list[str]:
    """The axes that make arms, without those of the figure itself."""
    return [name for name in varied if name not in (*SAMPLES, *but)]


def by_sample(rows: pd.DataFrame, part: pd.DataFrame) -> pd.DataFrame | None:
    """`part` with a row for each sample of `rows`, in one order; None when some are missing."""
    keys = [name for name in SAMPLES if name in rows]
    wanted = rows[keys].drop_duplicates().sort_values(keys)
    found = part.sort_values(keys)
    if len(found) != len(wanted) or not (found[keys].to_numpy() == wanted.to_numpy()).all():
        return None
    return found


def sampled(rows: pd.DataFrame) -> str:
    """What the intervals of a study are over; empty where nothing was drawn twice."""
    counts = {name: rows[name].nunique() for name in SAMPLES if name in rows}
    return " and ".join(f"{count} {name}s" for name, count in counts.items() if count > 1)


def too_few(rows: pd.DataFrame) -> str:
    """What is to be said of intervals over few samples; empty where there are enough."""
    counts = [(rows[name].nunique(), name) for name in SAMPLES if name in rows]
    few = [(count, name) for count, name in counts if 1 < count < ENOUGH]
    if not few:
        return ""
    count, name = min(few)
    return f"Intervals over {count} {name}s are too narrow (docs/metrics.md says by how much)."


def drawn(part: pd.DataFrame) -> Groups:
    """Of each row what was drawn and not chosen, for intervals over just that: rows of one case
    (over links, say) are no further evidence, and cases and seeds are drawn each by itself."""
    return [part[name].to_numpy() for name in SAMPLES if name in part]


def estimated(x: float, part: pd.DataFrame, figure: str, label: str) -> Point:
    """The mean of the column `figure` at `x`, over rows that have it; one sample alone has no
    interval."""
    part = part.dropna(subset=[figure])
    found = mean(part[figure].to_numpy(np.float64), groups=drawn(part))
    exact = found.cases < 2
    return Point(x, found.value, label, None if exact else found.low, None if exact else found.high)


def gap(part: pd.DataFrame) -> Estimate:
    """Share of the gap captured over the part's cases (docs/metrics.md)."""
    return ratio(*gap_sums(part), groups=drawn(part))


def gap_sums(part: pd.DataFrame) -> tuple[Any, Any]:
    """The gap captured by case, and the whole gap."""
    above = part["cloud_nll"] - part["nll"]
    return above.to_numpy(), (part["cloud_nll"] - part["upload_nll"]).to_numpy()


def column(name: str) -> str:
    """The column in which an axis is."""
    return {"network": "profile", "device": "device_profile", "cloud": "cloud_profile"}.get(
        name, name
    )


def columns(rows: pd.DataFrame) -> set[Hashable]:
    """The axes that `rows` can tell apart."""
    known = set(rows.columns)
    return known | {n for n in ("network", "device", "cloud") if column(n) in known}


def none(value: object) -> bool:
    """Whether an axis has no value here."""
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))


def shown(value: object, axis: str = "") -> str:
    """An axis's value for people, with its unit where that says what it is; a file by its name."""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    if axis == "placement":
        return f"steered {'in' if text == 'cloud' else 'on'} the {text}"
    if axis in UNITS:
        return UNITS[axis].format(text)
    if "/" in text:
        text = text.rsplit("/", 1)[-1].removesuffix(".toml").removesuffix(".csv")
    return text.removeprefix("made:")
