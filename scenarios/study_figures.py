"""Which figures a study's rows can carry, and how each is read off them.

Every figure over cases or seeds has its bootstrap interval (`scenarios.metrics`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scenarios.figures import Figure, Point, Series
from scenarios.metrics import Estimate, mean, ratio

if TYPE_CHECKING:
    import pandas as pd

MOST_FRONTS = 6
"""A figure with more fronts than these cannot be read."""


def of_study(rows: pd.DataFrame, measure: str, varied: Sequence[str]) -> list[Figure]:
    """Every figure that the study's rows can carry."""
    if "tokens_per_s" in rows:
        # The mean, not the median: run-ahead's median token knows nothing of its divergences.
        rows = rows.assign(token_ms=1e3 / rows["tokens_per_s"])
    makers: dict[str, list[Callable[..., Figure | None]]] = {
        "quality": [quality, quality_front],
        "time": [times, over_rtt, bytes_front, winners],
        "fleet": [crowd, crowd_median],
    }
    made = [
        make(rows, [name for name in varied if name in _columns(rows)]) for make in makers[measure]
    ]
    return [figure for figure in made if figure is not None]


def arms(rows: pd.DataFrame, by: Sequence[str]) -> Iterable[tuple[str, pd.DataFrame]]:
    """Rows by what varies, each with its name."""
    by = [_column(name) for name in by]
    if not by:
        yield "all", rows
        return
    for values, part in rows.groupby(by, sort=False, dropna=False):
        yield " · ".join(_shown(value) for value in values if not _none(value)), part


def times(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Time per token (mean), with an interval over cases and seeds, for each link."""
    if "token_ms" not in rows:
        return None
    others = [name for name in varied if name not in ("network", "seed", "case")]
    series: list[Series] = []
    links = list(dict.fromkeys(rows["profile"]))
    if len(links) == 1 and "rtt_ms" in varied:
        return None  # told better against the round trip
    found = list(arms(rows, others))
    for name, part in found:
        points = []
        for link in links:
            here = part[part["profile"] == link]
            if len(here):
                # Arms stand beside each other, not on top.
                x = links.index(link) + 0.5 * (len(series) + 1) / (len(found) + 1) - 0.25
                points.append(_estimated(x, here["token_ms"], label=f"{link} · {name}"))
        series.append(Series(name, tuple(points)))
    return Figure(
        "time-by-link",
        "Time per token by link",
        "link",
        "ms per token (mean)",
        tuple(series),
        x_names=tuple(links),
        note="Virtual time. Bars: 90 % interval over cases and seeds; one case has none.",
    )


def over_rtt(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Time per token against the round trip, a line for each arm."""
    if "rtt_ms" not in varied:
        return None
    others = [name for name in varied if name not in ("rtt_ms", "seed", "case")]
    series = [
        Series(
            name,
            tuple(
                _estimated(float(rtt), part[part["rtt_ms"] == rtt]["token_ms"], label=name)
                for rtt in sorted(part["rtt_ms"].unique())
            ),
            joined=True,
        )
        for name, part in arms(rows, others)
    ]
    return Figure(
        "time-by-round-trip",
        "Time per token against the round trip",
        "round trip, ms",
        "ms per token (mean)",
        tuple(series),
        note="Virtual time; 90 % intervals over cases and seeds.",
    )


def bytes_front(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Bytes per token against time per token; what no other arm beats in both is joined."""
    if "downlink_bytes" not in rows:
        return None
    rows = rows.assign(
        bytes_per_token=(rows["uplink_bytes"] + rows["downlink_bytes"])
        / rows["tokens"].map(lambda tokens: max(1, tokens.count(",") + 1))
    )
    if rows["bytes_per_token"].max() < 1.01 * rows["bytes_per_token"].min():
        return None
    return _front(
        rows,
        [name for name in varied if name not in ("seed", "case")],
        ("bytes_per_token", "bytes per token, both ways"),
        ("token_ms", "ms per token (mean)"),
        Figure("bytes-and-time", "Bytes against time", "", "", note="Lower left is better."),
        lower_is_better=True,
    )


def winners(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Which schedule is fastest at each round trip (or link) on each device."""
    across = "rtt_ms" if "rtt_ms" in varied else "network"
    if "schedule" not in varied or across not in varied:
        return None
    cells = []
    for (down, right), here in rows.groupby(["device_profile", _column(across)], sort=False):
        by = here.groupby("schedule", sort=False)["token_ms"].mean()
        best = str(by.idxmin())
        gained = float(by.max() / by.min())
        cells.append((str(down), _shown(right), gained, f"{best} ({gained:.2f}×)"))
    return Figure(
        "where-which-schedule-wins",
        "Where each schedule wins",
        "round trip, ms" if across == "rtt_ms" else "link",
        "device",
        kind="grid",
        grid=tuple(cells),
        note="By mean time per token: the fastest schedule, and how many times faster it is "
        "than the slowest.",
    )


def crowd(rows: pd.DataFrame, varied: Sequence[str], q: str = "p95") -> Figure | None:
    """Time per token (`q`: p50 or p95 over all phones) as more phones ask one cloud."""
    if "arrivals_per_s" not in varied:
        return None
    others = [name for name in varied if name not in ("arrivals_per_s", "seed", "case")]
    series = []
    for name, part in arms(rows, others):
        by_rate = {rate: part[part["arrivals_per_s"] == rate] for rate in part["arrivals_per_s"]}
        points = [
            _estimated(float(rate), here[f"token_ms_{q}"], name)
            for rate, here in sorted(by_rate.items())
        ]
        series.append(Series(name, tuple(points), joined=True))
    return Figure(
        f"fleet-{q}",
        f"How many phones one cloud serves ({q})",
        "new answers per second",
        f"ms per token ({q} over all phones)",
        tuple(series),
        note="Virtual time, continuous batching on one cloud; 90 % intervals over cases and seeds.",
        x_log=True,
    )


def crowd_median(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """`crowd` of the median."""
    return crowd(rows, varied, "p50")


def gap(part: pd.DataFrame) -> Estimate:
    """Share of the gap captured over the part's cases (docs/metrics.md)."""
    above = part["cloud_nll"] - part["nll"]
    return ratio(above.to_numpy(), (part["cloud_nll"] - part["upload_nll"]).to_numpy())


def quality(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Share of the gap captured by each arm."""
    others = [name for name in varied if name not in ("seed", "case")]
    found = [(name, gap(part)) for name, part in arms(rows, others)]
    by_gain = "gain" in varied
    points = []
    for place, (name, estimate) in enumerate(found):
        x = float(name.split(" · ")[-1]) if by_gain and _is_number(name.split(" · ")[-1]) else place
        points.append(Point(float(x), estimate.value, name, estimate.low, estimate.high))
    return Figure(
        "gap-captured",
        "Share of the gap to an informed cloud that is captured",
        "gain" if by_gain else "",
        "share of the gap (1: the cloud with the note; 0: without)",
        (Series("gap captured", tuple(points), joined=by_gain),),
        x_names=() if by_gain else tuple(name for name, _ in found),
        note=f"Teacher-forced on {rows['case'].nunique()} references; 90 % intervals over cases.",
    )


def quality_front(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Gap captured against how often the token is another than the cloud's."""
    others = [name for name in varied if name not in ("seed", "case")]
    points = []
    for name, part in arms(rows, others):
        share = ratio(part["diverged"].to_numpy(), part["tokens"].to_numpy())
        found = gap(part)
        points.append(
            Point(share.value, found.value, name, found.low, found.high, share.low, share.high)
        )
    return Figure(
        "gap-and-divergence",
        "What is gained against what is changed",
        "share of tokens that are not the cloud's best",
        "share of the gap captured",
        (Series("arms", tuple(points)), Series("Pareto front", _best(points, False), True)),
        note="Each token that is not the cloud's best costs run-ahead a round trip.",
    )


def _front(
    rows: pd.DataFrame,
    by: Sequence[str],
    x: tuple[str, str],
    y: tuple[str, str],
    frame: Figure,
    *,
    lower_is_better: bool,
) -> Figure | None:
    # Each link is a world of its own: fronts are drawn within one.
    split = [axis for axis in ("network", "rtt_ms") if axis in by]
    series: list[Series] = []
    worlds = list(arms(rows, split))
    if len(worlds) > MOST_FRONTS:
        return None
    for world, within in worlds:
        points = []
        for name, part in arms(within, [axis for axis in by if axis not in split]):
            across, up = mean(part[x[0]].to_numpy()), mean(part[y[0]].to_numpy())
            points.append(
                Point(across.value, up.value, name, up.low, up.high, across.low, across.high)
            )
        front = "Pareto front" if world == "all" else f"{world}: front"
        series.append(Series("arms" if world == "all" else world, tuple(points)))
        series.append(Series(front, _best(points, lower_is_better), joined=True))
    return Figure(frame.name, frame.title, x[1], y[1], tuple(series), frame.note, x_log=True)


def _best(points: Sequence[Point], lower_is_better: bool) -> tuple[Point, ...]:
    """Points that no other beats in both: x low, y low (or high)."""
    sign = 1 if lower_is_better else -1
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, sign * p.y)):
        if not kept or sign * point.y < sign * kept[-1].y:
            kept.append(point)
    return tuple(kept)


def _estimated(x: float, values: Any, label: str) -> Point:
    found = mean(np.asarray(values, np.float64))
    exact = len(values) < 2
    return Point(x, found.value, label, None if exact else found.low, None if exact else found.high)


def _column(name: str) -> str:
    return {"network": "profile", "device": "device_profile", "cloud": "cloud_profile"}.get(
        name, name
    )


def _columns(rows: pd.DataFrame) -> set[Hashable]:
    known = set(rows.columns)
    return known | {n for n in ("network", "device", "cloud") if _column(n) in known}


def _none(value: object) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
