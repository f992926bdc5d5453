"""How far ahead is far enough, from nothing but what the cloud sends and what comes back.

The device need not say how fast it is or how far away: a clock reading that goes up could tell
how long its private context is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

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


LEARN = 0.05
"""How far one observed token moves the sharpness."""


@dataclass(slots=True)
class Odds:
    """How likely the device takes which of the cloud's tokens; learns as the answer goes on.

    Steering adds something unknown to each log-probability and takes the best, so what is far
    behind hardly ever wins: chances are taken to be the cloud's probabilities to a power,
    `sharpness`, normalised. Its start is a fit to steered answers (gains .48 and 1); each token
    that the device tells moves it up the gradient of that token's log-chance.
    """

    sharpness: float = 2.3

    def chances(self, base: CandidateSet) -> npt.NDArray[np.float64]:
        """Logarithms of the chances of `base.ids`."""
        sharp = self.sharpness * base.logprobs.astype(np.float64)
        sharp -= sharp.max()
        return sharp - math.log(np.exp(sharp).sum())

    def observe(self, base: CandidateSet, token: int) -> None:
        """The device took `token`."""
        at = np.flatnonzero(base.ids == token)
        logprobs = base.logprobs.astype(np.float64)
        taken = float(logprobs[at[0]]) if len(at) else float(logprobs.min())
        expected = float((np.exp(self.chances(base)) * logprobs).sum())
        step = LEARN * min(max(taken - expected, -4.0), 4.0)
        self.sharpness = min(max(self.sharpness + step, 0.5), 8.0)

    def children(self, base: CandidateSet, most: int) -> list[tuple[int, float]]:
        """The `most` likeliest next tokens with the logarithms of their chances, best first."""
        order = np.lexsort((base.ids, -base.logprobs))[:most]
        chances = self.chances(base)
        return [(int(base.ids[index]), float(chances[index])) for index in order]
