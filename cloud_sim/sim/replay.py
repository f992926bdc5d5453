"""A tape in the place of the models: a cloud model and a device's branches that look things up.

    replay = Replay(tape, method, sampler)              offline: leaving the path is refused
    replay = Replay(tape, method, sampler, cloud=..., branches=..., prompts=...)
    transcript = simulate(lockstep(replay.device(), replay.request(max_tokens)),
                          replay.session(), uplink=..., ...)

Devices and sessions are one per run; what a rule chose at a recorded position is remembered, so
that replaying over many links costs no arithmetic twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cloud_sim.model import CloudModel, ScoreRequest
from cloud_sim.session import Limits, session
from cloud_sim.sim.tape import Node, Tape, TapeCodec, child, left_path
from edge_runtime.candidates import CandidateSet, Codec
from edge_runtime.device import Branches, SteeredDevice
from edge_runtime.errors import UsageError
from edge_runtime.policy import Decision, Scores
from edge_runtime.sampling import GREEDY, Sampler
from edge_runtime.schedules.actions import Session
from edge_runtime.schedules.exchange import Request
from edge_runtime.steering import Method
from edge_runtime.text import Prompts


@dataclass(slots=True)
class Replay:
    """A tape, the rule to replay under, and the models for what is not on the tape, if any."""

    tape: Tape
    method: Method
    sampler: Sampler = GREEDY
    cloud: CloudModel | None = None
    branches: Branches | None = None
    prompts: Prompts | None = None
    """The real prompts: needed with `branches`."""
    codec: TapeCodec = field(init=False)
    stand_ins: int = 0
    """Guesses of the cloud that were made up."""
    asked: int = 0
    """Positions that the models were asked for."""
    _decisions: dict[int, tuple[Scores, Decision]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.codec = TapeCodec(self.tape.codec)

    def request(self, max_tokens: int) -> Request:
        """What the device asks for."""
        return Request(self.tape.query, self.tape.vocabulary, self.codec, max_tokens)

    def device(self) -> ReplayedDevice:
        """The device of one run."""
        return ReplayedDevice(self)

    def session(self, limits: Limits | None = None) -> Session:
        """The cloud's half of one run."""
        limits = limits or Limits()
        return session(TapeCloud(self), limits, lambda: "0" * 16)

    def codec_called(self, name: str) -> Codec:
        """The tape's codec. Raises `UsageError` for another."""
        if name != self.tape.codec:
            raise UsageError(
                "tape", "another codec was recorded", got=name, allowed=self.tape.codec
            )
        return self.codec

    def notes(self) -> list[str]:
        """What a user should know about this replay."""
        notes = []
        if self.asked:
            notes.append(
                f"left the recorded path: the models were asked for {self.asked} positions"
            )
        if self.stand_ins:
            notes.append(f"{self.stand_ins} guesses of the cloud beyond the tape were stood in for")
        return notes


class ReplayedDevice(SteeredDevice):
    """The real device's code over recorded branches; remembers what it chose."""

    def __init__(self, replay: Replay) -> None:
        aware, agnostic = replay.tape.prompt_lengths
        # A tape has no prompts: their length is all that costs are made of.
        prompts = replay.prompts or Prompts((0,) * aware, (0,) * agnostic, names=replay.tape.names)
        branches = TapeBranches(replay, prompts)
        super().__init__(branches, prompts, replay.method, replay.sampler, replay.tape.end_ids)
        self._decisions = replay._decisions

    def choose(
        self,
        position: int,
        candidates: CandidateSet,
        scores: Scores | None,
        token: int | None = None,
    ) -> Decision:
        """As `SteeredDevice.choose`, once for each recorded position."""
        if scores is None or token is not None:
            return super().choose(position, candidates, scores, token)
        # The array itself is kept beside the decision, so its id cannot be another array's.
        known = self._decisions.get(id(scores))
        if known is None or known[0] is not scores:
            known = (scores, super().choose(position, candidates, scores))
            self._decisions[id(scores)] = known
        return known[1]


class TapeBranches:
    """`Branches` that look the scores up."""

    def __init__(self, replay: Replay, prompts: Prompts) -> None:
        self._replay, self._prompts = replay, prompts
        self.vocabulary_size = replay.tape.vocabulary_size
        self._longest = max(len(prompts.aware), len(prompts.agnostic))
        self._path: list[Node] = [replay.tape.root]
        self._tokens: list[int] = []
        self._in_model = -1
        """Answer tokens that the real branches hold; -1: not even the prompts."""

    @property
    def length(self) -> int:
        """Answer tokens."""
        return len(self._tokens)

    @property
    def past(self) -> int:
        """Tokens in the longer row."""
        return self._longest + len(self._tokens)

    def prefill(self, aware: Sequence[int], agnostic: Sequence[int], *, note: int = 0) -> None:
        """Begin an answer."""
        self.rollback(0)
        self._in_model = -1

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens."""
        for token in tokens:
            self._tokens.append(token)
            self._path.append(child(self._path[-1], token))

    def rollback(self, length: int) -> None:
        """Forget answer tokens."""
        del self._path[length + 1 :]
        del self._tokens[length:]
        if self._replay.branches is not None and self._in_model > length:
            self._replay.branches.rollback(length)
            self._in_model = length

    def logits(self, ids: np.ndarray | None = None, position: int | None = None) -> Scores:
        """The recorded scores, or the model's."""
        node = self._path[-1 if position is None else position]
        wanted = self.vocabulary_size if ids is None else len(ids)
        scores = node.scores
        if scores is not None and scores.shape[1] == wanted:
            return scores
        if scores is not None and ids is not None and scores.shape[1] == self.vocabulary_size:
            return scores[:, ids]
        return self._ask(node, ids)

    def _ask(self, node: Node, ids: np.ndarray | None) -> Scores:
        branches = self._replay.branches
        if branches is None:
            raise left_path(self._replay.tape, node.position, "small model")
        if self._in_model < 0:
            branches.prefill(self._prompts.aware, self._prompts.agnostic)
            self._in_model = 0
        if self._in_model < len(self._tokens):
            branches.extend(self._tokens[self._in_model :])
            self._in_model = len(self._tokens)
        self._replay.asked += 1
        node.scores = branches.logits(ids, node.position).copy()
        return node.scores


@dataclass(slots=True)
class _Sequence:
    tokens: list[int]
    path: list[Node]
    """The nodes of the answer prefixes it holds, the empty one first."""


class TapeCloud:
    """A `CloudModel` that looks predictions up; its rows are nodes, which `TapeCodec` encodes."""

    def __init__(self, replay: Replay) -> None:
        tape = replay.tape
        self._replay, self._tape = replay, tape
        self.name, self.vocabulary = tape.model, tape.vocabulary
        self.vocabulary_size, self.end_ids = tape.vocabulary_size, tape.end_ids
        self.codec_called = replay.codec_called

    def prompt(self, query: str) -> list[int]:
        """The recorded prompt. Raises `UsageError` for another query."""
        if query != self._tape.query:
            raise UsageError("tape", "another query was recorded", got=query[:60])
        return list(self._tape.prompt)

    def open(self) -> _Sequence:
        """A new sequence."""
        return _Sequence([], [self._tape.root])

    def fork(self, sequence: _Sequence, keep: int) -> _Sequence:
        """A new sequence with the first `keep` tokens of another."""
        answer = max(0, keep - len(self._tape.prompt))
        return _Sequence(sequence.tokens[:keep], sequence.path[: answer + 1])

    def close(self, sequence: _Sequence) -> None:
        """Nothing to free."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Any]:
        """Recorded predictions, as nodes."""
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> list[Node]:
        sequence, prompt = request.sequence, len(self._tape.prompt)
        sequence.tokens[request.keep :] = request.tokens
        path, kept = sequence.path, request.keep - prompt
        if kept < 0:
            kept, new = 0, sequence.tokens[prompt:]
        else:
            new = request.tokens
        del path[kept + 1 :]
        for token in new:
            path.append(child(path[-1], token))
        wanted = path[-len(request.tokens) :] if request.every else path[-1:]
        for node in wanted:
            if node.payload is None or (node.stand_in and not request.speculative):
                self._find(node, sequence.tokens, path, request.speculative)
        return wanted

    def _find(self, node: Node, tokens: list[int], path: list[Node], speculative: bool) -> None:
        replay = self._replay
        if replay.cloud is not None:
            model = replay.cloud
            sequence = model.open()
            upto = tuple(tokens[: len(self._tape.prompt) + node.position])
            (logprobs,) = model.score([ScoreRequest(model, sequence, 0, upto)])
            model.close(sequence)
            node.payload, node.stand_in = replay.codec.encode(logprobs[-1]), False
            replay.asked += 1
            return
        recorded = next((n for n in reversed(path) if n.payload is not None), None)
        if not speculative or recorded is None:
            raise left_path(self._tape, node.position, "cloud")
        node.payload, node.stand_in = recorded.payload, True
        replay.stand_ins += 1
