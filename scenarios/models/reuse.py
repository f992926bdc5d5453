"""A cloud model that remembers its last sequence, for callers that ask with whole prefixes.

A recording asks for one answer prefix after the other, each from scratch. Most of them extend the
one before; what they have in common need not be computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cloud_sim.model import CloudModel, Logprobs, ScoreRequest


class Reusing:
    """`CloudModel` around another: every request is one whole prefix, `keep` is 0."""

    def __init__(self, model: CloudModel) -> None:
        self.model = model
        self.name, self.vocabulary = model.name, model.vocabulary
        self.vocabulary_size, self.end_ids = model.vocabulary_size, model.end_ids
        self._sequence: Any = None
        self._tokens: tuple[int, ...] = ()

    def prompt(self, query: str) -> list[int]:
        """The model's own."""
        return self.model.prompt(query)

    def open(self) -> None:
        """Nothing: there is one sequence, and it is ours."""
        if self._sequence is None:
            self._sequence = self.model.open()

    def fork(self, sequence: Any, keep: int) -> Any:
        """Not for whole prefixes."""
        raise NotImplementedError

    def close(self, sequence: Any) -> None:
        """Nothing: the sequence is kept for the next request."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Logprobs]:
        """Each request's prediction; only what the last one did not hold is computed."""
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Logprobs:
        assert request.keep == 0
        assert not request.every
        tokens = request.tokens
        keep = 0
        for one, two in zip(self._tokens, tokens[:-1], strict=False):
            if one != two:
                break
            keep += 1
        inner = ScoreRequest(self.model, self._sequence, keep, tokens[keep:])
        (logprobs,) = self.model.score([inner])
        self._tokens = tokens
        return logprobs
