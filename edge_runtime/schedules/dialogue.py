"""What the device has said to the cloud about an answer, and what the cloud has said of it.

    open ─▶ extend | credit ... ─▶ close          Open again where the connection was lost
         ◀─ Opened, Candidates | Scores ... ◀─

`known` is how much of the answer the cloud can tell from what it was sent: up to there by the
frames, and on from there as long as each token is its own best. What it predicts is kept in
`exchange.Predictions`, whatever order it comes in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edge_runtime import wire
from edge_runtime.candidates import CandidateSet
from edge_runtime.errors import ConnectionFailed
from edge_runtime.schedules.actions import Arrival, Moves, Receive, Reconnected, Send, Timeout
from edge_runtime.schedules.exchange import Predictions, Request, refused
from edge_runtime.schedules.pace import Pace

GOODBYE_MS = 1000.0
"""How long the end of an answer waits for the cloud's account of what it computed."""


@dataclass(slots=True)
class Dialogue:
    """The cloud's side of one answer, as the device knows it."""

    request: Request
    emitted: list[int]
    """The answer so far; whoever steers appends to it."""
    counters: dict[str, float]
    known: int = 0
    opened: wire.Opened | None = None
    untold: bool = False
    """Late tokens were emitted; the cloud is told when it is heard from again."""
    pace: Pace = field(default_factory=Pace)
    predictions: Predictions = field(init=False)
    _epoch: int = 0
    _opening: Callable[[], wire.Open] = field(init=False)
    _opened_in: int = 0
    """Epoch of the last `Open`."""
    _sent: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Tokens of the last two `Extend`s, by epoch; none for an `Open`."""
    _asked: bool = False
    """Something was sent that has not been waited for yet."""

    def __post_init__(self) -> None:
        self.predictions = Predictions(self.request.codec)

    # --- up ---

    def open(self, mode: wire.Mode, **more: Any) -> Moves:
        """Ask for the answer, or for the rest of it in another mode."""
        self._opening = lambda: self.request.open(
            mode,
            session=self.opened.session if self.opened else "",
            emitted=tuple(self.emitted),
            epoch=self._epoch,
            **more,
        )
        yield from self._reopen()

    def _reopen(self) -> Moves:
        self.known = len(self.emitted)
        # Frames of the mode or the connection before can be told apart.
        self._epoch += bool(self.emitted)
        self._sent = {self._epoch: ()}
        self._opened_in = self._epoch
        self.predictions.clear()
        self.pace.asked(self._epoch, (yield Send(self._opening())))
        self._asked, self.untold = True, False

    def extend(self, *drafts: int) -> Moves:
        """Tell the cloud what it cannot know, and what may follow (`drafts`)."""
        before, self._epoch = self._epoch, self._epoch + 1
        tokens = (*self.emitted[self.known :], *drafts)
        frame = wire.Extend(self._epoch, self.known, tokens)
        self.known = len(self.emitted)
        self._sent = {before: self._sent.get(before, ()), self._epoch: tokens}
        self.pace.asked(self._epoch, (yield Send(frame)))
        self._asked, self.untold = True, False

    def agree(self) -> Moves:
        """The last token was the cloud's best: it knows that without being told.

        Unless it ends the answer for the cloud, which then does not go on by itself.
        """
        if self.opened is not None and self.emitted[-1] in self.opened.end_ids:
            yield from self.extend()
        elif self.known == len(self.emitted) - 1:
            self.known = len(self.emitted)

    def credit(self, every: int) -> Moves:
        """Move the cloud's window up, at every so many tokens of the answer."""
        position = len(self.emitted)
        if self.known == position and position % every == 0:
            yield Send(wire.Credit(self._epoch, position))

    def close(self) -> Moves:
        """Say goodbye, and wait a moment for the cloud's account."""
        now_ms = yield Send(wire.Close(len(self.emitted)))
        until = now_ms + GOODBYE_MS
        while now_ms < until:
            event = yield Receive(min(until - now_ms, GOODBYE_MS))
            now_ms = event.now_ms
            if isinstance(event, Reconnected | Timeout):
                break
            if isinstance(event.frame, wire.Closed):
                self.counters["scored_cloud_tokens"] = event.frame.scored
                self.counters["wasted_cloud_tokens"] = event.frame.wasted
                break
        self.counters["stale_predictions"] = self.predictions.stale

    # --- down ---

    def found(self) -> CandidateSet | None:
        """The prediction for the next position, if it is here."""
        found = self.predictions.find(self.emitted)
        if found is None or self.opened is None:
            return None
        base, epoch = found
        # What was made before the question was heard cost no round trip.
        self.counters["round_trips"] += self._asked and epoch == self._epoch
        self._asked = False
        return base

    def take(self, event: Any) -> Moves | None:
        """Take in what happened; what is to be done about it, if anything.

        Raises `Refused` for a refusal, `ConnectionFailed` for a peer that is not who it was.
        """
        if not isinstance(event, Arrival):
            if isinstance(event, Reconnected):
                self.counters["reconnections"] += 1
                return self._reopen()
            return None
        frame = event.frame
        if isinstance(frame, wire.Predicts):
            self._keep(frame, event.now_ms)
            return self.extend() if self.untold else None
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
