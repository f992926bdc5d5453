"""The virtual-time driver: runs a schedule and a cloud session over simulated links, in SimPy.

The schedule and the session are the generators that run over real sockets too; their work is
really done (by the models, a tape or a fake) and the simulated clock is charged what the cost
models say it would take. Only modelled time counts: how long the work takes here does not matter.

    device process ── Send ──▶ Stream(uplink) ──▶ inbox of the cloud ── Compute ──▶ engine
                   ◀── inbox ── Stream(downlink) ◀── Send ── cloud process

Any number of `Exchange`s may share one clock and one engine (`cloud_sim.sim.fleet`); `simulate`
runs one alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import simpy

from cloud_sim.net.links import Link
from cloud_sim.net.transport import TCP, Stream, Transport
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.engine import Engine, OwnGpu
from cloud_sim.sim.waiting import Inbox, Process, SimTimers
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

STAMP_BYTES = len(Stamp().pack())
"""What a stamp adds to a frame: both have the same two bytes of MessagePack before them."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What a transcript is called by."""

    method: str = ""
    gain: float = 0.0
    schedule: str = ""
    codec: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """What a real driver and server take for themselves: threads, event loops, system calls."""

    token_ms: float = 0.0
    """Per frame that was waited for."""
    connect_ms: float = 0.0
    """Per connection."""


NO_HOST = Host()


def simulate(
    schedule: Schedule,
    session: Session,
    *,
    uplink: Link,
    downlink: Link,
    device_costs: DeviceCosts,
    cloud_costs: CloudCosts,
    transport: Transport = TCP,
    labels: Labels = Labels(),
    pad_to: int = 0,
    connect: bool = False,
) -> Transcript:
    """One answer in virtual time, with the cloud to itself.

    Parameters
    ----------
    schedule, session : the two halves, not started.
    uplink, downlink : fresh links; their random streams carry the seed (`profiles.Network.links`).
    connect : whether the connection is still to be set up (its round trips count towards the time
        to first token) or is there already.

    Raises what the schedule or the session raises, and `ConnectionFailed` if both wait for ever.

    """
    env = simpy.Environment()
    exchange = Exchange(
        env,
        schedule,
        session,
        uplink=uplink,
        downlink=downlink,
        device_costs=device_costs,
        engine=OwnGpu(env, cloud_costs),
        transport=transport,
        labels=labels,
        pad_to=pad_to,
        connect=connect,
    )
    env.process(exchange.device())
    env.run()
    return exchange.result()


class Exchange:
    """One device, its session in the cloud, and the two streams between them."""

    def __init__(
        self,
        env: simpy.Environment,
        schedule: Schedule,
        session: Session,
        *,
        uplink: Link,
        downlink: Link,
        device_costs: DeviceCosts,
        engine: Engine,
        transport: Transport = TCP,
        labels: Labels = Labels(),
        pad_to: int = 0,
        connect: bool = False,
        host: Host = NO_HOST,
    ) -> None:
        timers = SimTimers(env)
        self._env = env
        self._schedule, self._session = schedule, session
        self._up = Stream(uplink, downlink, transport, timers, masked=True)
        self._down = Stream(downlink, uplink, transport, timers)
        self._transport = transport
        self._costs, self._engine = device_costs, engine
        self._pad_to, self._connect = pad_to, connect
        self._host = host
        self._device_inbox, self._cloud_inbox = Inbox(env), Inbox(env)
        self._error: Exception | None = None
        self.transcript = Transcript(
            labels.method, labels.gain, labels.schedule, labels.codec, virtual=True
        )

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

    def device(self) -> Process:
        """The device's half, as a SimPy process; it starts the cloud's."""
        # SimPy builds a failed process's exception anew from its arguments, which ours do not
        # survive: errors are kept here and raised by `result`.
        try:
            yield from self._device()
        except Exception as error:
            self._error = self._error or error
            self._session.close()

    def _device(self) -> Process:
        env, transcript, inbox = self._env, self.transcript, self._device_inbox
        schedule, costs = self._schedule, self._costs
        start_ms = env.now
        clock = TokenClock(start_ms, ClockOffset(0.0))
        if self._connect:
            yield from self._set_up()
            yield env.timeout(self._host.connect_ms)
            transcript.counters["connect_ms"] = env.now - start_ms
            clock.waited(env.now - start_ms)
        env.process(self._cloud())
        asked = False
        reply: Any = None
        # Work is charged when the clock next matters: one event for a head, a step and a steer.
        ahead = 0.0
        while True:
            try:
                action = schedule.send(reply)
            except StopIteration as stop:
                self._finish(stop.value)
                break
            if isinstance(action, Compute):
                reply = action.work()
                spent = costs.ms(action.kind, action.load)
                ahead += spent
                clock.computed(action.kind, spent)
                continue
            if isinstance(action, Emit):
                now_ms = env.now + ahead
                record = TokenRecord(
                    action.token, now_ms - start_ms, clock.emit(now_ms), action.decision
                )
                transcript.records.append(record)
                reply = None
                continue
            if ahead > 0:
                yield env.timeout(ahead)
                ahead = 0.0
            if isinstance(action, Receive):
                began = env.now
                if not inbox.frames and action.deadline_ms != 0:
                    yield from inbox.wait(action.deadline_ms)
                if not inbox.frames:
                    clock.waited(env.now - began)
                    reply = Timeout(env.now)
                    continue
                (frame, stamp), arrived = inbox.frames.popleft()
                clock.received(began, env.now, arrived, stamp)
                if env.now > began:
                    ahead = (
                        self._host.token_ms
                    )  # nothing claims it, so the clock calls it the host's
                if asked and env.now > began:
                    transcript.round_trips += 1
                asked = False
                reply = Arrival(frame, arrived)
            else:
                reply = env.now
                asked = self._send_up(action.frame, clock) or asked

    def _send_up(self, frame: wire.Frame, clock: TokenClock) -> bool:
        """Onto the uplink; whether the frame asks for an answer."""
        now_ms, inbox = self._env.now, self._cloud_inbox
        size = len(wire.encode(frame, self._pad_to))
        self.transcript.uplink_bytes += size
        self.transcript.uplink_frames += 1
        self._up.send(now_ms, size, lambda: inbox.put(frame))
        asks = isinstance(frame, wire.Open | wire.Extend)
        if asks:
            clock.sent(now_ms)
        return asks

    def _cloud(self) -> Process:
        """The cloud's half, as a SimPy process."""
        env, inbox, engine, session = self._env, self._cloud_inbox, self._engine, self._session
        received_ms = queue_ms = compute_ms = 0.0
        reply: Any = None
        try:
            while True:
                action = session.send(reply)
                if isinstance(action, Compute):
                    reply = action.work()
                    queued, computed = yield from engine.score(self, action.load)
                    queue_ms += queued
                    compute_ms += computed
                elif isinstance(action, Receive):
                    if not inbox.frames and action.deadline_ms != 0:
                        yield from inbox.wait(action.deadline_ms)
                    if inbox.frames:
                        frame, received_ms = inbox.frames.popleft()
                        reply = Arrival(frame, received_ms)
                    else:
                        reply = Timeout(env.now)
                elif isinstance(action, Send):
                    reply = env.now
                    stamp = Stamp(
                        received_us=round(received_ms * 1e3),
                        queue_us=round(queue_ms * 1e3),
                        compute_us=round(compute_ms * 1e3),
                        sent_us=round(env.now * 1e3),
                    )
                    queue_ms = compute_ms = 0.0
                    self._send_down(cast(wire.Down, action.frame), stamp)
        except StopIteration:
            pass
        except Exception as error:
            self._error = self._error or error
        finally:
            engine.leave(self)

    def _send_down(self, frame: wire.Down, stamp: Stamp) -> None:
        """Onto the downlink. The stamp travels beside the frame: its size does not depend on it."""
        size = len(wire.encode(frame))
        if not isinstance(frame, wire.Refusal):
            size += STAMP_BYTES
        if self._pad_to > 1:
            size += -size % self._pad_to
        self._down.send(self._env.now, size, lambda: self._arrive(frame, stamp, size))

    def _arrive(self, frame: wire.Down, stamp: Stamp, size: int) -> None:
        transcript = self.transcript
        if not transcript.finish:
            transcript.downlink_bytes += size
            transcript.downlink_frames += 1
        self._device_inbox.put((frame, stamp))

    def _set_up(self) -> Process:
        """The transport's exchanges before the first message, over the same links."""
        for up, down in self._transport.setup:
            for stream, size in ((self._up, up), (self._down, down)):
                arrived = simpy.Event(self._env)
                stream.send_bytes(self._env.now, size, arrived.succeed)
                yield arrived

    def _finish(self, finish: Finish) -> None:
        """What the schedule and the streams counted."""
        transcript = self.transcript
        transcript.finish = finish.reason
        transcript.counters.update(finish.counters)
        transcript.notes.extend(finish.notes)
        # A schedule that counts its own round trips knows better which waits were one.
        counted = transcript.counters.pop("round_trips", transcript.round_trips)
        transcript.round_trips = int(counted)
        streams = (self._up, self._down)
        transcript.transport_bytes = sum(s.link.sent_bytes - s.payload_bytes for s in streams)
        transcript.counters["retransmissions"] = sum(s.retransmissions for s in streams)
