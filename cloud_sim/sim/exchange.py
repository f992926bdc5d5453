"""One device, its session in the cloud, and the two streams between them, in virtual time.

    device process ── Send ──▶ Stream(uplink) ──▶ inbox of the cloud ── Compute ──▶ engine
                   ◀── inbox ── Stream(downlink) ◀── Send ── cloud process

Each process moves one generator, the schedule or the session, and charges the clock what the cost
models say. Any number of `Exchange`s may share one clock and one engine (`cloud_sim.sim.fleet`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cloud_sim.net.links import Link
from cloud_sim.net.sender import Stream
from cloud_sim.net.transport import TCP, Transport
from cloud_sim.sim.costs import DeviceCosts
from cloud_sim.sim.engine import Engine
from cloud_sim.sim.waiting import Clock, Inbox, Moves, Process
from edge_runtime import wire
from edge_runtime.errors import ConnectionFailed
from edge_runtime.schedules.actions import (
    Arrival,
    Compute,
    Emit,
    Finish,
    Receive,
    Schedule,
    Send,
    Session,
    Timeout,
)
from edge_runtime.timing import ClockOffset, TokenClock
from edge_runtime.transcript import TokenRecord, Transcript
from edge_runtime.wire import Stamp


@dataclass(frozen=True, slots=True)
class Labels:
    """What a transcript is called by."""

    method: str = ""
    gain: float = 0.0
    schedule: str = ""
    codec: str = ""


UNLABELLED = Labels()


@dataclass(frozen=True, slots=True)
class Host:
    """What a real driver and server take for themselves: threads, event loops, system calls."""

    token_ms: float = 0.0
    """Per frame that was waited for."""
    frame_ms: float = 0.0
    """Per frame that came down, waited for or not."""
    connect_ms: float = 0.0
    """Per connection."""


NO_HOST = Host()


class Exchange:
    """One device, its session in the cloud, and the two streams between them."""

    def __init__(
        self,
        clock: Clock,
        schedule: Schedule,
        session: Session,
        *,
        uplink: Link,
        downlink: Link,
        device_costs: DeviceCosts,
        engine: Engine,
        transport: Transport = TCP,
        labels: Labels = UNLABELLED,
        pad_to: int = 0,
        connect: bool = False,
        host: Host = NO_HOST,
    ) -> None:
        self._clock = clock
        self._schedule, self._session = schedule, session
        self._up = Stream(uplink, downlink, transport, clock, masked=True)
        self._down = Stream(downlink, uplink, transport, clock)
        if not connect:
            self._up.opened()
            self._down.opened()
        self._transport = transport
        self._costs, self._engine = device_costs, engine
        self._pad_to, self._connect = pad_to, connect
        self._host = host
        self._device_inbox, self._cloud_inbox = Inbox(clock), Inbox(clock)
        self._device = Process(self._device_moves(), self._device_ended)
        self._cloud = Process(self._cloud_moves(), self._cloud_ended)
        self._done: Callable[[], Any] | None = None
        self._error: Exception | None = None
        self.transcript = Transcript(
            labels.method, labels.gain, labels.schedule, labels.codec, virtual=True
        )

    def start(self, done: Callable[[], Any] | None = None) -> None:
        """Begin now; `done` is called when the device's half has ended, one way or the other."""
        self._done = done
        self._cloud.go_on()
        self._device.go_on()

    def result(self) -> Transcript:
        """The transcript, when the clock has run out.

        Raises what the schedule or the session raised, and `ConnectionFailed` if both still wait.
        """
        if self._error is not None:
            raise self._error
        if not self.transcript.finish:
            raise ConnectionFailed(
                "simulation",
                f"both sides wait for each other after {len(self.transcript.records)} tokens",
                todo="This is a fault of the schedule or the session, not of the scenario",
            )
        return self.transcript

    # --- the device's half ---

    def _device_moves(self) -> Moves:
        clock, transcript, inbox = self._clock, self.transcript, self._device_inbox
        frames, records, go_on = inbox.frames, transcript.records, self._device.go_on
        move, cost_ms, host = self._schedule.send, self._costs.ms, self._host
        # Read anew after each wait: in between no time goes by.
        now_ms = start_ms = clock.now
        parts = TokenClock(start_ms, ClockOffset(0.0))
        if self._connect:
            yield from self._set_up(go_on)
            now_ms = clock.now
            transcript.counters["connect_ms"] = now_ms - start_ms
            parts.waited(now_ms - start_ms)
        asked = False
        action: Any
        reply: Any = None
        # Work is charged when the clock next matters: one wait for a head, a step and a steer.
        ahead = 0.0
        while True:
            try:
                action = move(reply)
            except StopIteration as stop:
                self._finish(stop.value)
                return
            kind = type(action)
            if kind is Compute:
                reply = action.work()
                spent = cost_ms(action.kind, action.load)
                ahead += spent
                parts.computed(action.kind, spent)
                continue
            if kind is Emit:
                at_ms = now_ms + ahead
                records.append(
                    TokenRecord(action.token, at_ms - start_ms, parts.emit(at_ms), action.decision)
                )
                reply = None
                continue
            if ahead > 0:
                if not clock.skip(ahead):
                    clock.after(ahead, go_on)
                    yield
                ahead, now_ms = 0.0, clock.now
            if kind is Send:
                reply = now_ms
                frame = action.frame
                self._send_up(frame, now_ms)
                if isinstance(frame, wire.Asks):
                    parts.sent(now_ms)
                    asked = True
                continue
            began = now_ms
            if not frames and action.deadline_ms != 0:
                inbox.wait(go_on, action.deadline_ms)
                yield
                now_ms = clock.now
            if not frames:
                if now_ms > began:
                    parts.waited(now_ms - began)
                reply = Timeout(now_ms)
                continue
            (frame, stamp), arrived = frames.popleft()
            parts.received(began, now_ms, arrived, stamp)
            # Nothing claims the host's time, so the token's clock calls it the host's.
            ahead = host.frame_ms
            if now_ms > began:
                ahead += host.token_ms
                transcript.round_trips += asked
            asked = False
            reply = Arrival(frame, arrived)

    def _device_ended(self, error: Exception | None) -> None:
        if error is not None:
            self._error = self._error or error
            self._session.close()
        done, self._done = self._done, None
        if done is not None:
            done()

    def _send_up(self, frame: wire.Frame, now_ms: float) -> None:
        """Onto the uplink."""
        transcript, size = self.transcript, wire.size(frame, self._pad_to)
        transcript.uplink_bytes += size
        transcript.uplink_frames += 1
        self._up.send(now_ms, size, partial(self._cloud_inbox.put, frame))

    def _set_up(self, go_on: Callable[[], Any]) -> Moves:
        """The transport's exchanges before the first message, over the same links."""
        for up, down in self._transport.setup:
            for stream, size in ((self._up, up), (self._down, down)):
                stream.send_bytes(self._clock.now, size, go_on)
                yield
        self._clock.after(self._host.connect_ms, go_on)
        yield

    def _finish(self, finish: Finish) -> None:
        """What the schedule and the streams counted."""
        transcript = self.transcript
        transcript.end(finish)
        streams = (self._up, self._down)
        transcript.transport_bytes = sum(s.link.sent_bytes - s.payload_bytes for s in streams)
        transcript.counters["retransmissions"] = sum(s.retransmissions for s in streams)

    # --- the cloud's half ---

    def _cloud_moves(self) -> Moves:
        clock, inbox, engine = self._clock, self._cloud_inbox, self._engine
        frames, go_on, move = inbox.frames, self._cloud.go_on, self._session.send
        received_ms = queue_ms = compute_ms = 0.0
        action: Any
        reply: Any = None
        while True:
            try:
                action = move(reply)
            except StopIteration:
                return
            kind = type(action)
            if kind is Receive:
                if not frames and action.deadline_ms != 0:
                    inbox.wait(go_on, action.deadline_ms)
                    yield
                if frames:
                    frame, received_ms = frames.popleft()
                    reply = Arrival(frame, received_ms, bool(frames))
                else:
                    reply = Timeout(clock.now)
            elif kind is Compute:
                reply = action.work()
                served = engine.score(self, action.load, go_on)
                if served is None:
                    served = yield
                queue_ms += served[0]
                compute_ms += served[1]
            elif kind is Send:
                reply = now_ms = clock.now
                stamp = Stamp(
                    round(received_ms * 1e3),
                    round(queue_ms * 1e3),
                    round(compute_ms * 1e3),
                    round(now_ms * 1e3),
                )
                queue_ms = compute_ms = 0.0
                self._send_down(action.frame, stamp, now_ms)

    def _cloud_ended(self, error: Exception | None) -> None:
        self._error = self._error or error
        self._engine.leave(self)

    def _send_down(self, frame: wire.Down, stamp: Stamp, now_ms: float) -> None:
        """Onto the downlink."""
        frame = wire.stamped(frame, stamp)
        size = wire.size(frame, self._pad_to)
        self._down.send(now_ms, size, partial(self._arrive, frame, stamp, size))

    def _arrive(self, frame: wire.Down, stamp: Stamp, size: int) -> None:
        transcript = self.transcript
        if not transcript.finish:
            transcript.downlink_bytes += size
            transcript.downlink_frames += 1
        self._device_inbox.put((frame, stamp))
