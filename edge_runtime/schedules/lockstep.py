"""Lockstep: one round trip a token, as in the paper (CoSteer, arXiv 2507.04756, Algorithm 1).

    device   Open ───────────────▶                Extend(y0) ─▶              Extend(y1) ─▶
             prefill                steer → y0    step(y0)      steer → y1   step(y1)
    cloud             prefill ─▶ Candidates(0)        score ─▶ Candidates(1)     ...

The device's own step runs while its token is on the way, so a token costs
max(step, round trip + cloud) + head + steer.
"""

from __future__ import annotations

from functools import partial

from edge_runtime import wire
from edge_runtime.policy import Device
from edge_runtime.schedules.actions import Compute, Emit, Finish, Schedule, Send
from edge_runtime.schedules.exchange import Request, expect, steer


def lockstep(device: Device, request: Request) -> Schedule:
    """Emit at most `request.max_tokens` tokens, asking the cloud for one prediction each."""
    yield Send(request.open("step"))
    yield Compute("prefill", device.prefill, device.load("prefill"))
    yield from expect(wire.Opened)
    for position in range(request.max_tokens):
        frame = yield from expect(wire.Candidates)
        decision = yield from steer(device, position, request.codec.decode(frame.payload))
        token = decision.token
        yield Emit(token, decision)
        if token in device.end_ids:
            break
        if position + 1 == request.max_tokens:
            yield Send(wire.Close())
            return Finish("length")
        yield Send(wire.Extend(epoch=0, position=position, tokens=(token,)))
        yield Compute("step", partial(device.extend, [token]), device.load("step", tokens=1))
    yield Send(wire.Close())
    return Finish("end")
