"""A cloud model and a device that are pure functions of a hash, in float64.

Thousands of answers run in seconds, no two logits tie, and nothing depends on how positions or
sessions are batched: whatever two schedules emit differently is a fault of their logic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cloud_sim.model import Logprobs, ScoreRequest
from edge_runtime.candidates import CandidateSet, draw
from edge_runtime.policy import Decision, Scores, Use
from edge_runtime.schedules.actions import Kind, Load

_MASK = (1 << 64) - 1


def _mix(state: int, value: int) -> int:
    """One round of splitmix64 over a running hash of the tokens so far."""
    z = (state + 0x9E3779B97F4A7C15 + value * 0xD1342543DE82EF95) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _hash_text(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class _Table:
    """Logits [V] looked up by a hash: the sum of two rows of standard normals."""

    def __init__(self, name: str, vocabulary_size: int, spread: float) -> None:
        rng = np.random.default_rng(_hash_text(name))
        self._rows = rng.normal(0.0, spread / np.sqrt(2), (2, 251, vocabulary_size))

    def __call__(self, state: int) -> npt.NDArray[np.float64]:
        return self._rows[0, state % 251] + self._rows[1, (state >> 20) % 251]


def log_softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    top = values.max()
    return values - top - np.log(np.exp(values - top).sum())


@dataclass
class FakeSequence:
    """A running hash after each token: its own 'KV cache'."""

    states: list[int] = field(default_factory=list)
    closed: bool = False


class FakeCloud:
    """`CloudModel`: log-probabilities are a function of prompt and answer prefix alone."""

    def __init__(self, vocabulary_size: int = 32, seed: int = 0, spread: float = 3.0) -> None:
        self.name = f"fake-cloud-{seed}"
        self.vocabulary = ""
        self.vocabulary_size = vocabulary_size
        self.end_ids: tuple[int, ...] = (vocabulary_size - 1,)
        self._logits = _Table(f"cloud {seed}", vocabulary_size, spread)
        self.opened = 0
        self.passes: list[int] = []
        """Rows of each forward pass so far."""
        self.open_sequences: list[FakeSequence] = []

    def prompt(self, query: str) -> list[int]:
        return [byte % self.vocabulary_size for byte in query.encode()] or [0]

    def open(self) -> FakeSequence:
        self.opened += 1
        self.open_sequences.append(FakeSequence())
        return self.open_sequences[-1]

    def fork(self, sequence: FakeSequence, keep: int) -> FakeSequence:
        assert not sequence.closed
        assert keep <= len(sequence.states)
        new = self.open()
        new.states = sequence.states[:keep]
        return new

    def close(self, sequence: Any) -> None:
        assert not sequence.closed, "a sequence was closed twice"
        sequence.closed = True
        self.open_sequences.remove(sequence)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Logprobs]:
        self.passes.append(len(requests))
        assert len({id(r.sequence) for r in requests}) == len(requests), "one row a sequence"
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Logprobs:
        states = request.sequence.states
        assert not request.sequence.closed
        assert request.keep <= len(states), "tokens to keep that were never there"
        assert request.tokens, "a prediction needs at least one new token"
        del states[request.keep :]
        for token in request.tokens:
            assert 0 <= token < self.vocabulary_size
            states.append(_mix(states[-1] if states else 0, token))
        wanted = states[request.keep :] if request.every else states[-1:]
        return np.stack([log_softmax(self._logits(state)) for state in wanted])


class FakeDevice:
    """`policy.Device`: agnostic logits from the answer, plus a delta that the private context
    alone determines; steered = base + gain * delta.

    `temperature` 0 is greedy, else one uniform number a position picks from the inverse CDF over
    ascending ids. `forced` makes every choice, whatever the context: for non-interference.
    """

    def __init__(
        self,
        vocabulary_size: int = 32,
        *,
        context: str = "private",
        gain: float = 0.5,
        temperature: float = 0.0,
        seed: int = 0,
        spread: float = 2.0,
        forced: Sequence[int] | None = None,
        end_ids: Sequence[int] | None = None,
    ) -> None:
        self.end_ids = frozenset([vocabulary_size - 1] if end_ids is None else end_ids)
        self.gain = gain
        self.temperature = temperature
        self.seed = seed
        self.forced = forced
        self.steps = 0
        """Calls of `extend`."""
        self.heads = 0
        self._agnostic = _Table("agnostic", vocabulary_size, spread)
        self._delta = _Table("delta", vocabulary_size, spread)
        self._context = _hash_text(context)
        self._states: list[int] = []
        self._ready = False

    @property
    def length(self) -> int:
        return len(self._states)

    def prefill(self) -> None:
        self._ready = True
        self._states.clear()

    def extend(self, tokens: Sequence[int]) -> None:
        assert self._ready
        self.steps += 1
        for token in tokens:
            self._states.append(_mix(self._states[-1] if self._states else 7, token))

    def rollback(self, length: int) -> None:
        assert 0 <= length <= self.length
        del self._states[length:]

    def _logits(self, position: int | None = None) -> npt.NDArray[np.float64]:
        assert self._ready, "head before prefill"
        position = self.length if position is None else position
        assert 0 <= position <= self.length
        state = self._states[position - 1] if position else 7
        agnostic = self._agnostic(state)
        return np.stack([agnostic + self._delta(_mix(state, self._context)), agnostic])

    def head(self, candidates: CandidateSet, position: int | None = None) -> Scores:
        self.heads += 1
        scores: Scores = self._logits(position)[:, candidates.ids].astype(np.float32)
        return scores

    def steered(self, candidates: CandidateSet, scores: Scores) -> npt.NDArray[np.float64]:
        """log softmax(base + gain * delta) [C], in float64."""
        delta = scores[0].astype(np.float64) - scores[1]
        return log_softmax(candidates.logprobs.astype(np.float64) + self.gain * delta)

    def choose(
        self,
        position: int,
        candidates: CandidateSet,
        scores: Scores | None,
        token: int | None = None,
    ) -> Decision:
        if scores is None:
            scores = np.zeros((2, len(candidates.ids)), np.float32)
        if token is None and self.forced is not None:
            token = self.forced[position]
        if token is None:
            token = draw(self.policy(position, candidates, scores), self.uniform(position))
        steered = self.steered(candidates, scores)
        best = np.sort(steered)
        where = np.flatnonzero(candidates.ids == token)
        return Decision(
            token=token,
            base_token=candidates.best,
            policy_logprob=float(steered[where[0]]) if len(where) else -np.inf,
            base_logprob=float(candidates.logprobs[where[0]]) if len(where) else -np.inf,
            margin=float(best[-1] - best[-2]) if len(best) > 1 else float("inf"),
        )

    def policy(self, position: int, candidates: CandidateSet, scores: Scores) -> CandidateSet:
        return self._sharpened(candidates.ids, self.steered(candidates, scores))

    def alone(self, position: int, base: CandidateSet | None = None) -> CandidateSet:
        assert position == self.length
        if base is not None:
            return self.policy(position, base, self.head(base))
        logits = self._logits()[0]
        return self._sharpened(np.arange(len(logits)), logits)

    def _sharpened(
        self, ids: npt.NDArray[np.int64], logits: npt.NDArray[np.float64]
    ) -> CandidateSet:
        if not self.temperature:
            best = int(np.argmax(logits))
            return CandidateSet(ids[best : best + 1], np.zeros(1, np.float32))
        logprobs = log_softmax(logits / self.temperature)
        return CandidateSet(ids, logprobs)

    def uniform(self, position: int, use: Use = "choose") -> float:
        return _mix(_mix(self.seed, position), _hash_text(use)) / 2**64

    def load(self, kind: Kind, tokens: int = 0, candidates: int = 0) -> Load:
        return Load(rows=2, tokens=tokens, past=self.length, candidates=candidates)
