"""Steering in the cloud instead: what it would cost to send the note's influence up.

The product steers on the device: candidates come down, and nothing that depends on the note goes
up but the chosen tokens. The other placement is here for comparison only, in virtual time, and no
such frame exists on the wire: the small model's delta D goes up, and the cloud adds it.

    codec `full`      D over the whole vocabulary goes up, 2 V bytes a token (fp16)
    codec `topk:K`    the ids of the K best come down (4 K bytes), D over these goes up (2 K bytes)

The tokens are the same: it is the same sum. The cloud's next pass begins as soon as a token is
chosen, while the token is on its way down to the small model.

What goes up is a function of the note and of nothing that protects it. `context_bits` counts it as
sent: a cloud with the same small model can confirm or rule out any note that it guesses from one
single delta, so no smaller bound holds.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import simpy

from cloud_sim.net.links import Link
from cloud_sim.net.sender import Stream
from cloud_sim.net.transport import Transport
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.waiting import Clock
from edge_runtime.errors import UsageError
from edge_runtime.schedules.actions import Load
from edge_runtime.timing import Parts
from edge_runtime.transcript import TokenRecord, Transcript

Steps = Generator[simpy.Event, Any, Any]
"""A SimPy process, or a part of one."""

FRAME_BYTES = 24
"""A frame without its payload, about: length, tag, epoch, position."""
ID_BYTES, VALUE_BYTES = 4, 2


@dataclass(frozen=True, slots=True)
class Sides:
    """Who computes, over what."""

    uplink: Link
    downlink: Link
    transport: Transport
    device: DeviceCosts
    cloud: CloudCosts
    vocabulary: int
    prompt_tokens: int
    """Of the longer private prompt."""


def delta_bytes(codec: str, vocabulary: int) -> tuple[int, int]:
    """Payload bytes a token: ids down, values up. Raises `UsageError` for another codec."""
    kind, _, count = codec.partition(":")
    if codec == "full":
        return 0, VALUE_BYTES * vocabulary
    if kind == "topk":
        return ID_BYTES * int(count), VALUE_BYTES * int(count)
    raise UsageError(
        "placement", "steering in the cloud has no such codec", got=codec, allowed="full, topk:K"
    )


def in_the_cloud(answer: Transcript, sides: Sides) -> Transcript:
    """The same tokens as `answer` (lockstep), steered in the cloud; virtual time.

    Raises `UsageError` for another schedule or codec.
    """
    if answer.schedule.partition(":")[0] != "lockstep":
        raise UsageError("placement", "steering in the cloud is a lockstep", got=answer.schedule)
    down, up = delta_bytes(answer.codec, sides.vocabulary)
    env = Clock()
    run = _Run(env, sides, down, up)
    result = replace(
        answer,
        records=[],
        uplink_bytes=0,
        downlink_bytes=0,
        counters={"context_bits": 8.0 * up * len(answer.records)},
        round_trips=len(answer.records),
        notes=[*answer.notes, "steered in the cloud: the note's influence was sent up"],
    )
    run.start(answer, result)
    env.run()
    result.uplink_bytes = run.up.payload_bytes
    result.downlink_bytes = run.down.payload_bytes
    return result


class _Run:
    def __init__(self, env: Clock, sides: Sides, down: int, up: int) -> None:
        self.env, self.sides = env, sides
        self.ids_bytes, self.delta_bytes = down, up
        self.up = Stream(sides.uplink, sides.downlink, sides.transport, env, masked=True)
        self.down = Stream(sides.downlink, sides.uplink, sides.transport, env)

    def answer(self, given: Transcript, result: Transcript) -> Steps:
        """Token after token; the parts are what the reader waited for, in order."""
        env, costs = self.env, self.sides.device
        candidates = self.ids_bytes // ID_BYTES or self.sides.vocabulary
        head = costs.ms("head", Load(rows=2, candidates=candidates))
        steer = costs.ms("steer", Load(rows=2, candidates=candidates))
        step = costs.ms("prefill", Load(rows=2, tokens=self.sides.prompt_tokens))
        for record in given.records:
            parts = Parts()
            parts.device += yield from self._wait(env.timeout(step))
            if self.ids_bytes:
                # The cloud's ids have to be there before the small model's head can be asked.
                parts.cloud += yield from self._wait(self._predicted)
                parts.downlink += yield from self._wait(self._ids)
            parts.device += yield from self._wait(env.timeout(head))
            delta = env.event()
            self.up.send(env.now, FRAME_BYTES + self.delta_bytes, delta.succeed)
            parts.uplink += yield from self._wait(delta)
            parts.cloud += yield from self._wait(self._predicted)
            parts.steer += yield from self._wait(env.timeout(steer))
            # Chosen: the cloud goes on, and the token goes down to reader and small model.
            token = env.event()
            self.down.send(env.now, FRAME_BYTES, token.succeed)
            self._predict()
            parts.downlink += yield from self._wait(token)
            result.records.append(TokenRecord(record.token, env.now, parts, record.decision))
            step = costs.ms("step", Load(rows=2, tokens=1, past=self.sides.prompt_tokens))

    def start(self, given: Transcript, result: Transcript) -> None:
        """Both sides begin with their prompts."""
        self._predict()
        self.env.process(self.answer(given, result))

    def _predict(self) -> None:
        self._predicted, self._ids = self.env.event(), self.env.event()
        self.env.process(self._pass(self._predicted, self._ids))

    def _pass(self, predicted: simpy.Event, ids: simpy.Event) -> Steps:
        """One forward pass of the cloud; then its candidates' ids go down, if they are wanted."""
        yield self.env.timeout(self.sides.cloud.ms(Load(rows=1, tokens=1)))
        predicted.succeed()
        if self.ids_bytes:
            self.down.send(self.env.now, FRAME_BYTES + self.ids_bytes, ids.succeed)

    def _wait(self, event: simpy.Event) -> Steps:
        """What waiting for `event` takes; nothing if it has happened."""
        began = self.env.now
        if not event.processed:
            yield event
        return self.env.now - began
