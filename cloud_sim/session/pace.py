"""How far ahead is far enough, from nothing but what the cloud sends and what comes back.

The device need not say how fast it is or how far away: a clock reading that goes up could tell
how long its private context is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from edge_runtime.candidates import CandidateSet

LEAST_WINDOW = 8
"""An adapted window is never smaller: the device gives credit every 4 tokens."""
SPARE = 1.5
"""Room to find out that more is possible: a window that binds grows by this factor."""


@dataclass(slots=True)
class Window:
    """Positions to be ahead: pace of the confirmed tokens times the shortest round trip.

    That is what fits 'in flight' (as in BBR, Cardwell et al. 2016): more would only be wasted at
    the next divergence, less would leave the device waiting. `fixed` > 0: that number, always.
    """

    fixed: int
    limit: int
    _sent: dict[int, tuple[float, int]] = field(default_factory=dict)
    _confirmed: int = 0
    _round_trips_ms: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    _paces: deque[float] = field(default_factory=lambda: deque(maxlen=16))

    @property
    def size(self) -> int:
        """The window now."""
        if self.fixed:
            return min(self.fixed, self.limit)
        if not self._paces:
            return min(2 * LEAST_WINDOW, self.limit)
        in_flight = max(self._paces) * min(self._round_trips_ms)
        return min(max(LEAST_WINDOW, math.ceil(SPARE * in_flight) + 4), self.limit)

    def sent(self, position: int, now_ms: float) -> None:
        """The prediction for `position` on the best path was sent."""
        self._sent[position] = (now_ms, self._confirmed)

    def confirmed(self, answer_tokens: int, now_ms: float) -> None:
        """The device has told that the answer has `answer_tokens` tokens."""
        self._confirmed = max(self._confirmed, answer_tokens)
        sent = self._sent.get(answer_tokens - 1)
        for old in [p for p in self._sent if p < answer_tokens]:
            del self._sent[old]
        if sent is None or now_ms <= sent[0]:
            return
        self._round_trips_ms.append(now_ms - sent[0])
        self._paces.append((answer_tokens - sent[1]) / (now_ms - sent[0]))


_SURE = (0.5, 0.7, 0.9, 0.97)
_AGREE = (0.55, 0.75, 0.88, 0.96, 0.995)
_WEIGHT = 8.0


@dataclass(slots=True)
class Odds:
    """How likely the device takes which of the cloud's tokens; learns as the answer goes on.

    Agreement with the best token is counted by how sure the cloud was; the rest is shared among
    the others as the cloud would share it. Starts from round numbers worth 8 observations each.
    """

    _agreed: list[float] = field(default_factory=lambda: [a * _WEIGHT for a in _AGREE])
    _seen: list[float] = field(default_factory=lambda: [_WEIGHT] * len(_AGREE))

    def of_best(self, best_logprob: float) -> float:
        """The chance that the device takes the cloud's best token."""
        sure = int(np.searchsorted(_SURE, math.exp(best_logprob)))
        return self._agreed[sure] / self._seen[sure]

    def observe(self, best_logprob: float, agreed: bool) -> None:
        """The device did or did not take the best token."""
        sure = int(np.searchsorted(_SURE, math.exp(best_logprob)))
        self._seen[sure] += 1
        self._agreed[sure] += agreed

    def children(self, base: CandidateSet, most: int) -> list[tuple[int, float]]:
        """The `most` likeliest next tokens with the logarithms of their chances, best first."""
        order = np.lexsort((base.ids, -base.logprobs))[:most]
        best = self.of_best(float(base.logprobs[order[0]]))
        children = [(int(base.ids[order[0]]), math.log(best))]
        others = np.exp(base.logprobs.astype(np.float64))
        rest = float(others.sum() + base.left_out - others[order[0]])
        for index in order[1:]:
            chance = (1 - best) * float(others[index]) / max(rest, 1e-12)
            if chance > 0:
                children.append((int(base.ids[index]), math.log(chance)))
        return children
