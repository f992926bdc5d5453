"""How fast a link's bits leave: at a constant rate, by listed opportunities, or by a rate series.

A rate is a first-in-first-out server in closed form: `finish(now_ms, size_bytes)` says when the
last bit of a packet that joins the queue now has left, and remembers it. Calls must come in order
of time. No process runs per packet, so the same objects serve the simulator and a real proxy.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Protocol

OPPORTUNITY_BYTES = 1500
"""What one line of a mahimahi trace may carry (mm-link's man page)."""


class Rate(Protocol):
    """A FIFO server of bits."""

    def finish(self, now_ms: float, size_bytes: int) -> float:
        """When the last bit of a packet of `size_bytes` that arrives now has left, ms."""
        ...


class ConstantRate:
    """`rate_bps` bits per second: a packet takes 8 size / rate, after those before it."""

    def __init__(self, rate_bps: float) -> None:
        self.rate_bps = rate_bps
        self._ms_per_byte = 8e3 / rate_bps
        self._free_ms = 0.0

    def finish(self, now_ms: float, size_bytes: int) -> float:
        """See `Rate`."""
        start = now_ms if now_ms > self._free_ms else self._free_ms
        self._free_ms = start + size_bytes * self._ms_per_byte
        return self._free_ms


class Timetable:
    """The instants of a mahimahi trace, ascending and not all zero, and where to look for one.

    Whoever replays the trace shares it: bisecting over a whole trace reads memory far and wide,
    within one millisecond of it hardly any.
    """

    __slots__ = ("before", "period_ms", "times_ms")

    def __init__(self, times_ms: Sequence[float]) -> None:
        self.times_ms = array("d", times_ms)
        self.period_ms = self.times_ms[-1]
        self.before = array("I")
        """For each whole millisecond, up to the one after the last: how many are before it."""
        count = 0
        for ms in range(int(self.period_ms) + 2):
            while count < len(self.times_ms) and self.times_ms[count] < ms:
                count += 1
            self.before.append(count)


class Opportunities:
    """A mahimahi trace: each entry is an instant at which 1,500 bytes may leave.

    As in mm-link: accounting is by bytes, so one opportunity carries several small packets and a
    large one needs several; what an opportunity could have carried while nothing waited is lost;
    after the last entry the trace begins again, shifted by the last entry's time.

    Parameters
    ----------
    timetable : when they are.
    offset_ms : where in the trace time 0 is.

    """

    def __init__(
        self,
        timetable: Timetable,
        *,
        offset_ms: float = 0.0,
        opportunity_bytes: int = OPPORTUNITY_BYTES,
    ) -> None:
        self._times, self._period = timetable.times_ms, timetable.period_ms
        self._before = timetable.before
        self._size = opportunity_bytes
        self._offset = offset_ms
        self._cycle, self._index = 0, -1
        self._left = 0
        self._at = float("-inf")
        """The opportunity in use, when it was, and the bytes it still has."""

    def finish(self, now_ms: float, size_bytes: int) -> float:
        """See `Rate`."""
        now = now_ms + self._offset
        if self._at < now:
            self._seek(now)
        left = self._left
        while size_bytes > left:
            size_bytes -= left
            self._next()
            left = self._left
        self._left = left - size_bytes
        return self._at - self._offset

    def _seek(self, now: float) -> None:
        """To the first opportunity at or after `now`; those before it went by unused."""
        cycles, within = divmod(now, self._period)
        cycle = int(cycles)
        # An entry at exactly the period is the same instant as one at 0 of the next cycle.
        if within == 0.0 and cycle > 0:
            cycle, within = cycle - 1, self._period
        before, ms = self._before, int(within)
        index = bisect_left(self._times, within, before[ms], before[ms + 1])
        if cycle > self._cycle or (cycle == self._cycle and index > self._index):
            self._cycle, self._index = cycle, index
            self._at = cycle * self._period + self._times[index]
            self._left = self._size
        else:
            self._next()

    def _next(self) -> None:
        self._index += 1
        if self._index == len(self._times):
            self._index, self._cycle = 0, self._cycle + 1
        self._at = self._cycle * self._period + self._times[self._index]
        self._left = self._size


class RateSeries:
    """A rate that is constant between the instants of a series, and loops.

    Parameters
    ----------
    starts_ms : ascending, the first 0: when each rate begins.
    rates_bps : as many, not all zero; 0 is a pause in which nothing leaves.
    period_ms : when the series begins again, after the last start.

    """

    def __init__(
        self,
        starts_ms: Sequence[float],
        rates_bps: Sequence[float],
        period_ms: float,
        *,
        offset_ms: float = 0.0,
    ) -> None:
        self._starts = [*starts_ms, period_ms]
        self._rates = [rate / 8e3 for rate in rates_bps]  # bytes per ms
        self._period = period_ms
        self._offset = offset_ms
        self._sums = [0.0]
        """Bytes that could have left from the series' beginning to each start."""
        for i, rate in enumerate(self._rates):
            self._sums.append(self._sums[-1] + rate * (self._starts[i + 1] - self._starts[i]))
        self._free_ms = -1.0
        self._served = 0.0
        """Bytes that could have left up to `_free_ms`: summed there, since sums of times round."""

    def finish(self, now_ms: float, size_bytes: int) -> float:
        """See `Rate`."""
        if now_ms > self._free_ms:
            cycle, within = divmod(now_ms + self._offset, self._period)
            i = bisect_right(self._starts, within) - 1
            could = self._sums[i] + self._rates[i] * (within - self._starts[i])
            self._served = cycle * self._sums[-1] + could
        self._served += size_bytes
        cycle, target = divmod(self._served, self._sums[-1])
        if target == 0.0:
            cycle, target = cycle - 1, self._sums[-1]
        # The first segment whose end has that many bytes behind it: pauses are passed over.
        j = bisect_left(self._sums, target, lo=1) - 1
        done = self._starts[j] + (target - self._sums[j]) / self._rates[j]
        self._free_ms = cycle * self._period + done - self._offset
        return self._free_ms
