"""What waits in virtual time: SimPy's clock with plain calls on it, processes, and inboxes.

A simulated token is a handful of waits, and what SimPy spends on each (an event object, its list of
callbacks, a process that is resumed through both) was half of the simulator's time. So the queue
of events holds functions beside SimPy's own events, a process is a generator that arranges its own
waking, and where nothing can happen meanwhile the clock is moved at once. The order in which things
happen is SimPy's throughout.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from heapq import heappop, heappush
from operator import attrgetter
from typing import Any

import simpy

Call = Callable[[], Any]

Moves = Generator[None, Any, Any]
"""What a `Process` runs: it yields when it waits, having arranged that `go_on` is called."""

_NORMAL = 1
"""SimPy's priority of all but interrupts."""


class Clock(simpy.Environment):
    """SimPy's environment; also a `cloud_sim.net.transport.Timers`."""

    _now: float
    _queue: list[Any]
    now = property(attrgetter("_now"), doc="Virtual time, ms.")  # read without a Python call

    def at(self, when_ms: float, call: Call) -> None:
        """Call `call` at `when_ms`; at once, but after what was to happen now, if that is over."""
        now = self._now
        due = now + (when_ms - now) if when_ms > now else now
        heappush(self._queue, (due, _NORMAL, next(self._eid), call))

    def after(self, ms: float, call: Call) -> None:
        """Call `call` when `ms` have gone by."""
        heappush(
            self._queue,
            (self._now + ms, _NORMAL, next(self._eid), call),
        )

    def skip(self, ms: float) -> bool:
        """Let `ms` go by at once, if nothing is to happen until then and at that instant.

        Only for a call's last act: what its caller means to do next must be on the clock already.
        """
        queue, until = self._queue, self._now + ms
        if queue and queue[0][0] <= until:
            return False
        self._now = until
        return True

    def run(self, until: Any = None) -> Any:
        """Until nothing is left to happen; or `until`, as SimPy has it."""
        if until is not None:
            return super().run(until)
        queue, event = self._queue, simpy.Event
        while queue:
            self._now, _, _, call = first = heappop(queue)
            if isinstance(call, event):
                heappush(queue, first)
                super().step()
            else:
                call()

    def step(self) -> None:
        """The next event, or the next call."""
        queue = self._queue
        if queue and not isinstance(queue[0][3], simpy.Event):
            self._now, _, _, call = heappop(queue)
            call()
        else:
            super().step()


class Process:
    """A generator that runs until it yields, and goes on when `go_on` is called.

    `ended` is told when it is over, and of what: None, or the exception it raised.
    """

    __slots__ = ("_ended", "_moves")

    def __init__(self, moves: Moves, ended: Callable[[Exception | None], Any]) -> None:
        self._moves = moves
        self._ended: Callable[[Exception | None], Any] | None = ended

    def go_on(self, value: Any = None) -> None:
        """Start, or go on after the `yield` with `value`."""
        try:
            self._moves.send(value)
        except StopIteration:
            self._end(None)
        except Exception as error:
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        # Whoever is told mostly owns this: let go, so that both are freed without the collector.
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(error)


class Inbox:
    """Frames that have arrived and were not taken yet, each with its time."""

    __slots__ = ("_clock", "_wait", "_wake", "frames")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wake: Call | None = None
        self._wait = 0
        """Counts the waits, so that a deadline knows whether its own is still on."""
        self.frames: deque[tuple[Any, float]] = deque()

    def put(self, frame: Any) -> None:
        """A frame has arrived; whoever waits goes on."""
        self.frames.append((frame, self._clock._now))
        wake = self._wake
        if wake is not None:
            self._wake = None
            wake()

    def wait(self, wake: Call, deadline_ms: float | None) -> None:
        """Call `wake` at the next `put`, or when `deadline_ms` have gone by."""
        self._wake = wake
        self._wait += 1
        if deadline_ms is not None:
            self._clock.after(deadline_ms, partial(self._late, self._wait))

    def _late(self, wait: int) -> None:
        wake = self._wake
        if wait == self._wait and wake is not None:
            self._wake = None
            wake()
