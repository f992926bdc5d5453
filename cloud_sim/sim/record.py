"""Wrappers that fill a tape while the real models answer (see `cloud_sim.sim.tape`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloud_sim.model import CloudModel, Logprobs, ScoreRequest
from cloud_sim.sim.tape import Node, Tape, TapeCodec, child
from edge_runtime.device import Branches
from edge_runtime.policy import Scores


def blank(model: CloudModel, query: str, codec: str) -> Tape:
    """An empty tape for `query` on `model`."""
    return Tape(
        query,
        model.name,
        model.vocabulary,
        model.vocabulary_size,
        tuple(model.end_ids),
        codec,
        tuple(model.prompt(query)),
    )


@dataclass(slots=True)
class _Sequence:
    inner: Any
    tokens: list[int]


class RecordingCloud:
    """A `CloudModel` that writes each prediction to the tape."""

    def __init__(self, model: CloudModel, tape: Tape) -> None:
        self._model, self._tape = model, tape
        self._codec = TapeCodec(tape.codec)
        self.name, self.vocabulary = model.name, model.vocabulary
        self.vocabulary_size, self.end_ids = model.vocabulary_size, model.end_ids

    def prompt(self, query: str) -> list[int]:
        """The model's own."""
        return self._model.prompt(query)

    def open(self) -> _Sequence:
        """A new sequence."""
        return _Sequence(self._model.open(), [])

    def fork(self, sequence: _Sequence, keep: int) -> _Sequence:
        """A new sequence with the first `keep` tokens of another."""
        return _Sequence(self._model.fork(sequence.inner, keep), sequence.tokens[:keep])

    def close(self, sequence: _Sequence) -> None:
        """Free it."""
        self._model.close(sequence.inner)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Logprobs]:
        """The model's predictions, recorded."""
        inner = [
            ScoreRequest(self._model, r.sequence.inner, r.keep, r.tokens, r.every, r.speculative)
            for r in requests
        ]
        results = self._model.score(inner)
        for request, logprobs in zip(requests, results, strict=True):
            tokens = request.sequence.tokens
            tokens[request.keep :] = request.tokens
            self._write(tokens, logprobs)
        return results

    def _write(self, tokens: list[int], logprobs: Logprobs) -> None:
        prompt = self._tape.prompt
        if tuple(tokens[: len(prompt)]) != prompt:
            return
        for back, row in enumerate(reversed(logprobs)):
            answer = tokens[len(prompt) : len(tokens) - back]
            if len(tokens) - back < len(prompt):
                break
            node = self._tape.node(answer)
            node.payload, node.stand_in = self._codec.encode(row), False


class RecordingBranches:
    """`Branches` that write each head's scores to the tape."""

    def __init__(self, branches: Branches, tape: Tape) -> None:
        self._branches, self._tape = branches, tape
        self.vocabulary_size = branches.vocabulary_size
        self._path: list[Node] = [tape.root]

    @property
    def length(self) -> int:
        """Answer tokens in both rows."""
        return self._branches.length

    @property
    def past(self) -> int:
        """Tokens in the longer row."""
        return self._branches.past

    def prefill(self, aware: Sequence[int], agnostic: Sequence[int], *, note: int = 0) -> None:
        """Begin an answer."""
        self._tape.prompt_lengths = (len(aware), len(agnostic))
        self._branches.prefill(aware, agnostic, note=note)
        del self._path[1:]

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens."""
        self._branches.extend(tokens)
        for token in tokens:
            self._path.append(child(self._path[-1], token))

    def rollback(self, length: int) -> None:
        """Forget answer tokens."""
        self._branches.rollback(length)
        del self._path[length + 1 :]

    def logits(self, ids: np.ndarray | None = None, position: int | None = None) -> Scores:
        """The branches' own, recorded; the full head's replace those over candidates."""
        scores = self._branches.logits(ids, position)
        node = self._path[-1 if position is None else position]
        if node.scores is None or scores.shape[1] >= node.scores.shape[1]:
            node.scores = scores.copy()
        return scores
