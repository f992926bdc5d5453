"""One answer under way: the moves that every schedule makes, whatever its order of making them.

    open ─▶ [ prediction ─▶ decide ─▶ emit ─▶ extend | credit ─▶ keep up ]* ─▶ finish

What is common to all lives here, so that a schedule shows only its own idea: gates, deadlines, the
small model's catching up, and the counters. What passes between device and cloud meanwhile, also
over a connection that comes back, is `dialogue.Dialogue`'s.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from edge_runtime.candidates import CandidateSet, draw
from edge_runtime.policy import Decision, Device
from edge_runtime.schedules.actions import (
    Action,
    Compute,
    Emit,
    Finish,
    Load,
    Moves,
    Receive,
    Timeout,
)
from edge_runtime.schedules.deadlines import Deadline
from edge_runtime.schedules.dialogue import Dialogue
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.gates import Gate

ANY_TIME, NOW = Receive(), Receive(0.0)


@dataclass(slots=True)
class Answer:
    """The state of one answer, and the generators that move it on."""

    device: Device
    request: Request
    gate: Gate = field(default_factory=Gate)
    deadline: Deadline = field(default_factory=Deadline)
    emitted: list[int] = field(default_factory=list)
    base: CandidateSet | None = None
    """The last prediction that held."""
    counters: dict[str, float] = field(init=False)
    notes: list[str] = field(default_factory=list)
    cloud: Dialogue = field(init=False)
    _in_hand_ms: float | None = None
    """When the prediction of the token that was steered last was in hand."""

    def __post_init__(self) -> None:
        self.counters = dict.fromkeys(
            ("round_trips", "divergences", "accepted", "gated", "late", "reconnections"), 0
        )
        self.cloud = Dialogue(self.request, self.emitted, self.counters)

    @property
    def position(self) -> int:
        """The next position: how many tokens have been emitted."""
        return len(self.emitted)

    @property
    def ended(self) -> bool:
        """Whether the last token ended the answer, or no more may follow."""
        emitted = self.emitted
        return bool(emitted) and (
            emitted[-1] in self.device.end_ids or len(emitted) >= self.request.max_tokens
        )

    def prefill(self) -> Moves:
        """Both prompts through the small model, while the cloud is at its own."""
        yield Compute("prefill", self.device.prefill, self.device.load("prefill"))

    # --- from the cloud ---

    def prediction(self) -> Generator[Action, Any, CandidateSet | None]:
        """The cloud's prediction for the next position; None if it misses the deadline.

        Raises `Refused` for a refusal, `ConnectionFailed` for a peer that is not who it was.
        """
        began_ms: float | None = None
        waited = False
        while True:
            event = yield NOW
            if isinstance(event, Timeout):
                if began_ms is None:
                    began_ms = event.now_ms
                    self._note_device_time(event.now_ms)
                found = self.cloud.found()
                if found is not None:
                    self.base = found
                    self._in_hand_ms = event.now_ms
                    return found
                left = self.deadline.left(began_ms, event.now_ms) if self.emitted else None
                if left is not None and (waited or left <= 0):
                    return None
                event = yield ANY_TIME if left is None else Receive(left)
                # Over is over, whatever a clock that was set back says.
                waited = isinstance(event, Timeout)
            moves = self.cloud.take(event)
            if moves is not None:
                yield from moves

    def now(self) -> Generator[Action, Any, float]:
        """The driver's clock, ms; takes in what has arrived."""
        while True:
            event = yield NOW
            if isinstance(event, Timeout):
                return event.now_ms
            moves = self.cloud.take(event)
            if moves is not None:
                yield from moves

    # --- on the device ---

    def decide(self, base: CandidateSet | None) -> Generator[Action, Any, Decision]:
        """The next token: steered, or the cloud's (gated, device too slow), or the device's own
        (`base` is None: the cloud is late)."""
        if base is None:
            return (yield from self._alone())
        position, device = len(self.emitted), self.device
        gated = not self.gate.steers(base)
        if gated or self.deadline.device_too_slow:
            self.counters["gated" if gated else "late"] += 1
            self._in_hand_ms = None
            self.deadline.skipped()
            decision: Decision = yield Compute(
                "steer",
                partial(device.choose, position, base, None),
                Load(candidates=len(base.ids)),
            )
            return replace(decision, source="cloud")
        if device.length < position:
            yield from self.catch_up()
        size = len(base.ids)
        scores = yield Compute(
            "head", partial(device.head, base), device.load("head", candidates=size)
        )
        decision = yield Compute(
            "steer", partial(device.choose, position, base, scores), Load(candidates=size)
        )
        return decision

    def _alone(self) -> Generator[Action, Any, Decision]:
        """The device's own token: it steers what the cloud last said of this position on another
        way of the answer, or takes the aware branch alone."""
        yield from self.catch_up()
        position, device = self.position, self.device
        base = self.cloud.predictions.nearest(position)
        own: CandidateSet = yield Compute(
            "head", partial(device.alone, position, base), device.load("head")
        )
        token = draw(own, device.uniform(position, "choose"))
        logprob = float(own.logprobs[own.ids == token][0])
        self.counters["late"] += 1
        self.cloud.untold = True
        nothing = float("nan")  # the cloud had no say, so there is no base to compare with
        return Decision(token, token, logprob, nothing, source="device")

    def catch_up(self) -> Moves:
        """Whatever the small model has not seen of the answer, as one chunk."""
        device = self.device
        missing = self.emitted[device.length :]
        if missing:
            yield Compute(
                "step", partial(device.extend, missing), device.load("step", tokens=len(missing))
            )

    def keep_up(self) -> Moves | tuple[()]:
        """The last token through the small model, unless the next will hardly be steered: it
        then has time to catch up later."""
        spared = self.gate.closed or self.deadline.device_too_slow
        return () if spared else self.catch_up()

    def _note_device_time(self, now_ms: float) -> None:
        if self._in_hand_ms is not None and self.emitted:
            self.deadline.steered(now_ms - self._in_hand_ms)
        self._in_hand_ms = None

    # --- out ---

    def emit(self, decision: Decision) -> Emit:
        """`decision.token` is final: what is to be yielded then."""
        self.emitted.append(decision.token)
        self.counters["divergences"] += decision.diverged
        self.cloud.predictions.forget_before(len(self.emitted))
        return Emit(decision.token, decision)

    def finish(self) -> Generator[Action, Any, Finish]:
        """Take leave of the cloud."""
        yield from self.cloud.close()
        ended = bool(self.emitted) and self.emitted[-1] in self.device.end_ids
        return Finish("end" if ended else "length", self.counters, tuple(self.notes))
