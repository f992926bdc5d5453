"""The devices that schedules drive: two branches and a rule, or no model at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from edge_runtime.candidates import CandidateSet
from edge_runtime.errors import UsageError
from edge_runtime.policy import Decision, Scores, Use
from edge_runtime.rules import PRESETS
from edge_runtime.sampling import GREEDY, Sampler
from edge_runtime.schedules.actions import Kind, Load
from edge_runtime.steering import AWARE, Method, log_softmax, policy
from edge_runtime.text import Prompts

CLOUD = PRESETS["cloud-only"]


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

    def prefill(self, aware: Sequence[int], agnostic: Sequence[int], *, note: int = 0) -> None:
        """Begin an answer: both prompts, nothing after them; `note` tokens of the aware one are
        the private note (see `text.Prompts`)."""
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens to both rows."""
        ...

    def rollback(self, length: int) -> None:
        """Forget the answer's tokens from `length` on."""
        ...

    def logits(self, ids: np.ndarray | None = None, position: int | None = None) -> Scores:
        """Raw logits [2, C] over `ids` (None: the whole vocabulary), for the answer's `position`
        (None: the next one)."""
        ...


def choose(
    method: Method,
    sampler: Sampler,
    position: int,
    candidates: CandidateSet,
    scores: Scores | None,
    token: int | None = None,
) -> Decision:
    """The token for `position`, or the record of `token`: a function of the arguments alone.

    Without `scores` the cloud's own prediction is the policy. Log-probabilities in the decision
    are those at the sampler's temperature (greedy: at 1).
    """
    rule = method if scores is not None else CLOUD
    steered = policy(rule, candidates, scores, position)
    ids, base, chosen = steered.ids, steered.base, steered.policy
    best, margin = int(chosen.argmax()), float("inf")
    if len(chosen) > 1:
        others = chosen.copy()
        others[best] = -np.inf
        margin = float(chosen[best] - np.maximum.reduce(others))
    if token is None and sampler.temperature == 0:
        at, known, token = best, True, int(ids[best])
    else:
        if token is None:
            token = sampler.token(ids, chosen, position)
        at = int(ids.searchsorted(token))
        known = at < len(ids) and ids[at] == token
    if sampler.temperature not in (0, 1):
        base, chosen = (log_softmax(x / x.dtype.type(sampler.temperature)) for x in (base, chosen))
    cloud = rule.asks_cloud
    return Decision(
        token=token,
        base_token=candidates.best if cloud else int(ids[base.argmax()]),
        policy_logprob=float(chosen[at]) if known else -np.inf,
        base_logprob=float(base[at]) if known else -np.inf,
        margin=margin,
        source=("steered" if rule.steers else "cloud") if cloud else "device",
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
        self.method = method.about(prompts.names)
        self._full_head = self.method.full_head
        self.sampler = sampler
        self.end_ids = frozenset(end_ids)

    @property
    def decisions(self) -> list[str]:
        """What was given up for a budget, one line each: nothing, without a governor."""
        return []

    @property
    def length(self) -> int:
        """Answer tokens in both rows' caches."""
        return self.branches.length

    def prefill(self) -> None:
        """Both prompts into the caches."""
        prompts = self.prompts
        self.branches.prefill(prompts.aware, prompts.agnostic, note=prompts.note)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens to both rows."""
        self.branches.extend(tokens)

    def rollback(self, length: int) -> None:
        """Forget all answer tokens from `length` on."""
        self.branches.rollback(length)

    def head(self, candidates: CandidateSet, position: int | None = None) -> Scores:
        """Logits [2, C] over the rule's support, or [2, V] where it needs normalisers; for
        `position`, which may be an earlier one than the next."""
        whole = self._full_head or candidates.full
        ids = None if whole else self.method.support(candidates)
        return self.branches.logits(ids, position)

    def choose(
        self,
        position: int,
        candidates: CandidateSet,
        scores: Scores | None,
        token: int | None = None,
    ) -> Decision:
        """The token for `position`, or the record of `token`; no scores: the cloud's own."""
        return choose(self.method, self.sampler, position, candidates, scores, token)

    def policy(
        self, position: int, candidates: CandidateSet, scores: Scores | None
    ) -> CandidateSet:
        """The distribution that `choose` draws from."""
        rule = self.method if scores is not None else CLOUD
        steered = policy(rule, candidates, scores, position)
        return self.sampler.distribution(steered.ids, steered.policy)

    def alone(self, position: int, base: CandidateSet | None = None) -> CandidateSet:
        """The aware model's own distribution for the next position, after the sampler's rule;
        with `base`, what the rule makes of that prediction instead."""
        if base is not None:
            return self.policy(position, base, self.head(base))
        aware = self.branches.logits()[AWARE]
        return self.sampler.distribution(np.arange(len(aware)), aware)

    def uniform(self, position: int, use: Use = "choose") -> float:
        """The random number in [0, 1) for one use at one position."""
        return self.sampler.uniform(position, use)

    def load(self, kind: Kind, tokens: int = 0, candidates: int = 0) -> Load:
        """How big that piece of work would be now."""
        if kind == "prefill":
            longest = max(len(self.prompts.aware), len(self.prompts.agnostic))
            return Load(rows=2, tokens=longest)
        if kind == "head" and self._full_head:
            candidates = self.branches.vocabulary_size
        elif kind == "head":
            candidates += len(self.method.names)
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
    def decisions(self) -> list[str]:
        """Nothing to give up."""
        return []

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

    def head(self, candidates: CandidateSet, position: int | None = None) -> Scores:
        """Zeros [2, C]: no opinion."""
        return np.zeros((2, len(candidates.ids)), np.float32)

    def choose(
        self,
        position: int,
        candidates: CandidateSet,
        scores: Scores | None,
        token: int | None = None,
    ) -> Decision:
        """The cloud's token, or the record of `token`."""
        return choose(self.method, self.sampler, position, candidates, None, token)

    def policy(
        self, position: int, candidates: CandidateSet, scores: Scores | None
    ) -> CandidateSet:
        """The cloud's prediction, after the sampler's rule."""
        return self.sampler.distribution(candidates.ids, log_softmax(candidates.logprobs))

    def alone(self, position: int, base: CandidateSet | None = None) -> CandidateSet:
        """The last known prediction: there is no model to ask."""
        if base is None:
            raise UsageError(
                "device",
                "without a bundle there is nothing to draft from",
                todo="Use another schedule, or a method that runs the small model",
            )
        return self.policy(position, base, None)

    def uniform(self, position: int, use: Use = "choose") -> float:
        """The random number in [0, 1) for one use at one position."""
        return self.sampler.uniform(position, use)

    def load(self, kind: Kind, tokens: int = 0, candidates: int = 0) -> Load:
        """No work."""
        return Load(rows=0)
