"""What a session needs of a cloud model, whoever runs it: transformers, a tape, a fake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

Logprobs = npt.NDArray[np.floating]
"""Natural log-probabilities [n, V]; each row sums to one in probability."""


class CloudModel(Protocol):
    """A frozen LLM with one KV cache a sequence.

    `score` takes several requests at once so that a server can batch sessions; a result must not
    depend on what else is in the batch (up to the order of floating-point sums).
    """

    name: str
    vocabulary: str
    """SHA-256 of the vocabulary, as `edge_runtime.vocabulary` computes it; empty: unknown."""
    vocabulary_size: int
    end_ids: tuple[int, ...]

    def prompt(self, query: str) -> list[int]:
        """Token ids of the chat prompt around the public `query`."""
        ...

    def open(self) -> Any:
        """A new, empty sequence: an opaque handle to its KV cache."""
        ...

    def fork(self, sequence: Any, keep: int) -> Any:
        """A new sequence that begins with the first `keep` tokens of `sequence`, cache included."""
        ...

    def close(self, sequence: Any) -> None:
        """Free the sequence's cache."""
        ...

    def score(self, requests: Sequence[ScoreRequest]) -> list[Logprobs]:
        """For each request, predictions after its tokens (see `ScoreRequest`)."""
        ...


class ScoreRequest(msgspec.Struct, frozen=True):
    """Keep the first `keep` tokens of `sequence`, append `tokens`, predict.

    `every`: False: the prediction after the last token only, [1, V]; True: after each, [n, V].
    Calling it runs it alone; a server's driver collects requests and runs them together.
    """

    model: CloudModel
    sequence: Any
    keep: int
    tokens: tuple[int, ...]
    every: bool = False
    speculative: bool = False
    """A guess at what the device will ask for: a server runs it when nobody is waiting."""

    def __call__(self) -> Logprobs:
        """Run this request alone."""
        return self.model.score([self])[0]


@dataclass(frozen=True, slots=True)
class ScoreBatch:
    """Several requests of one session for one forward pass (run-ahead's branches)."""

    requests: tuple[ScoreRequest, ...]

    def __call__(self) -> list[Logprobs]:
        """Run them together, without any other session's."""
        return self.requests[0].model.score(self.requests)
