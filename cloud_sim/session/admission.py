"""What one session may ask for, and the refusals: each names the limit and a way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cloud_sim.model import CloudModel
from edge_runtime import wire
from edge_runtime.candidates import Codec, codec
from edge_runtime.errors import UsageError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may ask for."""

    prompt_tokens: int = 4096
    answer_tokens: int = 2048
    window: int = 64
    """Positions that run-ahead may be ahead of the device; more is cut to this."""
    branches: int = 16
    """Rows of a run-ahead pass; more is cut to this."""
    draft_tokens: int = 64
    """Tokens in one `Extend`, beyond those of a resumed answer."""
    least_chance: float = 0.004
    """Run-ahead does not compute continuations less likely than this."""


STANDARD = Limits()


class Refuse(Exception):
    """Ends a session with a typed refusal."""

    def __init__(
        self, code: str, what: str, got: object = "", allowed: object = "", todo: str = ""
    ) -> None:
        self.frame = wire.Refusal(code, "cloud", what, str(got), str(allowed), todo)
        super().__init__(code)


def out_of_turn(frame: object, allowed: str) -> Refuse:
    """A frame of a kind that cannot come now."""
    return Refuse("out_of_turn", "a frame came out of turn", type(frame).__name__.lower(), allowed)


def admit(
    model: CloudModel,
    opening: wire.Open,
    limits: Limits,
    codecs: Callable[[str], Codec] = codec,
) -> tuple[list[int], Codec]:
    """The prompt's token ids and the codec. Raises `Refuse`."""
    if opening.protocol != wire.PROTOCOL:
        raise Refuse(
            "protocol",
            "the device speaks another protocol version",
            opening.protocol,
            wire.PROTOCOL,
            "Install the same costeer-edge on both sides",
        )
    try:
        chosen = codecs(opening.codec)
    except UsageError as error:
        raise Refuse("codec", error.what, error.got, error.allowed) from error
    if opening.vocabulary and model.vocabulary and opening.vocabulary != model.vocabulary:
        raise Refuse(
            "vocabulary",
            "the device's small model and this cloud model have different vocabularies",
            opening.vocabulary[:12],
            model.vocabulary[:12],
            "Use a bundle made from a model of the same family",
        )
    if min(opening.window, opening.branches, opening.depth) < 0 or opening.least_chance > 1:
        raise Refuse(
            "window",
            "a window, number of branches or chance is out of range",
            f"window {opening.window}, branches {opening.branches}, depth {opening.depth}, "
            f"least chance {opening.least_chance:g}",
            "numbers of 0 or more, a chance of at most 1",
        )
    prompt = model.prompt(opening.query)
    if len(prompt) > limits.prompt_tokens:
        raise Refuse(
            "prompt_too_long",
            "the query is longer than this server allows",
            f"{len(prompt)} tokens",
            f"at most {limits.prompt_tokens}",
            "Shorten the query",
        )
    fits(len(opening.emitted), limits)
    check_tokens(model, opening.emitted)
    return prompt, chosen


def fits(answer_tokens: int, limits: Limits) -> None:
    """Raises `Refuse` for an answer longer than the limit."""
    if answer_tokens > limits.answer_tokens:
        raise Refuse(
            "answer_too_long",
            "the answer is longer than this server allows",
            f"{answer_tokens} tokens",
            f"at most {limits.answer_tokens}",
            "Ask for fewer tokens",
        )


def check_tokens(model: CloudModel, tokens: tuple[int, ...]) -> None:
    """Raises `Refuse` for a token that the model does not have."""
    wrong = [token for token in tokens if not 0 <= token < model.vocabulary_size]
    if wrong:
        raise Refuse(
            "token",
            "a token is not of this model's vocabulary",
            wrong[0],
            f"0 to {model.vocabulary_size - 1}",
            "Use a bundle made from a model of the same family",
        )
