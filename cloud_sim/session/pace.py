"""How far ahead is far enough, from nothing but what the cloud sends and what comes back.

The device need not say how fast it is or how far away: a clock reading that goes up could tell
how long its private context is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

LEAST_WINDOW = 8
"""An adapted window is never smaller: the device gives credit every 4 tokens."""
SPARE = 1.5
"""Room to find out that more is possible: a window that binds grows by this factor."""
FULL = 2.0
"""Of what fits in flight, what may be on its way: the news of what was read is as old as the way
back, and what an answer that is sure of itself sends does not show what a link can take."""
QUEUE_MS = 100.0
"""What is through so soon may be on its way at any rate, however near the device is (as LEDBAT,
RFC 6817): some eight predictions wait at the device itself."""
FIRST_BYTES, FIRST_PACES = 24_000, 8
"""What may be on its way at any rate before so many paces are known: what eight branches send in
100 ms. With less they begin late on a good link; with more a slow link begins late."""


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


class Receipt(NamedTuple):
    """Of a frame: when it was sent, all bytes that were sent by then, and all that were read."""

    at_ms: float
    sent_bytes: int
    read_bytes: int


@dataclass(slots=True)
class Flow:
    """Bytes on their way to the device, and how many may be: what it has read of late in a time,
    times the shortest round trip, `FULL` times over, or times `QUEUE_MS`.

    A frame that is confirmed was read, and so was all that was sent before it. More than fits in
    flight only waits in front of what the device needs next: 8 branches on a link that has fallen
    to 60 kbit/s would take 24 to 33 times as long as none (docs/log.md, 2026-11-30).
    """

    _frames: int = 0
    _sent_bytes: int = 0
    _read_bytes: int = 0
    _begun: bool = False
    _shortest_ms: float = math.inf
    """Of all round trips: those over a full link say nothing of the link."""
    _paces: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    """Bytes a ms."""

    @property
    def room(self) -> int:
        """Frames of the usual size that still fit; none: only the most urgent should go."""
        if not self._sent_bytes:
            return FIRST_BYTES
        within_ms = max(FULL * self._shortest_ms, QUEUE_MS)
        most = max(self._paces) * within_ms if self._paces else 0.0
        if len(self._paces) < FIRST_PACES:
            most = max(most, FIRST_BYTES)
        left = most - (self._sent_bytes - self._read_bytes)
        return max(0, int(left * self._frames / self._sent_bytes))

    def sent(self, size_bytes: int, now_ms: float) -> Receipt:
        """A frame was sent."""
        self._frames += 1
        self._sent_bytes += size_bytes
        return Receipt(now_ms, self._sent_bytes, self._read_bytes)

    def read(self, frame: Receipt, now_ms: float) -> None:
        """The device has told that it has read that frame."""
        if not self._begun:
            # It was at its prompt meanwhile, so how long all this took says nothing of the link.
            self._begun, self._read_bytes = True, self._sent_bytes
        took_ms = now_ms - frame.at_ms
        if took_ms <= 0 or frame.sent_bytes <= self._read_bytes:
            return
        self._read_bytes = frame.sent_bytes
        self._shortest_ms = min(self._shortest_ms, took_ms)
        self._paces.append((self._read_bytes - frame.read_bytes) / took_ms)
