"""The cloud's half of an answer, sans-IO: the same generator behind the real and simulated server.

It yields the actions of `edge_runtime.schedules.actions`: Receive what the device sends, Compute a
`ScoreRequest`, Send frames. It keeps nothing but the public query and the emitted tokens.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from cloud_sim.model import CloudModel, Logprobs, ScoreRequest
from edge_runtime import wire
from edge_runtime.candidates import Codec, codec
from edge_runtime.errors import UsageError
from edge_runtime.schedules.actions import Action, Arrival, Compute, Load, Receive, Send, Session


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may ask for; each refusal names the limit."""

    prompt_tokens: int = 4096
    answer_tokens: int = 2048


class _Refuse(Exception):
    """Ends a session with a typed refusal."""

    def __init__(self, frame: wire.Refusal) -> None:
        self.frame = frame


def session(
    model: CloudModel,
    limits: Limits = Limits(),
    new_id: Callable[[], str] = lambda: secrets.token_hex(8),
) -> Session:
    """Serve one answer from `Open` to `Close`. Ends by returning; a bad request ends in a
    `Refusal` frame. The driver closes the generator when the device vanishes."""
    sequence = model.open()
    try:
        yield from _serve(model, sequence, limits, new_id)
    except _Refuse as refuse:
        yield Send(refuse.frame)
    finally:
        model.close(sequence)


def _serve(model: CloudModel, sequence: Any, limits: Limits, new_id: Callable[[], str]) -> Session:
    opening = yield from _receive()
    if not isinstance(opening, wire.Open):
        raise _Refuse(_out_of_turn(opening, "open"))
    prompt, chosen = _admit(model, opening, limits)
    scored = _Counter()
    yield Send(
        wire.Opened(
            session=opening.session or new_id(),
            model=model.name,
            vocabulary=model.vocabulary,
            vocabulary_size=model.vocabulary_size,
            end_ids=model.end_ids,
            prompt_tokens=len(prompt),
        )
    )
    yield from _lockstep(model, sequence, prompt, opening, chosen, limits, scored)


def _lockstep(
    model: CloudModel,
    sequence: Any,
    prompt: list[int],
    opening: wire.Open,
    chosen: Codec,
    limits: Limits,
    scored: _Counter,
) -> Session:
    keep, tokens = 0, (*prompt, *opening.emitted)
    position = len(opening.emitted)
    while True:
        request = ScoreRequest(model, sequence, keep, tokens)
        load = Load(rows=1, tokens=len(tokens), past=keep, candidates=model.vocabulary_size)
        logprobs: Logprobs = yield Compute("score", request, load)
        scored.positions += 1
        yield Send(wire.Candidates(0, position, chosen.encode(logprobs[-1])))
        frame = yield from _receive()
        if isinstance(frame, wire.Close):
            yield Send(wire.Closed(scored=scored.positions, wasted=0))
            return
        if not isinstance(frame, wire.Extend) or frame.position > position:
            raise _Refuse(_out_of_turn(frame, f"extend at a position up to {position}, or close"))
        position = frame.position + len(frame.tokens)
        if position > limits.answer_tokens:
            raise _Refuse(
                wire.Refusal(
                    "answer_too_long",
                    "cloud",
                    "the answer is longer than this server allows",
                    f"{position} tokens",
                    f"at most {limits.answer_tokens}",
                    "Ask for fewer tokens",
                )
            )
        keep, tokens = len(prompt) + frame.position, frame.tokens


@dataclass(slots=True)
class _Counter:
    positions: int = 0


def _receive() -> Generator[Action, Any, wire.Up]:
    event = yield Receive()
    return event.frame if isinstance(event, Arrival) else wire.Close()


def _admit(model: CloudModel, opening: wire.Open, limits: Limits) -> tuple[list[int], Codec]:
    if opening.protocol != wire.PROTOCOL:
        raise _Refuse(
            wire.Refusal(
                "protocol",
                "cloud",
                "the device speaks another protocol version",
                str(opening.protocol),
                str(wire.PROTOCOL),
                "Install the same costeer-edge on both sides",
            )
        )
    try:
        chosen = codec(opening.codec)
    except UsageError as error:
        raise _Refuse(
            wire.Refusal("codec", "cloud", error.what, error.got or "", error.allowed or "")
        ) from error
    if opening.vocabulary and model.vocabulary and opening.vocabulary != model.vocabulary:
        raise _Refuse(
            wire.Refusal(
                "vocabulary",
                "cloud",
                "the device's small model and this cloud model have different vocabularies",
                opening.vocabulary[:12],
                model.vocabulary[:12],
                "Use a bundle made from a model of the same family",
            )
        )
    prompt = model.prompt(opening.query)
    if len(prompt) + len(opening.emitted) > limits.prompt_tokens:
        raise _Refuse(
            wire.Refusal(
                "prompt_too_long",
                "cloud",
                "the query is longer than this server allows",
                f"{len(prompt)} tokens",
                f"at most {limits.prompt_tokens}",
                "Shorten the query",
            )
        )
    return prompt, chosen


def _out_of_turn(frame: object, allowed: str) -> wire.Refusal:
    return wire.Refusal(
        "out_of_turn", "cloud", "a frame came out of turn", type(frame).__name__.lower(), allowed
    )
