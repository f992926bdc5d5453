"""What the cloud knows of one answer under way, whichever mode it is in."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from cloud_sim.model import CloudModel, ScoreRequest
from cloud_sim.session.admission import Limits, Refuse, check_tokens, fits
from cloud_sim.session.cache import Cache
from cloud_sim.session.mailbox import Mailbox
from edge_runtime import wire
from edge_runtime.candidates import Codec
from edge_runtime.schedules.actions import Action

Mode = Generator[Action, Any, wire.Open | wire.Close]
"""Serves until the device closes or opens anew; returns that frame."""


@dataclass(slots=True)
class Talk:
    """What is known of one answer on the cloud's side."""

    model: CloudModel
    limits: Limits
    opening: wire.Open
    codec: Codec
    prompt: list[int]
    cache: Cache
    mail: Mailbox
    answer: list[int]
    """Tokens that the device has confirmed (and, in `score` mode, its drafts)."""
    scored: int = 0
    """Positions predicted since the connection was opened."""
    _same: int = 0
    """How much of prompt and answer is as it was when its prediction was last asked for."""

    def request(self, first: int) -> ScoreRequest:
        """The work that predicts after each token from index `first` of prompt and answer on."""
        tokens = [*self.prompt, *self.answer]
        request = self.cache.request(tokens, first, same=self._same)
        self._same = len(tokens)
        return request

    def extend(self, frame: wire.Extend) -> None:
        """Let the answer go on from `frame.position` with `frame.tokens`. Raises `Refuse`."""
        if not 0 <= frame.position <= len(self.answer):
            raise Refuse(
                "position",
                "an answer cannot be extended beyond its end",
                frame.position,
                f"0 to {len(self.answer)}",
            )
        self.check(frame)
        self.answer[frame.position :] = frame.tokens
        before = len(self.prompt) + frame.position
        if before < self._same:
            self._same = before

    def check(self, frame: wire.Extend) -> None:
        """Raises `Refuse` for tokens that cannot be, or too many of them."""
        fits(frame.position + len(frame.tokens), self.limits)
        check_tokens(self.model, frame.tokens)
