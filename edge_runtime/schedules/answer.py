"""One answer under way: the moves that every schedule makes, whatever its order of making them.

    open ─▶ [ prediction ─▶ decide ─▶ emit ─▶ extend | credit ]* ─▶ finish

What is common to all lives here, so that a schedule shows only its own idea: predictions that hold
(`exchange.Predictions`), gates, deadlines, the small model's catching up, a connection that comes
back, and the counters. `known` is how much of the answer the cloud can tell from what it was sent:
up to there by the frames, and on from there as long as each token is its own best.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from edge_runtime import wire
from edge_runtime.candidates import CandidateSet, draw
from edge_runtime.errors import ConnectionFailed
from edge_runtime.policy import Decision, Device
from edge_runtime.schedules.actions import (
    Action,
    Arrival,
    Compute,
    Emit,
    Finish,
    Load,
    Moves,
    Receive,
    Reconnected,
    Send,
    Timeout,
)
from edge_runtime.schedules.deadlines import Deadline
from edge_runtime.schedules.exchange import Predictions, Request, refused
from edge_runtime.schedules.gates import Gate
from edge_runtime.schedules.pace import Pace

ANY_TIME, NOW = Receive(), Receive(0.0)

GOODBYE_MS = 1000.0
"""How long the end of an answer waits for the cloud's account of what it computed."""


@dataclass(slots=True)
class Answer:
    """The state of one answer, and the generators that move it on."""

    device: Device
    request: Request
    gate: Gate = field(default_factory=Gate)
    deadline: Deadline = field(default_factory=Deadline)
    emitted: list[int] = field(default_factory=list)
    epoch: int = 0
    known: int = 0
    base: CandidateSet | None = None
    """The last prediction that held."""
    opened: wire.Opened | None = None
    predictions: Predictions = field(init=False)
    counters: dict[str, float] = field(init=False)
    notes: list[str] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)
    _opening: Callable[[], wire.Open] = field(init=False)
    _sent: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Tokens of the last two `Extend`s, by epoch; none for an `Open`."""
    _opened_in: int = 0
    """Epoch of the last `Open`."""
    _asked: bool = False
    """Something was sent that has not been waited for yet."""
    _untold: bool = False
    """Late tokens were emitted; the cloud is told when it is heard from again."""
    _in_hand_ms: float | None = None
    """When the prediction of the token that was steered last was in hand."""

    def __post_init__(self) -> None:
        self.predictions = Predictions(self.request.codec)
        self.counters = dict.fromkeys(
            ("round_trips", "divergences", "accepted", "gated", "late", "reconnections"), 0
        )

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

    # --- up ---

    def open(self, mode: wire.Mode, **more: Any) -> Moves:
        """Ask for the answer, or for the rest of it in another mode."""
        self._opening = lambda: self.request.open(
            mode,
            session=self.opened.session if self.opened else "",
            emitted=tuple(self.emitted),
            epoch=self.epoch,
            **more,
        )
        yield from self._reopen()

    def _reopen(self) -> Moves:
        self.known = self.position
        # Frames of the mode or the connection before can be told apart.
        self.epoch += bool(self.emitted)
        self._sent = {self.epoch: ()}
        self._opened_in = self.epoch
        self.predictions.clear()
        self.pace.asked(self.epoch, (yield Send(self._opening())))
        self._asked, self._untold = True, False

    def prefill(self) -> Moves:
        """Both prompts through the small model, while the cloud is at its own."""
        yield Compute("prefill", self.device.prefill, self.device.load("prefill"))

    def extend(self, *drafts: int) -> Moves:
        """Tell the cloud what it cannot know, and what may follow (`drafts`)."""
        self.epoch += 1
        tokens = (*self.emitted[self.known :], *drafts)
        frame = wire.Extend(self.epoch, self.known, tokens)
        self.known = len(self.emitted)
        self._sent = {self.epoch - 1: self._sent.get(self.epoch - 1, ()), self.epoch: tokens}
        self.pace.asked(self.epoch, (yield Send(frame)))
        self._asked, self._untold = True, False

    def credit(self, every: int) -> Moves:
        """Move the cloud's window up, at every so many tokens of the answer."""
        if self.known == self.position and self.position % every == 0:
            yield Send(wire.Credit(self.epoch, self.position))

    # --- down ---

    def prediction(self) -> Generator[Action, Any, CandidateSet | None]:
        """The cloud's prediction for the next position; None if it misses the deadline.

        Raises `Refused` for a refusal, `ConnectionFailed` for a peer that is not who it was.
        """
        began_ms: float | None = None
        while True:
            event = yield NOW
            if isinstance(event, Timeout):
                if began_ms is None:
                    began_ms = event.now_ms
                    self._note_device_time(event.now_ms)
                found = self.predictions.find(self.emitted)
                if found is not None and self.opened is not None:
                    self.base, epoch = found
                    self._in_hand_ms = event.now_ms
                    # What was made before the question was heard cost no round trip.
                    self.counters["round_trips"] += self._asked and epoch == self.epoch
                    self._asked = False
                    return self.base
                left = self.deadline.left(began_ms, event.now_ms) if self.emitted else None
                if left is not None and left <= 0:
                    return None
                event = yield ANY_TIME if left is None else Receive(left)
            moves = self._take(event)
            if moves is not None:
                yield from moves

    def now(self) -> Generator[Action, Any, float]:
        """The driver's clock, ms; takes in what has arrived."""
        while True:
            event = yield NOW
            if isinstance(event, Timeout):
                return event.now_ms
            moves = self._take(event)
            if moves is not None:
                yield from moves

    def _take(self, event: Any) -> Moves | None:
        """Take in what happened; what is to be done about it, if anything."""
        if not isinstance(event, Arrival):
            if isinstance(event, Reconnected):
                self.counters["reconnections"] += 1
                return self._reopen()
            return None
        frame = event.frame
        if isinstance(frame, wire.Predicts):
            self._keep(frame, event.now_ms)
            return self.extend() if self._untold else None
        if isinstance(frame, wire.Opened):
            if self.opened and self.opened.model != frame.model:
                raise ConnectionFailed(
                    "cloud",
                    "the server came back with another model",
                    got=frame.model,
                    allowed=self.opened.model,
                    todo="Ask again",
                )
            self.opened = frame
            self.pace.arrived(frame, event.now_ms)
        elif isinstance(frame, wire.Refusal):
            raise refused(frame)
        return None

    def _keep(self, frame: wire.Predicts, now_ms: float) -> None:
        predictions, position = self.predictions, frame.position
        if frame.epoch < self._opened_in:
            return  # the cloud does not remember what it said in another mode
        self.pace.arrived(frame, now_ms)
        if isinstance(frame, wire.Candidates):
            predictions.add(frame.epoch, position, frame.after, frame.payload, self.emitted)
            return
        tokens = self._sent.get(frame.epoch)
        if tokens is None:
            predictions.stale += len(frame.payloads)
            return
        for offset, payload in enumerate(frame.payloads):
            after = tokens[: 1 + offset]
            predictions.add(frame.epoch, position + offset, after, payload, self.emitted)

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
            yield from self.keep_up()
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
        yield from self.keep_up()
        position, device = self.position, self.device
        base = self.predictions.nearest(position)
        own: CandidateSet = yield Compute(
            "head", partial(device.alone, position, base), device.load("head")
        )
        token = draw(own, device.uniform(position, "choose"))
        logprob = float(own.logprobs[own.ids == token][0])
        self.counters["late"] += 1
        self._untold = True
        nothing = float("nan")  # the cloud had no say, so there is no base to compare with
        return Decision(token, token, logprob, nothing, source="device")

    def keep_up(self) -> Moves:
        """Whatever the small model has not seen of the answer, as one chunk."""
        device = self.device
        missing = self.emitted[device.length :]
        if missing:
            yield Compute(
                "step", partial(device.extend, missing), device.load("step", tokens=len(missing))
            )

    def _note_device_time(self, now_ms: float) -> None:
        if self._in_hand_ms is not None and self.emitted:
            self.deadline.steered(now_ms - self._in_hand_ms)
        self._in_hand_ms = None

    # --- out ---

    def emit(self, decision: Decision) -> Emit:
        """`decision.token` is final: what is to be yielded then."""
        self.emitted.append(decision.token)
        self.counters["divergences"] += decision.diverged
        self.predictions.forget_before(len(self.emitted))
        return Emit(decision.token, decision)

    def agree(self) -> Moves:
        """The last token was the cloud's best: it knows that without being told.

        Unless it ends the answer for the cloud, which then does not go on by itself.
        """
        if self.opened is not None and self.emitted[-1] in self.opened.end_ids:
            yield from self.extend()
        elif self.known == self.position - 1:
            self.known = self.position

    def finish(self) -> Generator[Action, Any, Finish]:
        """Close, and wait a moment for the cloud's account."""
        now_ms = yield Send(wire.Close(self.position))
        until = now_ms + GOODBYE_MS
        while now_ms < until:
            event = yield Receive(until - now_ms)
            now_ms = event.now_ms
            if isinstance(event, Reconnected | Timeout):
                break
            if isinstance(event.frame, wire.Closed):
                self.counters["scored_cloud_tokens"] = event.frame.scored
                self.counters["wasted_cloud_tokens"] = event.frame.wasted
                break
        self.counters["stale_predictions"] = self.predictions.stale
        ended = bool(self.emitted) and self.emitted[-1] in self.device.end_ids
        return Finish("end" if ended else "length", self.counters, tuple(self.notes))
