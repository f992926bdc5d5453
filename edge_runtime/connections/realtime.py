"""Drive a schedule in real time over any line that carries frames.

The schedule's work runs in a thread of its own, so the line keeps moving meanwhile. What a line is
(a WebSocket to our server, a completions stream of another) is behind `Line`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from edge_runtime import wire
from edge_runtime.schedules.actions import (
    Arrival,
    Compute,
    Emit,
    Finish,
    Receive,
    Reconnected,
    Schedule,
    Send,
    Timeout,
)
from edge_runtime.timing import TokenClock, now_ms
from edge_runtime.transcript import TokenRecord, Transcript


@dataclass(frozen=True, slots=True)
class Delivery:
    """A frame that came down, its size on the line, and when it was complete."""

    frame: wire.Down
    size_bytes: int
    arrived_ms: float


async def told(news: asyncio.Event, within_ms: float | None) -> bool:
    """Wait for `news`; False if there is none `within_ms` (None: however long it takes).

    A span, not a point in time: phone and cloud each have a clock, and only their owners read them.
    """
    if within_ms is not None and within_ms <= 0:
        return False
    news.clear()
    try:
        async with asyncio.timeout(None if within_ms is None else within_ms / 1e3):
            await news.wait()
    except TimeoutError:
        return False
    return True


def given_up(failure: Exception, deadline_ms: float | None, notes: list[str]) -> Timeout:
    """What a line says on which nothing will come any more: `failure` is raised only for who cannot
    do without. To others everything is late; `notes` say so once."""
    if deadline_ms is None:
        raise failure
    note = f"the rest of the answer is without the cloud: {failure}"
    if deadline_ms > 0 and note not in notes:
        notes.append(note)
    return Timeout(now_ms())


class Line(Protocol):
    """A connection to a cloud."""

    notes: list[str]
    """What a user should know about this line."""

    async def open(self) -> None:
        """Connect. Raises `ConnectionFailed`."""
        ...

    async def send(self, frame: wire.Frame) -> int:
        """Hand over an uplink frame; the bytes it took."""
        ...

    async def receive(self, deadline_ms: float | None) -> Delivery | Timeout | Reconnected:
        """The next frame; `Timeout` after `deadline_ms`; `Reconnected` after a loss.

        Raises `ConnectionFailed` or `Refused` when none will ever come (see `given_up`).
        """
        ...

    async def close(self) -> None:
        """Let go."""
        ...


async def drive(
    schedule: Schedule,
    line: Line,
    *,
    on_token: Callable[[TokenRecord], None] | None = None,
    method: str = "",
    gain: float = 0.0,
    into: Transcript | None = None,
) -> Transcript:
    """Run `schedule` over `line` to its end; `on_token` sees each token when it is final.

    `into` (with its own method and gain) is filled as the answer comes, so that whoever gave it
    still has what was emitted when the line fails.
    """
    transcript = into if into is not None else Transcript(method, gain, "", "")
    transcript.schedule = getattr(schedule, "__name__", "")
    driver = _Driver(schedule, line, transcript, on_token)
    try:
        await line.open()
        finish = await driver.run()
    finally:
        schedule.close()
        await line.close()
        driver.stop()
        transcript.notes.extend(line.notes)
    transcript.end(finish)
    return transcript


class _Driver:
    """The loop over a schedule's actions, and the record of what they cost."""

    def __init__(
        self,
        schedule: Schedule,
        line: Line,
        transcript: Transcript,
        on_token: Callable[[TokenRecord], None] | None,
    ) -> None:
        self._schedule, self._line, self._transcript = schedule, line, transcript
        self._on_token = on_token
        self._worker = ThreadPoolExecutor(1, "costeer-device")
        self._start_ms = now_ms()
        self._clock = TokenClock(self._start_ms)
        self._asked = False

    async def run(self) -> Finish:
        event: Any = None
        while True:
            try:
                action = self._schedule.send(event)
            except StopIteration as stop:
                finish: Finish = stop.value
                return finish
            if isinstance(action, Compute):
                event = await self._compute(action)
            elif isinstance(action, Send):
                event = await self._send(action.frame)
            elif isinstance(action, Receive):
                event = await self._receive(action.deadline_ms)
            else:
                self._emit(action)
                event = None

    def stop(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _compute(self, action: Compute) -> Any:
        began = now_ms()
        result = await asyncio.get_running_loop().run_in_executor(self._worker, action.work)
        self._clock.computed(action.kind, now_ms() - began)
        return result

    async def _send(self, frame: wire.Frame) -> float:
        now = now_ms()
        if isinstance(frame, wire.Asks):
            self._clock.sent(now)
            self._asked = True
        if isinstance(frame, wire.Open):
            self._transcript.codec = frame.codec
        self._transcript.uplink_bytes += await self._line.send(frame)
        self._transcript.uplink_frames += 1
        return now

    async def _receive(self, deadline_ms: float | None) -> Arrival | Timeout | Reconnected:
        began = now_ms()
        event = await self._line.receive(deadline_ms)
        if not isinstance(event, Delivery):
            self._clock.waited(event.now_ms - began)
            return event
        now = now_ms()
        if self._asked and event.arrived_ms > began:
            self._transcript.round_trips += 1
        self._asked = False
        self._transcript.downlink_bytes += event.size_bytes
        self._transcript.downlink_frames += 1
        frame = event.frame
        stamp = wire.Stamp() if isinstance(frame, wire.Refusal) else wire.Stamp.unpack(frame.stamp)
        self._clock.received(began, now, event.arrived_ms, stamp)
        return Arrival(frame, event.arrived_ms)

    def _emit(self, action: Emit) -> None:
        now = now_ms()
        parts = self._clock.emit(now)
        record = TokenRecord(action.token, now - self._start_ms, parts, action.decision)
        self._transcript.records.append(record)
        if self._on_token is not None:
            self._on_token(record)
