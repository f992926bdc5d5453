"""How far ahead is far enough, from nothing but what the cloud sends and what comes back.

The device need not say how fast it is or how far away: a clock reading that goes up could tell
how long its private context is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

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
