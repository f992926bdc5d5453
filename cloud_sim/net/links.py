"""One direction of an access link: a queue, a rate, a delay, and what else happens to packets.

    packet ─▶ [radio awake?] ─▶ [outage?] ─▶ bounded FIFO ─▶ rate ─▶ [lost?] ─▶ delay + jitter ─▶

A link says in closed form when a packet arrives; no clock runs in it. So the simulator asks it in
virtual time and the shaper, a real TCP proxy, in real time.

Modelled: everything in the picture. Not modelled: other users of the cell (except as recorded in a
trace), retransmission below IP (it shows as jitter), reordering (a packet never overtakes the one
before it), and routing changes other than an RTT trace's.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from cloud_sim.net.impairments import GilbertElliott, Jitter, Outages, Radio
from cloud_sim.net.rates import Rate

LOST = math.inf
"""What `Link.send` says of a packet that never arrives."""


class Delay(Protocol):
    """Propagation: what a packet's last bit takes after it has left the queue."""

    def at(self, now_ms: float) -> float:
        """One way, ms, for a packet that leaves now."""
        ...


class ConstantDelay:
    """The same propagation always."""

    def __init__(self, delay_ms: float) -> None:
        self.delay_ms = delay_ms

    def at(self, now_ms: float) -> float:
        """See `Delay`."""
        return self.delay_ms


class RecordedDelay:
    """Half of a recorded round trip, as it was at that time; the record loops.

    The record has no direction: both ways get half of the value of their own instant.
    """

    def __init__(
        self,
        times_ms: Sequence[float],
        round_trips_ms: Sequence[float],
        period_ms: float,
        *,
        offset_ms: float = 0.0,
    ) -> None:
        self._times = list(times_ms)
        self._halves = [value / 2 for value in round_trips_ms]
        self._period = period_ms
        self._offset = offset_ms

    def at(self, now_ms: float) -> float:
        """See `Delay`."""
        within = (now_ms + self._offset) % self._period
        return self._halves[max(0, bisect_right(self._times, within) - 1)]


class Link:
    """One direction. `send` must be called in order of time.

    Parameters
    ----------
    rate : when bits leave.
    delay : propagation.
    queue_bytes : what may wait, the packet being sent included; None: any amount. A packet that
        does not fit is dropped (tail drop).

    """

    def __init__(
        self,
        rate: Rate,
        delay: Delay,
        *,
        jitter: Jitter | None = None,
        loss: GilbertElliott | None = None,
        outages: Outages | None = None,
        radio: Radio | None = None,
        queue_bytes: int | None = None,
    ) -> None:
        self._finish = rate.finish
        self._constant_ms = delay.delay_ms if isinstance(delay, ConstantDelay) else None
        self.propagation_ms = delay.at
        """What an acknowledgement that leaves then would take: no queue, no jitter."""
        self._jitter, self._loss = jitter, loss
        self._outages, self._radio = outages, radio
        self._queue_bytes = queue_bytes
        self._queue: deque[tuple[float, int]] = deque()
        self._waiting_bytes = 0
        self._ready_ms = 0.0
        self._arrived_ms = 0.0
        self.packets = 0
        self.sent_bytes = 0
        self.lost_packets = 0
        self.dropped_packets = 0
        """By the full queue."""

    def send(self, now_ms: float, size_bytes: int) -> float:
        """When a packet of `size_bytes` (headers included) that is sent now arrives; or `LOST`."""
        self.packets += 1
        self.sent_bytes += size_bytes
        ready = now_ms
        if self._radio is not None:
            ready = self._radio.until(ready)
        if self._outages is not None:
            after = self._outages.until(ready)
            if after > ready and self._outages.drops:
                self.lost_packets += 1
                return LOST
            ready = after
        # An element that holds one packet back holds back those behind it.
        if ready > self._ready_ms:
            self._ready_ms = ready
        else:
            ready = self._ready_ms
        if self._queue_bytes is not None and not self._admit(now_ms, size_bytes):
            self.dropped_packets += 1
            return LOST
        left = self._finish(ready, size_bytes)
        if self._queue_bytes is not None:
            self._queue.append((left, size_bytes))
            self._waiting_bytes += size_bytes
        if self._loss is not None and self._loss.lost():
            self.lost_packets += 1
            return LOST
        constant_ms = self._constant_ms
        arrives = left + (self.propagation_ms(left) if constant_ms is None else constant_ms)
        if self._jitter is not None:
            arrives += self._jitter.extra_ms(left)
        if arrives > self._arrived_ms:
            self._arrived_ms = arrives
        return self._arrived_ms

    def _admit(self, now_ms: float, size_bytes: int) -> bool:
        queue = self._queue
        while queue and queue[0][0] <= now_ms:
            self._waiting_bytes -= queue.popleft()[1]
        return self._waiting_bytes + size_bytes <= (self._queue_bytes or 0)
