"""How likely the device takes which of the cloud's tokens, learned from the tokens it tells.

Steering adds something that the cloud does not know to each log-probability and takes the best.
Were that a Gumbel number of one spread for all tokens, a token's chance would be the cloud's
probability to a power, normalised: a high power for a light hand, a low one for a heavy hand. How
heavy it is changes within an answer (a name from the note comes in several surprising pieces), so
a belief is a mixture of powers, moved by Bayes' rule with each token. A share of it always goes
back to the start ("fixed share", Herbster and Warmuth 1998), so that it can turn.

On 20 recorded answers a gain (docs/schedules.md) this costs 0.25 nats a token at gain 0.476 and
0.81 at 1.0; one power, moved by its gradient, cost 0.26 and 0.88.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edge_runtime.candidates import CandidateSet, best_ids

POWERS = np.array([0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 6.0])
EQUAL = np.full(len(POWERS), 1 / len(POWERS))
SHARE = 0.02
"""Of a belief, what goes back to equal weights at each token."""
LOOKED_AT = 256
"""Candidates of one prediction; those behind are taken for the last of them."""
NEVER = 1e-9
"""A chance to add, so that no token is impossible."""

Weights = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """A token that the device may take, the logarithm of its chance, and what to believe then."""

    token: int
    chance: float
    belief: Belief


@dataclass(frozen=True, slots=True)
class Belief:
    """`weights` [len(POWERS)], summing to one."""

    weights: Weights = field(default_factory=lambda: EQUAL)

    def choices(self, base: CandidateSet, most: int) -> list[Choice]:
        """The `most` likeliest tokens after `base`, best first; of equals the lower id."""
        at, each = _chances(base)
        order = np.argsort(-base.logprobs[at], kind="stable")[:most]
        return [self._choice(int(base.ids[at[index]]), each[:, index]) for index in order]

    def after(self, base: CandidateSet, token: int) -> Belief:
        """What to believe when the device took `token`."""
        at, each = _chances(base)
        found = np.flatnonzero(base.ids[at] == token)
        index = int(found[0]) if len(found) else int(np.argmin(base.logprobs[at]))
        return self._choice(token, each[:, index]).belief

    def _choice(self, token: int, each: Weights) -> Choice:
        joint = self.weights * (each + NEVER)
        chance = float(joint.sum())
        moved = (1 - SHARE) * joint / chance + SHARE * EQUAL
        return Choice(token, math.log(chance), Belief(moved))


def _chances(base: CandidateSet) -> tuple[npt.NDArray[np.int64], Weights]:
    """Indices into `base` [C], ids ascending, and their chances [len(POWERS), C] by power."""
    at = best_ids(base.logprobs, LOOKED_AT)
    logprobs = base.logprobs[at].astype(np.float64)
    each = np.exp(POWERS[:, None] * (logprobs - logprobs.max()))
    return at, each / each.sum(axis=1, keepdims=True)
