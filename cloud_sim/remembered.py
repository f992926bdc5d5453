"""A cloud model that reads each prompt once, for whoever asks many things about few prompts.

The first request on an empty sequence is its prompt. What the model makes of it (keys, values and
the prediction after it) is kept, and the next sequence that begins with the same prompt gets a
copy. Everything else passes through unchanged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cloud_sim.model import CloudModel, Logprobs, ScoreRequest


@dataclass(slots=True)
class _Handle:
    sequence: Any


class RememberedPrompts:
    """`CloudModel` over another one; keeps the `size` prompts that were used last."""

    def __init__(self, model: CloudModel, size: int = 128) -> None:
        self.model = model
        self.name = model.name
        self.vocabulary = model.vocabulary
        self.vocabulary_size = model.vocabulary_size
        self.end_ids = model.end_ids
        self._size = size
        self._kept: OrderedDict[tuple[int, ...], tuple[Any, Logprobs]] = OrderedDict()

    def prompt(self, query: str) -> list[int]:
        """Token ids of the chat prompt around the public `query`."""
        return self.model.prompt(query)

    def open(self) -> _Handle:
        """A new, empty sequence."""
        return _Handle(self.model.open())

    def fork(self, sequence: _Handle, keep: int) -> _Handle:
        """A new sequence with the first `keep` tokens of `sequence`."""
        return _Handle(self.model.fork(sequence.sequence, keep))

    def close(self, sequence: _Handle) -> None:
        """Free the sequence; the prompt stays."""
        self.model.close(sequence.sequence)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Logprobs]:
        """As the model's own; prompts that were read before cost nothing."""
        prompts = [one.tokens for one in requests if _is_prompt(one)]
        self._read([one for one in dict.fromkeys(prompts) if one not in self._kept])
        rest = [
            ScoreRequest(self.model, one.sequence.sequence, one.keep, one.tokens, one.every)
            for one in requests
            if not _is_prompt(one)
        ]
        found = iter(self.model.score(rest) if rest else [])
        results = [self._begin(one) if _is_prompt(one) else next(found) for one in requests]
        while len(self._kept) > self._size:
            self.model.close(self._kept.popitem(last=False)[1][0])
        return results

    def forget(self) -> None:
        """Free all prompts."""
        while self._kept:
            self.model.close(self._kept.popitem()[1][0])

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> None:
        if not prompts:
            return
        sequences = [self.model.open() for _ in prompts]
        pairs = zip(sequences, prompts, strict=True)
        rows = self.model.score([ScoreRequest(self.model, s, 0, p) for s, p in pairs])
        for prompt, sequence, row in zip(prompts, sequences, rows, strict=True):
            self._kept[prompt] = (sequence, row)

    def _begin(self, request: ScoreRequest) -> Logprobs:
        sequence, row = self._kept[request.tokens]
        self._kept.move_to_end(request.tokens)
        handle = request.sequence
        self.model.close(handle.sequence)
        handle.sequence = self.model.fork(sequence, len(request.tokens))
        return row


def _is_prompt(request: ScoreRequest) -> bool:
    return request.keep == 0 and not request.every and len(request.tokens) > 1
