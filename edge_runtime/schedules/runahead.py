"""Run-ahead: the cloud does not wait, so a round trip is paid only where the two disagree.

The cloud goes on along its own best token (`*`) and streams its predictions (`C`) for positions
ahead, at most a window beyond what it was told; the device steers each one as it comes.

    cloud   C0* C1* C2* C3* C4* . C5* C6* ┐ C2' C3' C4' ...      ' : given y1, not its own best
              ╲   ╲   ╲   ╲              ╱    ╲
    device     y0=* y1≠* ────────────────      y2=*  y3=* ...
                     └ Extend(epoch 1, position 1, y1)

* They agree: nothing is said but, now and then, `Credit`, which moves the window up.
* They do not: `Extend` tells position and token under a new epoch. The cloud rolls back and goes on
  from there. What it had sent of the other way is dropped on arrival: such a prediction assumes
  tokens (`Candidates.after`) that are not the answer's.
* `branches` > 1: in each pass the cloud also follows the likeliest other continuations. A
  prediction that assumes just what the device chose is then often here already, or on its way,
  and the device goes on at once. It holds whichever epoch it was made in.

Only emitted tokens and their count ever go up, whatever the private context is.
"""

from __future__ import annotations

from edge_runtime.policy import Device
from edge_runtime.schedules.actions import Moves, Schedule
from edge_runtime.schedules.answer import Answer
from edge_runtime.schedules.deadlines import Deadline
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.gates import Gate

CREDIT_EVERY = 4
"""Agreed tokens between two credits where the cloud adapts the window."""


def runahead(
    device: Device,
    request: Request,
    *,
    window: int = 0,
    branches: int = 1,
    depth: int = 0,
    least_chance: float = 0.0,
    gate: Gate | None = None,
    deadline: Deadline | None = None,
) -> Schedule:
    """Emit at most `request.max_tokens` tokens: those of `lockstep`, sooner.

    `window`: positions the cloud may be ahead (0: it adapts to round trip and pace, which only it
    need know). `branches`: continuations followed at once; `depth`: how far a side branch is
    followed (0: as far as the window). Continuations of a chance below `least_chance` are not
    computed. Size of the frames and when they come say nothing that the tokens do not.
    """
    answer = Answer(device, request, gate or Gate(), deadline or Deadline())
    ahead = {"window": window, "branches": branches, "depth": depth, "least_chance": least_chance}
    yield from answer.cloud.open("stream", **ahead)
    yield from answer.prefill()
    yield from follow(answer, window, branches)
    return (yield from answer.finish())


def follow(answer: Answer, window: int, branches: int, until: int | None = None) -> Moves:
    """Steer what the cloud streams, to the end of the answer or to position `until`."""
    credit_every = max(1, min(CREDIT_EVERY, window // 2)) if window else CREDIT_EVERY
    if branches > 1:
        credit_every = 1  # so that the cloud soon drops side branches that the answer has passed
    while not answer.ended and (until is None or answer.position < until):
        base = yield from answer.prediction()
        decision = yield from answer.decide(base)
        yield answer.emit(decision)
        if answer.ended:
            break
        if base is not None and decision.token == base.best:
            yield from answer.cloud.agree()
            yield from answer.cloud.credit(credit_every)
        elif base is not None:
            yield from answer.cloud.extend()
        yield from answer.keep_up()
