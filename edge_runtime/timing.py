"""Where a token's time went, so that the parts add up to the total.

One `TokenClock` serves the real-time and the virtual-time driver: both tell it what happened and
when, on their own clock. The time between two emitted tokens is cut into the intervals in which
the schedule computed (`device`, `steer`) and those in which it waited for a frame. A wait is
attributed backwards from the frame's arrival, along what that frame went through: down, cloud
compute, cloud queue; what is left before is the way up if the device had sent something that the
wait was for, and `wait` (for example on flow control) if not. Device work that overlaps the
cloud's is therefore charged to the device only as far as it was what the user waited for.
"""

from __future__ import annotations

import time

import msgspec

from edge_runtime.schedules.actions import Kind
from edge_runtime.wire import Stamp


def now_ms() -> float:
    """The clock of everything that runs in real time: monotonic, its zero means nothing."""
    return time.monotonic() * 1e3


class Parts(msgspec.Struct):
    """Milliseconds of one token's time on the critical path; `total` is their sum."""

    device: float = 0.0
    """Prefill, steps and head of the small model."""
    steer: float = 0.0
    """Decoding candidates, combining, choosing."""
    uplink: float = 0.0
    queue: float = 0.0
    """In the cloud, behind other sessions."""
    cloud: float = 0.0
    downlink: float = 0.0
    wait: float = 0.0
    """For nothing that was asked for: flow control, reconnection."""
    host: float = 0.0
    """The driver itself: threads, event loop, encoding."""

    @property
    def total(self) -> float:
        """Sum of all parts, ms."""
        return (
            self.device
            + self.steer
            + self.uplink
            + self.queue
            + self.cloud
            + self.downlink
            + self.wait
            + self.host
        )

    def add(self, other: Parts) -> None:
        """Add `other`, part by part."""
        self.device += other.device
        self.steer += other.steer
        self.uplink += other.uplink
        self.queue += other.queue
        self.cloud += other.cloud
        self.downlink += other.downlink
        self.wait += other.wait
        self.host += other.host

    def scaled(self, factor: float) -> Parts:
        """Each part times `factor` (a mean from a sum)."""
        return Parts(*(part * factor for part in msgspec.structs.astuple(self)))

    def as_dict(self) -> dict[str, float]:
        """Part name to milliseconds."""
        return msgspec.structs.asdict(self)


class ClockOffset:
    """Cloud clock minus device clock, in ms, from the exchange with the shortest round trip.

    As in NTP the way up and the way down are taken to be equally long, which nothing on one
    device can check: the split of a real round trip into up and down is an estimate, their sum is
    measured. In simulation both sides share one clock and the offset is set to 0.
    """

    def __init__(self, offset_ms: float | None = None) -> None:
        self._fixed = offset_ms is not None
        self.offset_ms = offset_ms or 0.0
        self.round_trip_ms = float("inf")

    def observe(self, sent_ms: float, stamp: Stamp, arrived_ms: float) -> None:
        """One exchange: a frame sent at `sent_ms` led to one that arrived at `arrived_ms`."""
        if self._fixed or not stamp.sent_us:
            return
        received, sent = stamp.received_us / 1e3, stamp.sent_us / 1e3
        round_trip = (arrived_ms - sent_ms) - (sent - received)
        if round_trip < self.round_trip_ms:
            self.round_trip_ms = round_trip
            self.offset_ms = ((received - sent_ms) + (sent - arrived_ms)) / 2


class TokenClock:
    """Collects what happened since the last token; `emit` returns its parts and starts anew."""

    __slots__ = (
        "_cloud", "_device", "_downlink", "_host", "_last_ms", "_queue", "_sent_ms", "_steer",
        "_uplink", "_wait", "offset",
    )  # fmt: skip

    def __init__(self, start_ms: float, offset: ClockOffset | None = None) -> None:
        self._last_ms = start_ms
        self._sent_ms: float | None = None
        self.offset = offset or ClockOffset()
        self._device = self._steer = self._uplink = self._queue = 0.0
        self._cloud = self._downlink = self._wait = self._host = 0.0

    def computed(self, kind: Kind, milliseconds: float) -> None:
        """The schedule spent that long in a `Compute` of that kind."""
        if kind == "steer":
            self._steer += milliseconds
        else:
            self._device += milliseconds

    def sent(self, now_ms: float) -> None:
        """A frame that asks for an answer left at `now_ms`."""
        self._sent_ms = now_ms

    def received(self, began_ms: float, now_ms: float, arrived_ms: float, stamp: Stamp) -> None:
        """A wait from `began_ms` to `now_ms` ended with a frame that had arrived at `arrived_ms`.

        A frame that lay here before the wait began cost no waiting.
        """
        if self._sent_ms is not None:
            self.offset.observe(self._sent_ms, stamp, arrived_ms)
        begins = arrived_ms if arrived_ms > began_ms else began_ms
        if now_ms > begins:
            self._host += now_ms - begins
        until = now_ms if now_ms < arrived_ms else arrived_ms
        left = until - began_ms if until > began_ms else 0.0
        if left and stamp.sent_us:
            # Backwards from the arrival: down, cloud, queue; each at most what is left.
            share = arrived_ms - (stamp.sent_us / 1e3 - self.offset.offset_ms)
            share = left if share > left else share if share > 0.0 else 0.0
            self._downlink += share
            left -= share
            share = stamp.compute_us / 1e3
            share = left if share > left else share
            self._cloud += share
            left -= share
            share = stamp.queue_us / 1e3
            share = left if share > left else share
            self._queue += share
            left -= share
        if self._sent_ms is not None:
            self._uplink += left
            self._sent_ms = None
        else:
            self._wait += left

    def waited(self, milliseconds: float) -> None:
        """A wait that ended without a frame (a deadline, a reconnection)."""
        self._wait += milliseconds

    def emit(self, now_ms: float) -> Parts:
        """The parts since the last token; what nothing claims is the host's."""
        device, steer, uplink, queue = self._device, self._steer, self._uplink, self._queue
        cloud, downlink, wait, host = self._cloud, self._downlink, self._wait, self._host
        claimed = device + steer + uplink + queue + cloud + downlink + wait + host
        host += (now_ms - self._last_ms) - claimed
        self._last_ms = now_ms
        self._device = self._steer = self._uplink = self._queue = 0.0
        self._cloud = self._downlink = self._wait = self._host = 0.0
        return Parts(device, steer, uplink, queue, cloud, downlink, wait, host)
