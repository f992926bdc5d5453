"""What the far end does with segments: hands over whole messages, in order or each for itself."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial

from cloud_sim.net.transport import Timers


class Message:
    """One message on its way, and how many of its segments have not arrived."""

    __slots__ = ("deliver", "missing")

    def __init__(self, segments: int, deliver: Callable[[], None]) -> None:
        self.missing = segments
        self.deliver = deliver


class Delivery:
    """Messages that are not complete, or complete behind one that is not (head-of-line blocking).

    Parameters
    ----------
    ordered : a message waits for all before it (TCP), or for none (QUIC's streams).

    """

    def __init__(self, timers: Timers, *, ordered: bool) -> None:
        self._timers, self._ordered = timers, ordered
        self.open: deque[Message] = deque()
        """Not handed over yet, in the order of sending."""

    def begin(self, segments: int, deliver: Callable[[], None]) -> Message:
        """A message of that many segments will arrive."""
        message = Message(segments, deliver)
        self.open.append(message)
        return message

    def expect(self, message: Message, segments: int, arrives_ms: float) -> None:
        """So many more of its segments are there then."""
        if segments:
            self._timers.at(arrives_ms, partial(self._arrived, message, segments))

    def _arrived(self, message: Message, segments: int) -> None:
        message.missing -= segments
        if not self._ordered:
            if message.missing == 0:
                self.open.remove(message)
                message.deliver()
            return
        waiting = self.open
        if not waiting or waiting[0].missing:
            return
        deliver = waiting.popleft().deliver
        # Whom a delivery wakes may let time go by: those that are due now are due before.
        while waiting and waiting[0].missing == 0:
            self._timers.at(-math.inf, waiting.popleft().deliver)
        deliver()
