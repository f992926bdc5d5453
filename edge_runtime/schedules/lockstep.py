"""Lockstep: one round trip a token, as in the paper (CoSteer, arXiv 2507.04756, Algorithm 1).

    device   Open ───────────────▶                Extend(y0) ─▶              Extend(y1) ─▶
             prefill                steer → y0    step(y0)      steer → y1   step(y1)
    cloud             prefill ─▶ Candidates(0)        score ─▶ Candidates(1)     ...

The device's own step runs while its token is on the way, so a token costs
max(step, round trip + cloud) + head + steer.
"""

from __future__ import annotations

from edge_runtime.policy import Device
from edge_runtime.schedules.actions import Moves, Schedule
from edge_runtime.schedules.answer import Answer
from edge_runtime.schedules.deadlines import Deadline
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.gates import Gate


def lockstep(
    device: Device,
    request: Request,
    *,
    gate: Gate | None = None,
    deadline: Deadline | None = None,
) -> Schedule:
    """Emit at most `request.max_tokens` tokens, asking the cloud for one prediction each."""
    answer = Answer(device, request, gate or Gate(), deadline or Deadline())
    yield from answer.cloud.open("step")
    yield from answer.prefill()
    yield from ask_each(answer)
    return (yield from answer.finish())


def ask_each(answer: Answer) -> Moves:
    """A round trip for each token to come."""
    ended = answer.ended
    while not ended:
        base = yield from answer.prediction()
        decision = yield from answer.decide(base)
        yield answer.emit(decision)
        ended = answer.ended
        if ended:
            break
        if base is not None:
            yield from answer.cloud.extend()
        yield from answer.keep_up()
