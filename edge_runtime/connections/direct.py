"""Drive a schedule and a cloud session against each other in memory: no socket, no waiting.

`run_direct` makes one answer. An `Exchange` stops whenever the cloud's model is asked, so that who
makes many answers at once can ask the model for all of them in one pass.

What it knows: the order in which things may happen. Each action takes one tick; a frame takes
`Faults.delay_ticks` ticks; when both sides wait, the clock jumps to the next event. Its times
mean nothing. With `Faults`, a seeded stream shuffles who moves next, delays, duplicates and
reorders frames, and cuts the connection, so that a test can visit orders that a socket hardly ever
shows. Every frame crosses as the bytes of `wire`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_runtime import wire
from edge_runtime.errors import ConnectionFailed
from edge_runtime.schedules.actions import (
    Arrival,
    Compute,
    Emit,
    Receive,
    Reconnected,
    Schedule,
    Send,
    Session,
    Timeout,
)
from edge_runtime.timing import ClockOffset, TokenClock
from edge_runtime.transcript import TokenRecord, Transcript


@dataclass(frozen=True, slots=True)
class Faults:
    """How badly the line behaves; all chances are per frame."""

    seed: int = 0
    delay_ticks: int = 0
    """A frame takes 0 to this many ticks, drawn anew for each."""
    reorder: bool = False
    """Frames may overtake each other, but not an `Open`; otherwise they arrive in order."""
    duplicate: float = 0.0
    """Chance that a frame arrives twice."""
    cut: float = 0.0
    """Chance that the connection breaks instead: that frame and all in flight are lost, and the
    device is `Reconnected` to a new session."""
    cut_at: frozenset[int] = frozenset()
    """Break exactly at these frames (counted from 0 over both directions)."""
    shuffle: bool = False
    """Who moves next is drawn at random; otherwise the two take turns."""


@dataclass(slots=True)
class Wiretap:
    """All messages that were sent, in order, as bytes."""

    up: list[bytes] = field(default_factory=list)
    down: list[bytes] = field(default_factory=list)


class _Side:
    """One generator, what it waits for, and what is on its way to it."""

    def __init__(self, generator: Generator[Any, Any, Any]) -> None:
        self.generator = generator
        self.inbox: deque[Any] = deque()
        self.in_flight: list[tuple[int, int, Any]] = []
        self.last_due = 0
        self.waiting: Receive | None = None
        self.deadline: float | None = None
        self.result: Any = None
        self.busy = False
        """At work for someone outside: see `Exchange.advance`."""
        self.done = False

    def deliver(self, now: int) -> None:
        while self.in_flight and self.in_flight[0][0] <= now:
            self.inbox.append(heapq.heappop(self.in_flight)[2])

    def can_move(self, now: int) -> bool:
        if self.done or self.busy:
            return False
        if self.waiting is None or self.inbox:
            return True
        return self.deadline is not None and now >= self.deadline

    def next_event(self) -> float:
        due = float(self.in_flight[0][0]) if self.in_flight else float("inf")
        return min(due, float("inf") if self.deadline is None else self.deadline)

    def cut(self) -> None:
        self.inbox.clear()
        self.in_flight.clear()


def run_direct(
    schedule: Schedule,
    session: Session | Callable[[], Session],
    *,
    faults: Faults = Faults(),
    tap: Wiretap | None = None,
    method: str = "",
    gain: float = 0.0,
    max_actions: int = 10_000_000,
) -> Transcript:
    """The answer of `schedule` against `session`, all in memory.

    Pass a function that makes sessions where the line may break: each reconnection begins a new
    one. `tap` collects the bytes of both directions. Raises what the schedule raises, and
    `ConnectionFailed` when both sides wait for each other for ever.
    """
    exchange = Exchange(
        schedule, session, faults=faults, tap=tap, method=method, gain=gain, max_actions=max_actions
    )
    exchange.advance(stop=False)
    return exchange.transcript


class Exchange:
    """One answer under way in memory (arguments: see `run_direct`)."""

    def __init__(
        self,
        schedule: Schedule,
        session: Session | Callable[[], Session],
        *,
        faults: Faults = Faults(),
        tap: Wiretap | None = None,
        method: str = "",
        gain: float = 0.0,
        max_actions: int = 10_000_000,
    ) -> None:
        self.make = session if callable(session) else None
        self.device = _Side(schedule)
        self.cloud = _Side(session() if callable(session) else session)
        self.faults = faults
        self.tap = tap or Wiretap()
        self.rng = np.random.default_rng(faults.seed)
        self.left = max_actions
        self.now = 0
        self.turn = 0
        self.frames = 0
        self.order = 0
        self.stop = False
        self.asked: Compute | None = None
        name = getattr(schedule, "__name__", "")
        self.clock = TokenClock(0.0, ClockOffset(0.0))
        self.transcript = Transcript(method, gain, name, "", virtual=True)

    def advance(self, stop: bool = True) -> Compute | None:
        """Move on until the cloud's model is asked and the device has nothing else to do.

        Returns what the model is asked: do it, `give` the result, and advance again. None: the
        answer is complete. Without `stop` the exchange does the cloud's work too.
        """
        self.stop = stop
        try:
            self._run()
        except BaseException:
            self.close()
            raise
        if self.asked is not None:
            return self.asked
        self.close()
        self.transcript.end(self.device.result)
        return None

    def give(self, result: Any) -> None:
        """The result of the work that `advance` returned."""
        self.asked, self.cloud.busy, self.cloud.result = None, False, result

    def close(self) -> None:
        """End both sides, wherever they are."""
        self.cloud.generator.close()
        self.device.generator.close()

    def _run(self) -> None:
        while not self.device.done:
            sides = (self.device, self.cloud)
            self.now += 1
            for side in sides:
                side.deliver(self.now)
            able = [side for side in sides if side.can_move(self.now)]
            if not able:
                if self.asked is not None:
                    return
                event = min(side.next_event() for side in sides if not side.done)
                if event == float("inf"):
                    raise ConnectionFailed("direct", "both sides wait for each other")
                self.now = max(self.now, int(np.ceil(event)) - 1)
                continue
            if self.faults.shuffle:
                side = able[int(self.rng.integers(len(able)))]
            else:
                side = able[self.turn % len(able)]
                self.turn += 1
            self.left -= 1
            if self.left < 0:
                raise ConnectionFailed("direct", "the answer does not come to an end")
            self._move(side)

    def _move(self, side: _Side) -> None:
        """Answer what `side` waits for, run it to its next action, and act on that."""
        event: Any = None
        if side.waiting is not None:
            if side.inbox:
                event = side.inbox.popleft()
                event = event if isinstance(event, Reconnected) else Arrival(event, self.now)
                if side is self.device:
                    self.clock.received(self.now, self.now, self.now, wire.Stamp())
            else:
                event = Timeout(self.now)
            side.waiting = side.deadline = None
        else:
            event, side.result = side.result, None
        try:
            action = side.generator.send(event)
        except StopIteration as stop:
            side.done, side.result = True, stop.value
            return
        self._act(side, action)

    def _act(self, side: _Side, action: Any) -> None:
        if isinstance(action, Compute):
            if self.stop and side is self.cloud:
                self.asked, side.busy = action, True
            else:
                side.result = action.work()
        elif isinstance(action, Receive):
            side.waiting = action
            if action.deadline_ms is not None:
                side.deadline = self.now + action.deadline_ms
        elif isinstance(action, Send):
            side.result = float(self.now)
            self._send(side, action.frame)
        elif isinstance(action, Emit):
            self.transcript.records.append(
                TokenRecord(action.token, self.now, self.clock.emit(self.now), action.decision)
            )

    def _send(self, side: _Side, frame: Any) -> None:
        message = wire.encode(frame)
        transcript = self.transcript
        if side is self.device:
            other: _Side = self.cloud
            decoded: wire.Frame = wire.decode_up(message)
            self.tap.up.append(message)
            transcript.uplink_bytes += len(message)
            transcript.uplink_frames += 1
            if isinstance(frame, wire.Open):
                transcript.codec = frame.codec
        else:
            other, decoded = self.device, wire.decode_down(message)
            self.tap.down.append(message)
            transcript.downlink_bytes += len(message)
            transcript.downlink_frames += 1
        if side is self.device and any(isinstance(event, Reconnected) for event in side.inbox):
            return  # it does not know yet that the line has changed: nobody hears this
        number, self.frames = self.frames, self.frames + 1
        chance = self.rng.random(3)
        if number in self.faults.cut_at or chance[0] < self.faults.cut:
            self._cut()
            return
        for _ in range(2 if chance[1] < self.faults.duplicate else 1):
            due = self.now + int(self.rng.integers(self.faults.delay_ticks + 1))
            if not self.faults.reorder or isinstance(frame, wire.Open):
                other.last_due = max(due, other.last_due)
            # No transport lets anything overtake the frame that opens a session.
            due = max(due, other.last_due)
            self.order += 1
            heapq.heappush(other.in_flight, (due, self.order, decoded))

    def _cut(self) -> None:
        if self.make is None:
            raise ConnectionFailed("direct", "a cut line needs a function that makes sessions")
        for side in (self.device, self.cloud):
            side.cut()
        self.cloud.generator.close()
        self.cloud = _Side(self.make())
        self.device.inbox.append(Reconnected(self.now))
