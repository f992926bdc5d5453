"""Who computes for the cloud's sessions in virtual time.

An engine is asked for one forward pass and answers, when it is done, how long the request waited
for others and how long it computed. `OwnGpu` gives every session a GPU of its own: there is no
queue. `cloud_sim.sim.serving` batches sessions on one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from cloud_sim.sim.costs import CloudCosts
from cloud_sim.sim.waiting import Clock
from edge_runtime.schedules.actions import Load

Served = tuple[float, float]
"""Milliseconds in the queue, milliseconds computing."""


class Engine(Protocol):
    """Computes for sessions; `session` is an opaque key that stays the same for one session."""

    def score(self, session: object, load: Load, done: Callable[[Served], None]) -> Served | None:
        """One pass. Returns how it went if its time has gone by already, or calls `done` then."""
        ...

    def leave(self, session: object) -> None:
        """The session is over; its KV memory is free."""
        ...


class OwnGpu:
    """Every session computes alone, at once."""

    def __init__(self, clock: Clock, costs: CloudCosts) -> None:
        self._clock, self._costs = clock, costs

    def score(self, session: object, load: Load, done: Callable[[Served], None]) -> Served | None:
        """See `Engine`."""
        spent = self._costs.ms(load)
        served = 0.0, spent
        if self._clock.skip(spent):
            return served
        self._clock.after(spent, partial(done, served))
        return None

    def leave(self, session: object) -> None:
        """Nothing is held."""
