"""Figures of a study's times: by link, by round trip, by schedule, by the number of phones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scenarios.figures.arms import SAMPLES, arms, column, drawn, estimated, others, sampled, shown
from scenarios.figures.figure import Figure, Point, Series
from scenarios.metrics import mean, quotient

if TYPE_CHECKING:
    import pandas as pd

MOST_COLUMNS = 6
"""A grid with more is turned."""
SLOW_MS = 100.0
"""A phone is served as long as its p95 time per token is below this (ten tokens a second)."""


def times(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Time per token (mean), with an interval over cases and seeds, for each link."""
    links = list(dict.fromkeys(rows["profile"]))
    if "token_ms" not in rows or (len(links) == 1 and "rtt_ms" in varied):
        return None  # told better against the round trip
    series: list[Series] = []
    found = list(arms(rows, others(varied, "network")))
    for name, part in found:
        points = []
        for link in links:
            here = part[part["profile"] == link]
            if len(here):
                # Arms stand beside each other, not on top.
                x = links.index(link) + 0.5 * (len(series) + 1) / (len(found) + 1) - 0.25
                points.append(estimated(x, here, "token_ms", f"{shown(link)} · {name}"))
        series.append(Series(name, tuple(points)))
    return Figure(
        "time-by-link",
        "Time per token by link",
        "link",
        "ms per token (mean)",
        tuple(series),
        x_names=tuple(shown(link) for link in links),
        y_log=_wide(series),
        y_zero=not _wide(series),
        note=f"Virtual time. {_over(rows)}",
    )


def over_rtt(rows: pd.DataFrame, varied: Sequence[str]) -> list[Figure]:
    """Time per token against the round trip: a figure a device, a line for each arm."""
    if "rtt_ms" not in varied:
        return []
    figures = []
    devices = [axis for axis in ("device",) if axis in varied]
    for device, within in arms(rows, devices):
        series = [
            Series(
                name,
                tuple(
                    estimated(float(rtt), part[part["rtt_ms"] == rtt], "token_ms", name)
                    for rtt in sorted(part["rtt_ms"].unique())
                ),
                joined=True,
            )
            for name, part in arms(within, others(varied, "rtt_ms", "device"))
        ]
        on = f" on {device}" if devices else ""
        figures.append(
            Figure(
                "time-by-round-trip" + (f"-{device}" if devices else ""),
                f"Time per token against the round trip{on}",
                "round trip, ms",
                "ms per token (mean)",
                tuple(series),
                x_log=True,
                y_log=True,
                note=f"Virtual time. {_over(rows)}",
            )
        )
    return figures


def winners(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Which schedule is fastest at each round trip (or link) on each device."""
    across = "rtt_ms" if "rtt_ms" in varied else "network"
    if "schedule" not in varied or across not in varied:
        return None
    speed = "device_step_ms"
    rows = rows.sort_values(speed, kind="stable") if speed in rows else rows
    cells = []
    for (down, right), here in rows.groupby(["device_profile", column(across)], sort=False):
        parts = {str(name): part for name, part in here.groupby("schedule", sort=False)}
        parts = {name: part for name, part in parts.items() if part["token_ms"].notna().any()}
        if not parts:
            continue
        spent = {name: float(part["token_ms"].mean()) for name, part in parts.items()}
        order = sorted(spent, key=lambda name: spent[name])
        lines = [order[0]]
        # The next best says whether the choice matters, the slowest what is at stake.
        slower = dict.fromkeys((order[min(1, len(order) - 1)], order[-1]))
        lines += [f"{_faster(parts[name], parts[order[0]])} {name}" for name in slower]
        if spent[order[-1]] <= 1.01 * spent[order[0]]:
            lines = ["all the same", "within 1 %"]
        gained = spent[order[-1]] / spent[order[0]]
        step = f" ({here[speed].iloc[0]:.0f} ms)" if speed in here else ""
        cells.append((f"{shown(down)}{step}", shown(right), gained, "\n".join(lines)))
    cells.sort(key=lambda cell: _number(cell[1]))
    labels = ("round trip, ms" if across == "rtt_ms" else "link", "device (its two-branch step)")
    if len({cell[1] for cell in cells}) > MOST_COLUMNS:
        cells = [(right, down, value, text) for down, right, value, text in cells]
        labels = labels[::-1]
    return Figure(
        "where-which-schedule-wins",
        "Where each schedule wins",
        *labels,
        kind="grid",
        grid=tuple(cells),
        note="By mean time per token: the fastest schedule, and how many times faster it is than "
        "the next one and the slowest (90 % interval over cases and seeds, paired). Darker: more.",
    )


def _faster(slow: pd.DataFrame, fast: pd.DataFrame) -> str:
    """How many times, with its interval where both ran the same samples.

    Whatever else varies (a gain, a codec) is no sample: it is averaged first.
    """
    times = float(slow["token_ms"].mean() / fast["token_ms"].mean())
    keys = [name for name in SAMPLES if name in slow]
    one, two = (part.groupby(keys)["token_ms"].mean().sort_index() for part in (slow, fast))
    if len(one) < 2 or not one.index.equals(two.index):
        return f"{times:.2f}×"
    ones = [1.0] * len(one)
    groups = [one.index.get_level_values(name).to_numpy() for name in keys]
    sure = quotient((one.to_numpy(), ones), (two.to_numpy(), ones), groups=groups)
    return f"{times:.2f}× [{sure.low:.2f}, {sure.high:.2f}]"


def crowd(rows: pd.DataFrame, varied: Sequence[str], q: str = "p95") -> Figure | None:
    """Time per token (`q`: p50 or p95 over all phones) as more phones ask one cloud."""
    if "arrivals_per_s" not in varied:
        return None
    series = []
    for name, part in arms(rows, others(varied, "arrivals_per_s")):
        by_rate = {rate: part[part["arrivals_per_s"] == rate] for rate in part["arrivals_per_s"]}
        points = [
            estimated(float(rate), here, f"token_ms_{q}", name)
            for rate, here in sorted(by_rate.items())
        ]
        series.append(Series(name, tuple(points), joined=True))
    return Figure(
        f"fleet-{q}",
        f"How many phones one cloud serves ({q})",
        "new answers per second",
        f"ms per token ({q} over all phones)",
        tuple(series),
        note=f"Virtual time, continuous batching on one cloud. {_over(rows)}",
        x_log=True,
    )


def crowd_median(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """`crowd` of the median."""
    return crowd(rows, varied, "p50")


def capacity(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """The most answers a second with which p95 stays below `SLOW_MS`, read between the rates."""
    if "arrivals_per_s" not in varied:
        return None
    points, names = [], []
    highest = float(rows["arrivals_per_s"].max())
    for place, (name, part) in enumerate(arms(rows, others(varied, "arrivals_per_s"))):
        rates = [_capacity(one) for _, one in part.groupby("seed", sort=False)]
        found = mean(rates)
        sure = () if len(rates) < 2 else (found.low, found.high)
        points.append(Point(float(place), found.value, name, *sure))
        names.append(f"{name} (or more)" if min(rates) >= highest else name)
    return Figure(
        "fleet-capacity",
        f"Answers a second that one cloud serves with p95 below {SLOW_MS:.0f} ms per token",
        "",
        "new answers per second",
        (Series("capacity", tuple(points)),),
        x_names=tuple(names),
        note="Between two tried rates p95 is taken to grow evenly; at the highest rate tried it is "
        f"a lower bound, at none it is 0. {_over(rows)}",
    )


def _capacity(part: pd.DataFrame) -> float:
    """Of one seed."""
    by_rate = part.groupby("arrivals_per_s")["token_ms_p95"].mean().sort_index()
    rates, slow = [float(rate) for rate in by_rate.index], [float(ms) for ms in by_rate]
    served = 0.0
    for at, (rate, ms) in enumerate(zip(rates, slow, strict=True)):
        if ms > SLOW_MS:
            if at and ms > slow[at - 1]:
                share = (SLOW_MS - slow[at - 1]) / (ms - slow[at - 1])
                served += share * (rate - rates[at - 1])
            return served
        served = rate
    return served


def privacy(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """What goes up about the note, by placement: bits a token against time per token."""
    if "placement" not in varied:
        return None
    series = []
    for name, part in arms(rows, others(varied, "network", "rtt_ms")):
        points = []
        for link, here in part.groupby("profile", sort=False):
            tokens = here["tokens"].map(_length)
            told = (here["evidence_bits"] + here["context_bits"]) / tokens
            bits = mean(told.to_numpy(), groups=drawn(here))
            spent = mean(here["token_ms"].to_numpy(), groups=drawn(here))
            points.append(
                Point(
                    *(spent.value, bits.value, shown(link), bits.low, bits.high),
                    *(spent.low, spent.high),
                )
            )
        series.append(Series(name, tuple(points)))
    return Figure(
        "placement",
        "Where steering happens: what the cloud is told, and the time",
        "ms per token (mean)",
        "bits about the note that go up, per token",
        tuple(series),
        x_log=True,
        y_log=True,
        note="On the device: evidence in the chosen tokens (log2 of policy over the cloud's own). "
        "In the cloud: the delta's bits besides, any of which confirms or rules out a guessed "
        "note.",
    )


def _length(tokens: str) -> int:
    return max(1, tokens.count(",") + 1)


def _over(rows: pd.DataFrame) -> str:
    over = sampled(rows)
    return f"Bars: 90 % intervals over {over}." if over else "One case and one seed: no interval."


def _wide(series: Sequence[Series]) -> bool:
    values = [point.y for one in series for point in one.points]
    return max(values) > 8 * min(values) > 0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
