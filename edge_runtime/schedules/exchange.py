"""The few moves every schedule makes: open, wait for a frame of a kind, steer one position."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from edge_runtime import wire
from edge_runtime.candidates import CandidateSet, Codec
from edge_runtime.errors import ConnectionFailed, Refused
from edge_runtime.policy import Decision, Device
from edge_runtime.schedules.actions import Action, Arrival, Compute, Load, Receive

F = TypeVar("F", bound=wire.Down)


@dataclass(frozen=True, slots=True)
class Request:
    """What the device asks the cloud for; all of it is public."""

    query: str
    vocabulary: str
    codec: Codec
    max_tokens: int

    def open(self, mode: wire.Mode, **more: Any) -> wire.Open:
        """The frame that begins the answer."""
        return wire.Open(
            protocol=wire.PROTOCOL,
            query=self.query,
            vocabulary=self.vocabulary,
            codec=self.codec.name,
            mode=mode,
            max_tokens=self.max_tokens,
            **more,
        )


def expect(kind: type[F]) -> Generator[Action, Any, F]:
    """Wait for the next frame, which must be of `kind`.

    Raises `Refused` for a refusal and `ConnectionFailed` for anything else.
    """
    event = yield Receive()
    frame = event.frame if isinstance(event, Arrival) else event
    if isinstance(frame, wire.Refusal):
        raise refused(frame)
    if not isinstance(frame, kind):
        raise ConnectionFailed(
            "cloud",
            "the server answered out of turn",
            got=type(frame).__name__,
            allowed=kind.__name__,
        )
    return frame


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


def steer(
    device: Device, position: int, candidates: CandidateSet
) -> Generator[Action, Any, Decision]:
    """Head over the candidates, then the rule: the token for `position`."""
    size = len(candidates.ids)
    scores = yield Compute(
        "head", lambda: device.head(candidates), device.load("head", candidates=size)
    )
    decision: Decision = yield Compute(
        "steer", lambda: device.choose(position, candidates, scores), Load(candidates=size)
    )
    return decision
