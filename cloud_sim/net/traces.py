"""Recordings of links: mahimahi's opportunities, rates over time, round trips over time.

    mahimahi   one integer a line: the millisecond at which 1,500 bytes may leave; repeated lines
               are several opportunities; the trace loops. `.gz` is read too. (mm-link's man page)
    rate       CSV `t_ms,rate_mbps` with a header, or two bare columns `seconds Mbit/s`
    rtt        CSV with columns `t_ms` and `rtt_ms`, further columns ignored

A trace becomes a link's `Rate` or `Delay` with `as_rate` and `as_delay`. `made_traces` makes them,
and turns one form into another.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from cloud_sim.net.links import RecordedDelay
from cloud_sim.net.rates import OPPORTUNITY_BYTES, Opportunities, Rate, RateSeries, Timetable
from edge_runtime.errors import SpecError, UsageError

Form = Literal["mahimahi", "rate", "rtt"]

LONGEST_MS = 31 * 86_400_000
"""A month: what is later in a trace is no time but a slip of the pen, or of the unit."""
MOST_MS = 86_400_000
"""A day, for a round trip, a delay or a pause: the same."""
MOST_MBPS = 1e6
"""1 Tbit/s."""
LEAST_MS = 1.0
"""A loop that is shorter goes round more often than a run can follow."""


@dataclass(frozen=True)  # without slots, for the cached property
class Trace:
    """One recording. `values`: nothing (mahimahi), Mbit/s (rate), or ms (rtt), at `times_ms`."""

    form: Form
    times_ms: tuple[float, ...]
    values: tuple[float, ...]
    period_ms: float
    """When it begins again."""

    @cached_property
    def timetable(self) -> Timetable:
        """Of a mahimahi trace, for all that replay it."""
        return Timetable(self.times_ms)

    def as_rate(self, *, offset_ms: float = 0.0) -> Rate:
        """A fresh rate. Raises `UsageError` for round trips."""
        if self.form == "mahimahi":
            return Opportunities(self.timetable, offset_ms=offset_ms)
        if self.form == "rate":
            rates = [mbps * 1e6 for mbps in self.values]
            return RateSeries(self.times_ms, rates, self.period_ms, offset_ms=offset_ms)
        raise UsageError(
            "trace", "a recording of round trips has no rate", allowed="mahimahi, rate"
        )

    def as_delay(self, *, offset_ms: float = 0.0) -> RecordedDelay:
        """A fresh delay. Raises `UsageError` for rates."""
        if self.form != "rtt":
            raise UsageError("trace", "only a recording of round trips is a delay", got=self.form)
        return RecordedDelay(self.times_ms, self.values, self.period_ms, offset_ms=offset_ms)

    @property
    def total_bytes(self) -> float:
        """What one loop can carry."""
        if self.form == "mahimahi":
            return float(len(self.times_ms) * OPPORTUNITY_BYTES)
        if self.form == "rate":
            ends = (*self.times_ms[1:], self.period_ms)
            spans = zip(self.times_ms, ends, self.values, strict=True)
            return sum((end - start) * mbps * 125.0 for start, end, mbps in spans)
        raise UsageError("trace", "a recording of round trips carries no bytes")

    def mbps(self, window_ms: float = 1000.0) -> np.ndarray:
        """Mean rate in each window of one loop, Mbit/s."""
        edges = np.arange(0.0, self.period_ms + window_ms, window_ms)
        if self.form == "mahimahi":
            # An opportunity at the very end of the loop belongs to its last window.
            inside = np.minimum(self.times_ms, np.nextafter(self.period_ms, 0))
            counts, _ = np.histogram(inside, edges)
            carried = counts * float(OPPORTUNITY_BYTES)
        else:
            starts = np.array([*self.times_ms, self.period_ms])
            sums = np.concatenate([[0], np.cumsum(np.diff(starts) * np.array(self.values) * 125)])
            carried = np.diff(np.interp(np.minimum(edges, self.period_ms), starts, sums))
        spans = np.minimum(edges[1:], self.period_ms) - edges[:-1]
        return np.asarray(carried[spans > 0] * 8e-3 / spans[spans > 0])

    def info(self) -> dict[str, float | str]:
        """What a person wants to know of it."""
        facts: dict[str, float | str] = {"form": self.form, "seconds": self.period_ms / 1e3}
        if self.form == "rtt":
            values = np.array(self.values)
            for q in (50, 95, 99):
                facts[f"rtt_ms_p{q}"] = float(np.percentile(values, q))
            facts |= {"rtt_ms_max": float(values.max()), "samples": len(values)}
            return facts
        rates = self.mbps()
        facts |= {
            "mean_mbps": self.total_bytes * 8e-3 / self.period_ms,
            "mbps_p5": float(np.percentile(rates, 5)),
            "mbps_p95": float(np.percentile(rates, 95)),
            "silent_share": float((rates == 0).mean()),
            "bytes": self.total_bytes,
        }
        if self.form == "mahimahi":
            facts["longest_gap_ms"] = float(np.diff([0.0, *self.times_ms]).max())
        return facts

    def text(self) -> str:
        """The file's content, in its own form."""
        if self.form == "mahimahi":
            return "".join(f"{round(t)}\n" for t in self.times_ms)
        unit = "rate_mbps" if self.form == "rate" else "rtt_ms"
        pairs = zip(self.times_ms, self.values, strict=True)
        lines = [f"{t:.10g},{value:.10g}\n" for t, value in pairs]
        # The last line repeats the first value at the period, so that the loop's length is kept.
        return f"t_ms,{unit}\n" + "".join(lines) + f"{self.period_ms:.10g},{self.values[0]:.10g}\n"


def read(path: Path, form: Form | None = None) -> Trace:
    """The trace in `path`; `form` None: told from the content. Raises `SpecError`."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        text = raw.decode("utf-8")
    except FileNotFoundError:
        raise SpecError(str(path), "no such trace file") from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise SpecError(str(path), f"the trace cannot be read: {error}") from error
    return parse(text, str(path), form)


def parse(text: str, where: str, form: Form | None = None) -> Trace:
    """A trace from its text. Raises `SpecError` with `where` and the line."""
    lines = text.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise SpecError(where, "the trace is empty")
    form = form or _guess(lines, where)
    return _mahimahi(lines, where) if form == "mahimahi" else _series(lines, where, form)


def _guess(lines: Sequence[str], where: str) -> Form:
    head = lines[0].strip()
    if head.isdigit():
        return "mahimahi"
    columns = [name.strip() for name in head.split(",")]
    if "rtt_ms" in columns:
        return "rtt"
    if "rate_mbps" in columns or [_is_number(part) for part in head.split()] == [True, True]:
        return "rate"
    raise SpecError(
        f"{where}, line 1",
        "this is no trace that is known here",
        got=repr(head[:60]),
        allowed="an integer (mahimahi), a header with t_ms and rate_mbps or rtt_ms, or two numbers",
    )


def _mahimahi(lines: Sequence[str], where: str) -> Trace:
    times: list[float] = []
    last = 0
    for number, line in enumerate(lines, 1):
        try:
            time = int(line)
        except ValueError:
            raise SpecError(
                f"{where}, line {number}",
                "not a whole number of milliseconds",
                got=repr(line[:40]),
            ) from None
        if time < last:
            raise SpecError(
                f"{where}, line {number}",
                "a time before the one above it",
                got=time,
                allowed=f"at least {last}",
            )
        if time > LONGEST_MS:
            raise _too_late(where, number, line)
        times.append(float(time))
        last = time
    if last == 0:
        raise SpecError(where, "all opportunities are at 0 ms, so the trace has no length")
    return Trace("mahimahi", tuple(times), (), float(last))


def _series(lines: Sequence[str], where: str, form: Form) -> Trace:
    first_cell = [*lines[0].replace(",", " ").split(), ""][0]
    header = form == "rtt" or not _is_number(first_cell)
    most = MOST_MS if form == "rtt" else MOST_MBPS
    rows: list[tuple[float, float]] = []
    if header:
        columns = [name.strip() for name in _columns(lines[0], where)]
        wanted = ("t_ms", "rtt_ms" if form == "rtt" else "rate_mbps")
        for name in wanted:
            if name not in columns:
                raise SpecError(
                    f"{where}, line 1", f"there is no column {name}", got=", ".join(columns)
                )
        at = [columns.index(name) for name in wanted]
        scale = 1.0
    else:
        at, scale = [0, 1], 1e3  # bare columns are seconds
    for number, line in enumerate(lines, 1):
        if header and number == 1:
            continue
        cells = line.split(",") if "," in line else line.split()
        try:
            time, value = float(cells[at[0]]) * scale, float(cells[at[1]])
        except (ValueError, IndexError):
            raise SpecError(
                f"{where}, line {number}", "not two numbers", got=repr(line[:60])
            ) from None
        if not (math.isfinite(time) and math.isfinite(value)) or value < 0:
            raise SpecError(
                f"{where}, line {number}", "a value that cannot be", got=repr(line[:60])
            )
        if value > most:
            raise SpecError(
                f"{where}, line {number}",
                "a value that is too large",
                got=repr(line[:60]),
                allowed=f"at most {most:.15g} {'ms' if form == 'rtt' else 'Mbit/s'}",
            )
        if rows and time <= rows[-1][0]:
            raise SpecError(
                f"{where}, line {number}",
                "a time not after the one above it",
                got=f"{time:g} ms",
                allowed=f"over {rows[-1][0]:g} ms",
            )
        if time - (rows[0][0] if rows else time) > LONGEST_MS:
            raise _too_late(where, number, line)
        rows.append((time, value))
    if len(rows) < 2:
        raise SpecError(where, "a series needs at least two rows", got=f"{len(rows)}")
    first = rows[0][0]
    times = tuple(time - first for time, _ in rows[:-1])
    values = tuple(value for _, value in rows[:-1])
    if form == "rate" and not any(values):
        raise SpecError(where, "all rates are 0, so nothing would ever leave")
    # The last row ends the series: it says how long the row before it lasts.
    trace = Trace(form, times, values, rows[-1][0] - first)
    if trace.period_ms < LEAST_MS:
        raise SpecError(
            where, "the series is too short", got=f"{trace.period_ms:g} ms", allowed="1 ms or more"
        )
    if form == "rate" and trace.total_bytes < 1:
        raise SpecError(where, "the rates are so low that not one byte leaves in the whole series")
    return trace


def _columns(line: str, where: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(line)), [])
    except csv.Error as error:
        raise SpecError(f"{where}, line 1", f"the header cannot be read: {error}") from error


def _too_late(where: str, number: int, line: str) -> SpecError:
    return SpecError(
        f"{where}, line {number}",
        "a time too long after the beginning",
        got=repr(line[:60]),
        allowed=f"{LONGEST_MS} ms",
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
