"""What is asked of the cloud, what it answers, and which of its predictions still hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edge_runtime import wire
from edge_runtime.candidates import CandidateSet, Codec
from edge_runtime.errors import Refused


@dataclass(frozen=True, slots=True)
class Request:
    """What the device asks the cloud for; all of it is public."""

    query: str
    vocabulary: str
    codec: Codec
    max_tokens: int

    def open(self, mode: wire.Mode, **more: Any) -> wire.Open:
        """The frame that begins the answer, or resumes it."""
        return wire.Open(
            protocol=wire.PROTOCOL,
            query=self.query,
            vocabulary=self.vocabulary,
            codec=self.codec.name,
            mode=mode,
            max_tokens=self.max_tokens,
            **more,
        )


def refused(frame: wire.Refusal) -> Refused:
    """The error that a refusal frame describes."""
    return Refused(
        frame.where,
        frame.what,
        code=frame.code,
        got=frame.got or None,
        allowed=frame.allowed or None,
        todo=frame.todo,
    )


@dataclass(slots=True)
class Predictions:
    """Predictions that have arrived, found by the answer they assume.

    A prediction for position p says which tokens the cloud assumed beyond those it had been told
    (`Candidates.after`). It holds if the emitted answer ends, at p, with exactly those tokens:
    whatever order frames came in, however often, and on whichever branch the cloud made them.
    """

    codec: Codec
    stale: int = 0
    """Predictions dropped because the answer went another way."""
    _by_position: dict[int, dict[tuple[int, ...], bytes]] = field(default_factory=dict)

    def add(self, frame: wire.Candidates | wire.Scores, emitted: list[int]) -> None:
        """Keep what may still come true; `emitted` is the answer so far."""
        if isinstance(frame, wire.Scores):
            for offset, payload in enumerate(frame.payloads):
                self._by_position.setdefault(frame.position + offset, {})[()] = payload
            return
        known = frame.position - len(frame.after)
        so_far = tuple(emitted[known : frame.position])
        if frame.position < len(emitted) or so_far != frame.after[: len(so_far)]:
            self.stale += 1
        else:
            self._by_position.setdefault(frame.position, {})[frame.after] = frame.payload

    def find(self, emitted: list[int]) -> CandidateSet | None:
        """The prediction for the next position of the answer `emitted`, if it is here."""
        for after, payload in self._by_position.get(len(emitted), {}).items():
            if tuple(emitted[len(emitted) - len(after) :]) == after:
                return self.codec.decode(payload)
        return None

    def forget_before(self, position: int) -> None:
        """Drop what the answer has passed."""
        for old in [p for p in self._by_position if p < position]:
            del self._by_position[old]

    def clear(self) -> None:
        """Drop everything (drafts that were not taken)."""
        self._by_position.clear()
