"""The devices that schedules drive: two branches and a rule, or no model at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from edge_runtime.candidates import CandidateSet
from edge_runtime.policy import Decision, Scores
from edge_runtime.schedules.actions import Kind, Load
from edge_runtime.steering import GREEDY, PRESETS, Method, Sampler, log_softmax, policy
from edge_runtime.text import Prompts


class Branches(Protocol):
    """What a device needs of `edge_runtime.branches.TwoBranches`; lengths count answer tokens."""

    vocabulary_size: int

    @property
    def length(self) -> int:
        """Answer tokens in both rows."""
        ...

    @property
    def past(self) -> int:
        """Tokens in the longer row, prompt included."""
        ...

    def prefill(self, aware: Sequence[int], agnostic: Sequence[int]) -> None:
        """Begin an answer: both prompts, nothing after them."""
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens to both rows."""
        ...

    def rollback(self, length: int) -> None:
        """Forget the answer's tokens from `length` on."""
        ...

    def logits(self, ids: np.ndarray | None = None) -> Scores:
        """Raw logits [2, C] for the next position over `ids` (None: the whole vocabulary)."""
        ...


def choose(
    method: Method, sampler: Sampler, position: int, candidates: CandidateSet, scores: Scores
) -> Decision:
    """The token for `position`: a function of the arguments alone.

    Log-probabilities in the decision are those at the sampler's temperature (greedy: at 1).
    """
    steered = policy(method, candidates, scores, position)
    at = sampler.index(steered.policy, position)
    base, chosen = steered.base, steered.policy
    margin = float("inf")
    if len(chosen) > 1:
        second, best = np.partition(chosen, len(chosen) - 2)[-2:]
        margin = float(best - second)
    if sampler.temperature not in (0, 1):
        base, chosen = (log_softmax(x / x.dtype.type(sampler.temperature)) for x in (base, chosen))
    cloud = method.asks_cloud
    return Decision(
        token=int(steered.ids[at]),
        base_token=candidates.best if cloud else int(steered.ids[int(np.argmax(steered.base))]),
        policy_logprob=float(chosen[at]),
        base_logprob=float(base[at]),
        margin=margin,
        source=("steered" if method.steers else "cloud") if cloud else "device",
    )


class SteeredDevice:
    """Two branches of a small model, the prompts of one question, and a rule.

    One per answer; `branches` may be used again by the next one (`prefill` starts afresh).
    """

    def __init__(
        self,
        branches: Branches,
        prompts: Prompts,
        method: Method,
        sampler: Sampler = GREEDY,
        end_ids: Iterable[int] = (),
    ) -> None:
        self.branches = branches
        self.prompts = prompts
        self.method = method
        self.sampler = sampler
        self.end_ids = frozenset(end_ids)

    @property
    def length(self) -> int:
        """Answer tokens in both rows' caches."""
        return self.branches.length

    def prefill(self) -> None:
        """Both prompts into the caches."""
        self.branches.prefill(self.prompts.aware, self.prompts.agnostic)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens to both rows."""
        self.branches.extend(tokens)

    def rollback(self, length: int) -> None:
        """Forget all answer tokens from `length` on."""
        self.branches.rollback(length)

    def head(self, candidates: CandidateSet) -> Scores:
        """Logits [2, C] over the candidates, or [2, V] where the rule needs normalisers."""
        whole = self.method.full_head or candidates.full
        return self.branches.logits(None if whole else candidates.ids)

    def choose(self, position: int, candidates: CandidateSet, scores: Scores) -> Decision:
        """The token for `position`."""
        return choose(self.method, self.sampler, position, candidates, scores)

    def load(self, kind: Kind, tokens: int = 0, candidates: int = 0) -> Load:
        """How big that piece of work would be now."""
        if kind == "prefill":
            longest = max(len(self.prompts.aware), len(self.prompts.agnostic))
            return Load(rows=2, tokens=longest)
        if kind == "head" and self.method.full_head:
            candidates = self.branches.vocabulary_size
        return Load(rows=2, tokens=tokens, past=self.branches.past, candidates=candidates)


class CloudOnlyDevice:
    """No model: takes what the cloud says (`cloud-only`, `upload`)."""

    def __init__(
        self,
        sampler: Sampler = GREEDY,
        end_ids: Iterable[int] = (),
        method: Method = PRESETS["cloud-only"],
    ) -> None:
        self.sampler = sampler
        self.end_ids = frozenset(end_ids)
        self.method = method
        self._length = 0

    @property
    def length(self) -> int:
        """Answer tokens so far."""
        return self._length

    def prefill(self) -> None:
        """Nothing to compute."""
        self._length = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Count the tokens."""
        self._length += len(tokens)

    def rollback(self, length: int) -> None:
        """Count fewer."""
        self._length = length

    def head(self, candidates: CandidateSet) -> Scores:
        """Zeros [2, C]: no opinion."""
        return np.zeros((2, len(candidates.ids)), np.float32)

    def choose(self, position: int, candidates: CandidateSet, scores: Scores) -> Decision:
        """The cloud's token."""
        return choose(self.method, self.sampler, position, candidates, scores)

    def load(self, kind: Kind, tokens: int = 0, candidates: int = 0) -> Load:
        """No work."""
        return Load(rows=0)
