"""Draft: the device guesses several tokens, the cloud predicts after all of them in one pass.

    device   d0 d1 d2 ─ Extend(.. d0 d1 d2) ─▶            ┌ y0=d0  y1=d1  y2≠d2 ┐ d3' d4' ...
    cloud                    one pass over the drafts ─▶ Scores(0..3)           (y2 is kept)

The device steers each position in turn and keeps its drafts for as long as they are what steering
gives, plus one token more. For greedy decoding these are lockstep's tokens. For sampling, draft d,
drawn from q, is kept with probability min(1, p(d) / q(d)) under the steered policy p, and replaced
by a draw from max(p - q, 0) if not (Leviathan et al., arXiv 2211.17192): the distribution is
lockstep's, the numbers drawn are not.

Drafts that were not kept have told the cloud more than the answer does: `draft_bits` counts them,
each at log q(d) - log base(d), as the ledger counts emitted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from edge_runtime.candidates import CandidateSet, draw
from edge_runtime.errors import UsageError
from edge_runtime.policy import Decision, Device
from edge_runtime.schedules.actions import Action, Compute, Load, Moves, Schedule
from edge_runtime.schedules.answer import Answer
from edge_runtime.schedules.deadlines import Deadline
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.gates import Gate

MOST_DRAFTS = 16
REST = 8
"""Rounds without a draft before one is tried all the same: what spoke against it may be over."""
Source: TypeAlias = Literal["aware", "steered"]
"""Where drafts come from: the aware model alone, or the last known base plus its delta."""


@dataclass(slots=True)
class Drafter:
    """How many drafts, from which source: whatever has paid off so far.

    `fixed` > 0: always that many.
    """

    fixed: int = 0
    step_ms: float = 0.0
    wait_ms: float = 0.0
    _rested: int = 0
    """Rounds in a row for which no draft was the best number."""
    _tried: dict[Source, float] = field(default_factory=lambda: {"aware": 4.0, "steered": 4.0})
    _kept: dict[Source, float] = field(default_factory=lambda: {"aware": 2.5, "steered": 2.5})

    @property
    def source(self) -> Source:
        """The one whose drafts were kept more often."""
        return max(self._tried, key=lambda source: self._kept[source] / self._tried[source])

    def count(self) -> int:
        """The number of drafts with the most tokens per millisecond expected, for one round."""
        if self.fixed:
            return self.fixed
        kept = self._kept[self.source] / self._tried[self.source]
        wait, step = max(self.wait_ms, 1e-3), max(self.step_ms, 1e-3)

        def pace(n: int) -> float:
            return (1 - kept ** (n + 1)) / (1 - kept) / (wait + n * step)

        best = max(range(MOST_DRAFTS + 1), key=pace)
        self._rested = 0 if best else self._rested + 1
        return best or int(self._rested % REST == 0)

    def judged(self, source: Source, kept: bool) -> None:
        """One draft was kept, or was the first that was not."""
        self._tried[source] += 1
        self._kept[source] += kept


@dataclass(frozen=True, slots=True)
class Draft:
    """A guessed token and the distribution it was drawn from."""

    token: int
    drawn_from: CandidateSet


def draft(
    device: Device,
    request: Request,
    *,
    draft_tokens: int = 0,
    gate: Gate | None = None,
    deadline: Deadline | None = None,
) -> Schedule:
    """Emit at most `request.max_tokens` tokens, `draft_tokens` a round trip (0: it adapts).

    Raises `UsageError` for a gate and for a deadline: the device has run its passes before the
    cloud says how sure it is, and a draft that is late is of no use to anyone.
    """
    if gate is not None and gate.name != "none":
        raise UsageError(
            "gate",
            "drafts leave nothing for a gate to save",
            got=gate.name,
            allowed="none",
            todo="Use another schedule with gates",
        )
    if deadline is not None and deadline.on_late != "wait":
        raise UsageError(
            "on-late",
            "drafts wait for the cloud",
            got=deadline.on_late,
            allowed="wait",
            todo="Use another schedule with deadlines",
        )
    answer = Answer(device, request)
    yield from answer.cloud.open("score")
    yield from answer.prefill()
    yield from guess_and_check(answer, Drafter(draft_tokens))
    return (yield from answer.finish())


def guess_and_check(answer: Answer, drafter: Drafter) -> Moves:
    """Rounds of drafts to the end of the answer."""
    counters = answer.counters
    counters.update(drafted=0, accepted=0, draft_bits=0.0)
    while not answer.ended:
        yield from answer.catch_up()
        source, first = drafter.source, answer.position
        drafts = yield from _guess(answer, drafter, source)
        if drafts or answer.cloud.known < answer.position:
            yield from answer.cloud.extend(*(d.token for d in drafts))
        if drafts:  # while the cloud is at it: what follows the last draft
            yield from _extend(answer.device, drafts[-1].token)
        kept = yield from _check(answer, drafter, source, drafts)
        counters["drafted"] += len(drafts)
        counters["accepted"] += kept
        if answer.device.length > first + kept:
            answer.device.rollback(first + kept)
        drafter.wait_ms = answer.cloud.pace.wait_ms


def _guess(answer: Answer, drafter: Drafter, source: Source) -> Generator[Action, Any, list[Draft]]:
    """Drafts for the next positions; the device holds all of them but the last."""
    device, base, first = answer.device, answer.base, answer.position
    most = min(drafter.count(), answer.request.max_tokens - first - 1)
    drafts: list[Draft] = []
    began_ms = yield from answer.now()
    while len(drafts) < most:
        if drafts:
            yield from _extend(device, drafts[-1].token)
        position = first + len(drafts)
        known = base if source == "steered" else None
        own: CandidateSet = yield Compute(
            "head",
            partial(device.alone, position, known),
            device.load("head", candidates=len(known.ids) if known else 0),
        )
        token = draw(own, device.uniform(position, "draft"))
        drafts.append(Draft(token, own))
        if token in device.end_ids:
            break
    if drafts:
        drafter.step_ms = ((yield from answer.now()) - began_ms) / len(drafts)
    return drafts


def _check(
    answer: Answer, drafter: Drafter, source: Source, drafts: list[Draft]
) -> Generator[Action, Any, int]:
    """Emit drafts while they hold, and one token more; returns how many held."""
    line = answer.counters["reconnections"]
    for kept, guess in enumerate([*drafts, None]):
        base = yield from answer.prediction()
        assert base is not None, "drafts wait"
        decision = yield from _judge(answer, base, guess)
        held = guess is not None and decision.token == guess.token
        if not held:
            answer.counters["draft_bits"] += _told_in_vain(answer, drafts[kept:])
        yield answer.emit(decision)
        if guess is not None:
            drafter.judged(source, held)
        if not held:
            return kept
        if answer.ended or answer.counters["reconnections"] != line:
            return kept + 1
    return len(drafts)


def _judge(
    answer: Answer, base: CandidateSet, guess: Draft | None
) -> Generator[Action, Any, Decision]:
    """The token for the next position, by the accept-or-resample rule."""
    device, position, size = answer.device, answer.position, len(base.ids)
    scores = yield Compute(
        "head", partial(device.head, base, position), device.load("head", candidates=size)
    )

    def settle() -> Decision:
        if guess is None:
            return device.choose(position, base, scores)
        policy = device.policy(position, base, scores)
        token = accept_or_resample(
            policy,
            guess,
            device.uniform(position, "accept"),
            device.uniform(position, "resample"),
        )
        return device.choose(position, base, scores, token)

    decision: Decision = yield Compute("steer", settle, Load(candidates=size))
    return decision


def accept_or_resample(policy: CandidateSet, guess: Draft, accept: float, resample: float) -> int:
    """The draft if `accept` (in [0, 1)) is below p/q, else a draw from max(p - q, 0)."""
    p = _probability(policy, guess.token)
    q = _probability(guess.drawn_from, guess.token)
    if accept * q < p:
        return guess.token
    drawn_from = guess.drawn_from
    others = np.zeros(len(policy.ids))
    _, ours, theirs = np.intersect1d(
        policy.ids, drawn_from.ids, assume_unique=True, return_indices=True
    )
    others[ours] = np.exp(drawn_from.logprobs[theirs].astype(np.float64))
    rest = np.maximum(np.exp(policy.logprobs.astype(np.float64)) - others, 0)
    with np.errstate(divide="ignore"):
        logprobs = np.log(rest) - math.log(max(rest.sum(), 1e-300))
    return draw(CandidateSet(policy.ids, logprobs), resample)


def _probability(distribution: CandidateSet, token: int) -> float:
    at = np.flatnonzero(distribution.ids == token)
    return math.exp(float(distribution.logprobs[at[0]])) if len(at) else 0.0


def _told_in_vain(answer: Answer, drafts: list[Draft]) -> float:
    """Bits that drafts which were not kept tell a cloud that knows its own predictions."""
    bits, way = 0.0, list(answer.emitted)
    for guess in drafts:
        found = answer.cloud.predictions.find(way)
        if found is not None:
            base, _ = found
            told = _probability(base, guess.token) or max(base.left_out, 1e-12)
            own = max(_probability(guess.drawn_from, guess.token), 1e-12)
            bits += math.log2(own / told)
        way.append(guess.token)
    return bits


def _extend(device: Device, token: int) -> Moves:
    yield Compute("step", partial(device.extend, [token]), device.load("step", tokens=1))
