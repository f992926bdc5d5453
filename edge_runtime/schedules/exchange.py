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
    _by_position: dict[int, dict[tuple[int, ...], tuple[int, bytes]]] = field(default_factory=dict)
    _other_way: dict[int, bytes] = field(default_factory=dict)

    def add(
        self,
        epoch: int,
        position: int,
        after: tuple[int, ...],
        payload: bytes,
        emitted: list[int],
    ) -> None:
        """Keep what may still come true; `emitted` is the answer so far."""
        so_far = tuple(emitted[position - len(after) : position]) if after else ()
        if position < len(emitted) or so_far != after[: len(so_far)]:
            self.stale += 1
            self._other_way[position] = payload
        else:
            self._by_position.setdefault(position, {}).setdefault(after, (epoch, payload))

    def find(self, emitted: list[int]) -> tuple[CandidateSet, int] | None:
        """The prediction for the next position of the answer `emitted`, if it is here, and the
        epoch in which it was made."""
        here = self._by_position.get(len(emitted))
        if here is None:
            return None
        for after, (epoch, payload) in here.items():
            if not after or tuple(emitted[len(emitted) - len(after) :]) == after:
                return self.codec.decode(payload), epoch
        return None

    def nearest(self, position: int) -> CandidateSet | None:
        """A prediction for `position` on another way of the answer: better than none."""
        here = [payload for _, payload in self._by_position.get(position, {}).values()]
        payload = here[0] if here else self._other_way.get(position)
        return self.codec.decode(payload) if payload is not None else None

    def forget_before(self, position: int) -> None:
        """Drop what the answer has passed."""
        stores: tuple[dict[int, Any], ...] = (self._by_position, self._other_way)
        for store in stores:
            store.pop(position - 1, None)
            if store:
                for old in [p for p in store if p < position]:
                    del store[old]

    def clear(self) -> None:
        """Drop everything."""
        self._by_position.clear()
        self._other_way.clear()
