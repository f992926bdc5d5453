"""What waits in virtual time: timers for the transport, and an inbox for each side's frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import simpy

Process = Generator[simpy.Event, Any, Any]


class SimTimers:
    """`cloud_sim.net.transport.Timers` on SimPy's clock."""

    __slots__ = ("_env",)

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env

    def at(self, when_ms: float, call: Callable[[], Any]) -> None:
        """See `Timers`."""
        event = _Call(self._env, call)
        self._env.schedule(event, delay=max(0.0, when_ms - self._env.now))


class _Call(simpy.Event):
    """An event that calls a function and that nobody can wait for."""

    def __init__(self, env: simpy.Environment, call: Callable[[], Any]) -> None:
        self.env = env
        self.callbacks = [lambda _: call()]
        self._ok, self._value = True, None


class Inbox:
    """Frames that have arrived and were not taken yet, each with its time."""

    __slots__ = ("_alone", "_env", "_waiter", "frames")

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._waiter: simpy.Event | None = None
        self._alone = True
        """A process waits for it and for no deadline beside."""
        self.frames: deque[tuple[Any, float]] = deque()

    def put(self, frame: Any) -> None:
        """A frame has arrived; whoever waits goes on."""
        self.frames.append((frame, self._env.now))
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        if self._alone:
            # Whoever waits goes on within this very event, not in one more at the same instant:
            # that is a tenth of a simulation's time.
            waiter._ok, waiter._value = True, None
            callbacks, waiter.callbacks = waiter.callbacks, None
            for callback in callbacks or ():
                callback(waiter)
        else:
            waiter.succeed()

    def wait(self, deadline_ms: float | None) -> Process:
        """Until the next `put`, at most `deadline_ms`."""
        self._waiter = simpy.Event(self._env)
        self._alone = deadline_ms is None
        if deadline_ms is None:
            yield self._waiter
        else:
            yield self._waiter | self._env.timeout(deadline_ms)
            self._waiter = None
