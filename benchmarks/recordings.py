"""Recorded answers (`benchmarks.record_answers`) in the place of both models, position by position.

What is emitted is always a position of the recording, so tokens are exact. A prediction for a way
that the recorded answer did not go (run ahead in vain, a rejected draft) is stood in for by the
recording's own for that position: its time and bytes are real, and nothing is emitted from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cloud_sim.model import ScoreRequest
from cloud_sim.session import Limits, session
from cloud_sim.sim.costs import DeviceCosts
from cloud_sim.sim.tape import TapeCodec
from edge_runtime.candidates import CandidateSet
from edge_runtime.policy import Decision, Scores, Use
from edge_runtime.schedules.actions import Kind, Load, Session
from edge_runtime.schedules.exchange import Request
from scenarios.cells import recordings


class Remembered(TapeCodec):
    """Hands out what was encoded before: rows of `RecordedCloud` are payloads."""

    def encode(self, logprobs: Any) -> bytes:
        """The row itself."""
        payload: bytes = logprobs
        return payload


class Recording(recordings.Recording):
    """A recorded answer in the place of both models."""

    @cached_property
    def codec(self) -> Remembered:
        """Decodes each payload once."""
        return Remembered(self.codec_name)

    def at(self, position: int) -> int:
        """The recorded position that stands for `position`."""
        return min(position, len(self.tokens) - 1)

    def request(self) -> Request:
        """What the device asks for."""
        return Request("recorded", "", self.codec, len(self.tokens))

    def session(self) -> Session:
        """The cloud's half."""
        return session(RecordedCloud(self), Limits(), lambda: "0" * 16, codecs=lambda _: self.codec)


@dataclass
class _Sequence:
    length: int = 0


class RecordedCloud:
    """A `CloudModel` whose rows are payloads."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.name, self.vocabulary, self.vocabulary_size = "recorded", "", 1 << 20
        self.end_ids = recording.end_ids

    def prompt(self, query: str) -> list[int]:
        """As many tokens as the recorded prompt had."""
        return [0] * self.recording.prompt_tokens

    def open(self) -> _Sequence:
        """See `CloudModel`."""
        return _Sequence()

    def fork(self, sequence: _Sequence, keep: int) -> _Sequence:
        """See `CloudModel`."""
        return _Sequence(keep)

    def close(self, sequence: _Sequence) -> None:
        """See `CloudModel`."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Any]:
        """The payloads for the positions after the tokens."""
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> list[bytes]:
        recording = self.recording
        first = request.keep + 1 - recording.prompt_tokens
        last = request.keep + len(request.tokens) - recording.prompt_tokens
        return [
            recording.payloads[recording.at(max(0, position))]
            for position in range(first if request.every else last, last + 1)
        ]


class RecordedDevice:
    """A greedy `policy.Device`; `gain` 0 takes the cloud's tokens (plain streaming)."""

    def __init__(self, recording: Recording, gain: float | None = None) -> None:
        self.recording = recording
        self.gain = recording.gain if gain is None else gain
        self.end_ids = frozenset(recording.end_ids)
        self._length = 0

    @property
    def length(self) -> int:
        """Answer tokens so far."""
        return self._length

    def prefill(self) -> None:
        """Begin."""
        self._length = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Go on."""
        self._length += len(tokens)

    def rollback(self, length: int) -> None:
        """Go back."""
        self._length = length

    def head(self, candidates: CandidateSet, position: int | None = None) -> Scores:
        """The recorded scores over the candidates; those of other tokens are not known."""
        recording = self.recording
        at = recording.at(self.length if position is None else position)
        own = recording.codec.decode(recording.payloads[at])
        if candidates is own:
            return recording.scores[at]
        known = np.full((2, len(candidates.ids)), 0, np.float32)
        known[0] = -1e4
        _, here, there = np.intersect1d(
            candidates.ids, own.ids, assume_unique=True, return_indices=True
        )
        known[:, here] = recording.scores[at][:, there]
        return known

    def choose(
        self,
        position: int,
        candidates: CandidateSet,
        scores: Scores | None,
        token: int | None = None,
    ) -> Decision:
        """The steered best."""
        steered = candidates.logprobs
        if scores is not None:
            steered = steered + self.gain * (scores[0] - scores[1])
        at = int(np.argmax(steered))
        chosen = int(candidates.ids[at]) if token is None else token
        return Decision(chosen, candidates.best, 0.0, float(candidates.logprobs[at]))

    def policy(
        self, position: int, candidates: CandidateSet, scores: Scores | None
    ) -> CandidateSet:
        """All on the steered best."""
        best = self.choose(position, candidates, scores).token
        return CandidateSet(np.array([best]), np.zeros(1, np.float32))

    def alone(self, position: int, base: CandidateSet | None = None) -> CandidateSet:
        """All on the aware row's best, or on that of `base` steered."""
        if base is not None:
            return self.policy(position, base, self.head(base))
        best = self.recording.own_best[self.recording.at(position)]
        return CandidateSet(np.array([best]), np.zeros(1, np.float32))

    def uniform(self, position: int, use: Use = "choose") -> float:
        """Greedy needs none."""
        return 0.0

    def load(self, kind: Kind, tokens: int = 0, candidates: int = 0) -> Load:
        """As the real device's."""
        past = self.recording.aware_tokens + self._length
        if kind == "prefill":
            return Load(rows=2, tokens=self.recording.aware_tokens)
        if kind == "head" and not candidates:
            candidates = self.recording.vocabulary_size
        return Load(rows=2, tokens=tokens, past=past, candidates=candidates)


NO_DEVICE = DeviceCosts(step_ms=0.0)
"""For plain streaming: the device does nothing."""
