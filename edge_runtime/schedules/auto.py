"""Auto: run ahead for a while, measure, then go on with whatever is predicted to be fastest.

Milliseconds a token, with r the round trip, c the cloud's pass, d the device's work (step, head,
rule), a the share of tokens on which the two agree, h the share of divergences whose continuation
is here already, q the share of drafts kept, and w wasted cloud tokens at the price p ms each:

    lockstep      r + c + d'                                  d': head and rule, the step overlaps
    run-ahead     max(c, d) + (1 - a)(1 - h)(r + c) + p w
    draft n       (n d + r + c + kept d' + p w) / kept        kept = (1 - q^(n+1)) / (1 - q)

Measured are r (best exchange), c (stamps of the frames), d and a (this answer so far); h by
branches is from the table in docs/schedules.md, and q is a guess until drafts have been tried.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.policy import Device
from edge_runtime.schedules.actions import Schedule
from edge_runtime.schedules.answer import Answer
from edge_runtime.schedules.deadlines import Deadline
from edge_runtime.schedules.draft import Drafter, guess_and_check
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.gates import Gate
from edge_runtime.schedules.lockstep import ask_each
from edge_runtime.schedules.runahead import follow

PROBE_TOKENS = 24
"""Tokens of run-ahead before the choice: enough to meet a divergence or two."""
FOUND = {1: 0.0, 2: 0.4, 4: 0.65, 8: 0.8}
"""Share of divergences whose continuation was predicted ahead, by branches."""
DRAFTS_KEPT = 0.5
STEP = 0.75
"""The decoder's share of the device's work for a token; head and rule are the rest."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What was measured; times in ms."""

    round_trip_ms: float
    cloud_ms: float
    device_ms: float
    agreement: float
    price_ms: float = 0.5
    """What a cloud token computed in vain is worth in waiting."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A schedule, its number, and the milliseconds a token that speak for it."""

    name: str
    number: int
    ms: float

    def __str__(self) -> str:
        """As in the note."""
        numbers = {"runahead": f", branches {self.number}", "draft": f", {self.number} at a time"}
        return f"{self.name}{numbers.get(self.name, '')} {self.ms:.1f} ms"


def choices(at: Conditions) -> list[Choice]:
    """Every schedule with its best number, the fastest first."""
    trip = at.round_trip_ms + at.cloud_ms
    pace = max(at.cloud_ms, at.device_ms, 1e-3)
    diverges = 1 - at.agreement

    def runahead(branches: int) -> float:
        ahead = min(64.0, at.round_trip_ms / pace + 1)
        wasted = (branches - 1) + diverges * ahead
        return pace + diverges * (1 - FOUND[branches]) * trip + at.price_ms * wasted

    def draft(n: int) -> float:
        kept = (1 - DRAFTS_KEPT ** (n + 1)) / (1 - DRAFTS_KEPT)
        check = max(trip, STEP * at.device_ms) + (1 - STEP) * at.device_ms * kept
        return (n * at.device_ms + check + at.price_ms * (n + 1 - kept)) / kept

    ahead = min(FOUND, key=runahead)
    drafts = min(range(1, 9), key=draft)
    found = [
        Choice("lockstep", 0, max(STEP * at.device_ms, trip) + (1 - STEP) * at.device_ms),
        Choice("runahead", ahead, runahead(ahead)),
        Choice("draft", drafts, draft(drafts)),
    ]
    return sorted(found, key=lambda choice: choice.ms)


def auto(
    device: Device,
    request: Request,
    *,
    price_ms: float = 0.5,
    gate: Gate | None = None,
    deadline: Deadline | None = None,
) -> Schedule:
    """Emit at most `request.max_tokens` tokens; the transcript's notes say what was chosen and why.

    `price_ms`: how long the user would wait to spare the cloud one token.
    """
    answer = Answer(device, request, gate or Gate(), deadline or Deadline())
    probing = 4
    yield from answer.cloud.open("stream", branches=probing)
    yield from answer.prefill()
    yield from follow(answer, 0, probing, until=PROBE_TOKENS)
    if not answer.ended:
        at = Conditions(
            answer.cloud.pace.round_trip_ms,
            answer.cloud.pace.cloud_ms,
            answer.deadline.device_ms,
            1 - answer.counters["divergences"] / answer.position,
            price_ms,
        )
        ranked = choices(at)
        if answer.gate.name != "none" or answer.deadline.on_late != "wait":
            ranked = [choice for choice in ranked if choice.name != "draft"]
        chosen, *others = ranked
        answer.notes.append(
            f"auto: {chosen} a token (instead of {', '.join(map(str, others))}): round trip "
            f"{at.round_trip_ms:.0f} ms, cloud {at.cloud_ms:.1f} ms, device {at.device_ms:.1f} ms, "
            f"agreement {at.agreement:.0%} over {answer.position} tokens, "
            f"{price_ms:g} ms a wasted cloud token"
        )
        if chosen.name == "lockstep":
            yield from answer.cloud.open("step")
            yield from ask_each(answer)
        elif chosen.name == "draft":
            yield from answer.cloud.open("score")
            yield from guess_and_check(answer, Drafter())
        else:
            if chosen.number != probing:
                yield from answer.cloud.open("stream", branches=chosen.number)
            yield from follow(answer, 0, chosen.number)
    else:
        answer.notes.append("auto: runahead throughout: the answer ended before there was a choice")
    return (yield from answer.finish())
