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
from typing import NamedTuple

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


class Choice(NamedTuple):
    """A token that the device may take, the logarithm of its chance, and what to believe then."""

    token: int
    chance: float
    belief: Belief


class Belief(NamedTuple):
    """`weights` [len(POWERS)], summing to one."""

    weights: Weights = EQUAL

    def choices(self, base: CandidateSet, most: int) -> list[Choice]:
        """The `most` likeliest tokens after `base`, best first; of equals the lower id."""
        at, each = _chances(base)
        order = np.argsort(-base.logprobs[at], kind="stable")[:most]
        chances, moved = self._moved(each[:, order])
        tokens = base.ids[at[order]].tolist()
        beliefs = map(Belief, moved)
        return list(map(Choice, tokens, map(math.log, chances), beliefs))

    def after(self, base: CandidateSet, token: int) -> Belief:
        """What to believe when the device took `token`."""
        at, each = _chances(base)
        found = np.flatnonzero(base.ids[at] == token)
        index = int(found[0]) if len(found) else int(np.argmin(base.logprobs[at]))
        _, moved = self._moved(each[:, [index]])
        return Belief(moved[0])

    def _moved(self, each: Weights) -> tuple[list[float], Weights]:
        """Of the tokens with chances `each` [len(POWERS), n] by power: what is believed of each
        [n], and the weights after it [n, len(POWERS)]."""
        joint = self.weights * (each.T + NEVER)
        chances = joint.sum(axis=1)
        moved = (1 - SHARE) * joint / chances[:, None] + SHARE * EQUAL
        return chances.tolist(), moved


UNTOLD = Belief()
"""Before the device has told anything."""


def _chances(base: CandidateSet) -> tuple[npt.NDArray[np.int64], Weights]:
    """Indices into `base` [C], ids ascending, and their chances [len(POWERS), C] by power."""
    at = best_ids(base.logprobs, LOOKED_AT)
    logprobs = base.logprobs[at].astype(np.float64)
    each = np.exp(POWERS[:, None] * (logprobs - logprobs.max()))
    return at, each / each.sum(axis=1, keepdims=True)
