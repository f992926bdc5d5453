"""Who computes for the cloud's sessions in virtual time.

An engine is asked for one forward pass and answers, when it is done, how long the request waited
for others and how long it computed. `OwnGpu` gives every session a GPU of its own: there is no
queue. `cloud_sim.sim.serving` batches sessions on one.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

import simpy

from cloud_sim.sim.costs import CloudCosts
from edge_runtime.schedules.actions import Load

Served = tuple[float, float]
"""Milliseconds in the queue, milliseconds computing."""


class Engine(Protocol):
    """Computes for sessions; `session` is an opaque key that stays the same for one session."""

    def score(self, session: object, load: Load) -> Generator[simpy.Event, Any, Served]:
        """A SimPy process fragment that ends when the pass is done."""
        ...

    def leave(self, session: object) -> None:
        """The session is over; its KV memory is free."""
        ...


class OwnGpu:
    """Every session computes alone, at once."""

    def __init__(self, env: simpy.Environment, costs: CloudCosts) -> None:
        self._env, self._costs = env, costs

    def score(self, session: object, load: Load) -> Generator[simpy.Event, Any, Served]:
        """See `Engine`."""
        spent = self._costs.ms(load)
        yield self._env.timeout(spent)
        return 0.0, spent

    def leave(self, session: object) -> None:
        """Nothing is held."""
