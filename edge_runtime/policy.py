"""What a schedule knows of the device: the protocol, and the record of one choice.

`edge_runtime.device.SteeredDevice` is the real one (two branches and a steering rule); tapes,
fakes and gates wrap or replace it behind the same few verbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edge_runtime.candidates import CandidateSet
from edge_runtime.schedules.actions import Kind, Load

Use = Literal["choose", "draft", "accept", "resample"]
"""What a random number is for: each use has its own stream, so that schedules draw the same."""

Scores = npt.NDArray[np.float32]
"""Raw logits [2, C] of the aware (0) and the agnostic (1) branch over a candidate set."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How one token was chosen. Logarithms are natural; the token is the device's id."""

    token: int
    base_token: int
    """What the cloud alone would have emitted (its most probable token)."""
    policy_logprob: float
    """log policy(token)."""
    base_logprob: float
    """log base(token); policy minus base is what the token tells the cloud (the ledger's entry)."""
    margin: float = float("inf")
    """Steered score of the best minus the second best: a near tie if below 1e-3."""
    source: str = "steered"
    """`steered`, `cloud` (gated or late device), `device` (late cloud)."""

    @property
    def diverged(self) -> bool:
        """Whether steering changed the token."""
        return self.token != self.base_token


class Device(Protocol):
    """The device's half of a position: two rows of keys and values, and a rule.

    Lengths count answer tokens: after `prefill` it is 0, after `extend([a, b])` it is 2.
    """

    end_ids: frozenset[int]
    """Tokens that end the answer."""

    @property
    def length(self) -> int:
        """Answer tokens in both rows' caches."""
        ...

    def prefill(self) -> None:
        """Both prompts into the caches."""
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens to both rows."""
        ...

    def rollback(self, length: int) -> None:
        """Forget all answer tokens from `length` on."""
        ...

    def head(self, candidates: CandidateSet, position: int | None = None) -> Scores:
        """Logits of both branches over `candidates.ids`: for the next position, or for an earlier
        one of those in the caches."""
        ...

    def choose(
        self,
        position: int,
        candidates: CandidateSet,
        scores: Scores | None,
        token: int | None = None,
    ) -> Decision:
        """The token for `position`: a function of these arguments and the seed alone.

        Without `scores` it is the cloud's own token, unsteered (gated, or the device is late).

        With `token`, the record of that token instead of the own draw (a draft that was accepted).
        """
        ...

    def policy(self, position: int, candidates: CandidateSet, scores: Scores) -> CandidateSet:
        """The distribution that `choose` draws from, normalised, after temperature and top-p.

        Greedy: the one best token with log-probability 0.
        """
        ...

    def alone(self, position: int, base: CandidateSet | None = None) -> CandidateSet:
        """The aware model's own distribution for the next position, after the sampler's rule.

        `base`, the last prediction known from the cloud, may be blended in. For drafts, and for
        tokens that the cloud is too late for.
        """
        ...

    def uniform(self, position: int, use: Use) -> float:
        """The random number in [0, 1) for one use at one position: a function of the seed."""
        ...

    def load(self, kind: Kind, tokens: int = 0, candidates: int = 0) -> Load:
        """How big that piece of work would be now."""
        ...
