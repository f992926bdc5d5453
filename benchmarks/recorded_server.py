"""A recording behind the real server, in a process of its own as in the field, and at its pace.

    with served(recording, costs) as server:
        ... ws://{server.host}:{server.port} ...
        server.passes()                                 what the server has done since last asked

In one process the device and the server would wait for each other's Python, which phones and
clouds do not do.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks.recordings import RecordedCloud, Recording
from cloud_sim.live.server import running
from cloud_sim.model import ScoreRequest
from cloud_sim.sim.costs import CloudCosts
from edge_runtime.schedules.actions import Load


class Pass(NamedTuple):
    """One forward pass: when it began, on the server's clock, its rows, and what it should take."""

    began_ms: float
    rows: int
    cost_ms: float


class PacedCloud(RecordedCloud):
    """A recording that takes as long as `costs` says."""

    def __init__(self, recording: Recording, costs: CloudCosts) -> None:
        super().__init__(recording)
        self._costs = costs
        self.codec_called = lambda _: recording.codec
        self.passes: list[Pass] = []

    def score(self, requests: Sequence[ScoreRequest]) -> list[Any]:
        """As `RecordedCloud`, after the modelled time of the whole pass."""
        began = time.monotonic()
        results = super().score(requests)
        load = Load(
            rows=len(requests),
            tokens=max(len(request.tokens) for request in requests),
            past=max(request.keep for request in requests),
        )
        cost_ms = self._costs.ms(load)
        self.passes.append(Pass(began * 1e3, load.rows, cost_ms))
        left = began + cost_ms / 1e3 - time.monotonic()
        if left > 0:
            time.sleep(left)
        return results


@dataclass(frozen=True, slots=True)
class Served:
    """Where the server listens."""

    host: str
    port: int
    _line: Connection

    def passes(self) -> list[Pass]:
        """Forward passes since the last call."""
        self._line.send("passes")
        done: list[Pass] = self._line.recv()
        return done


@contextmanager
def served(recording: Recording, costs: CloudCosts) -> Iterator[Served]:
    """A server that gives `recording`'s answers at the pace of `costs`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(recording, costs, theirs), daemon=True)
    process.start()
    try:
        host, port = ours.recv()
        yield Served(host, port, ours)
    finally:
        ours.send("stop")
        process.join()


def _serve(recording: Recording, costs: CloudCosts, line: Connection) -> None:
    model = PacedCloud(recording, costs)
    with running(model) as server:
        line.send((server.host, server.port))
        while line.recv() != "stop":
            done, model.passes = model.passes, []
            line.send(done)
