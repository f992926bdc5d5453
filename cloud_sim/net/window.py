"""How many segments may be in flight: NewReno's window (RFC 5681; RFC 9002, section 7).

Ten segments at first (RFC 6928), slow start, halved once for all losses of one flight, then one
segment more a round trip. It grows only by flights that filled it (RFC 7661; Linux), and begins
anew after a long silence (RFC 2861). Not modelled: CUBIC's and BBR's windows, pacing.
"""

from __future__ import annotations

import math
from collections import deque

MOST_SEGMENTS = 1000.0
"""About what a receiver's buffer of 1.5 MB allows."""
LEAST_SEGMENTS = 2.0


class Window:
    """The window, and the acknowledgements that are on their way back."""

    __slots__ = (
        "_halved_ms", "_hole_ms", "_initial", "_mended_ms", "_threshold", "acks", "filled_ms",
        "segments",
    )  # fmt: skip

    def __init__(self, initial: int) -> None:
        self._initial = self.segments = float(initial)
        self._threshold = math.inf
        """From there on the window grows by a segment a round trip."""
        self.acks: deque[float] = deque()
        """When the acknowledgement of each segment in flight comes back, ascending."""
        self.filled_ms = -math.inf
        """Acknowledgements until then are of flights that filled at least half of the window."""
        self._halved_ms = self._mended_ms = self._hole_ms = -math.inf
        """When the window was halved, for all that had been sent by then; when the last of that is
        acknowledged; when all is that was sent before the oldest segment missing."""

    @property
    def grown(self) -> bool:
        """Whether it is larger than at first."""
        return self.segments > self._initial

    def take(self, now_ms: float, *, missing: bool) -> None:
        """Acknowledgements that are back open the window, and make it grow.

        Not those of segments sent after one that is `missing`, or before the window was halved.
        """
        acks = self.acks
        while acks and acks[0] <= now_ms:
            acked = acks.popleft()
            whole = not missing or acked <= self._hole_ms
            if whole and self._mended_ms < acked <= self.filled_ms:
                slow_start = self.segments < self._threshold
                more = 1.0 if slow_start else 1.0 / self.segments
                self.segments = min(MOST_SEGMENTS, self.segments + more)

    def hole(self, now_ms: float) -> None:
        """The segment that was just sent is lost, and nothing before it is missing."""
        self._hole_ms = self.acks[-1] if self.acks else now_ms

    def halve(self, sent_ms: float, now_ms: float, *, anew: bool) -> None:
        """A segment sent then is lost: half of the window, once for a flight.

        `anew`: beginning at what is in flight and one more (RFC 6937's slow start).
        """
        if sent_ms <= self._halved_ms:
            return
        self._halved_ms = now_ms
        self._mended_ms = self.acks[-1] if self.acks else now_ms
        self.segments = self._threshold = max(LEAST_SEGMENTS, self.segments / 2)
        if anew:
            self.segments = min(self.segments, len(self.acks) + 1.0)

    def one(self) -> None:
        """A timeout: everything in flight counts as lost (RFC 5681, 3.1)."""
        self.segments = 1.0

    def restart(self) -> None:
        """What was learnt before a long silence no longer holds."""
        self.segments = self._initial
