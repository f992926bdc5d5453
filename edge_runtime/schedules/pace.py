"""What the device can tell of the line and the cloud, from when its questions were answered."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime import wire


@dataclass(slots=True)
class Pace:
    """The shortest round trip seen and the cloud's usual time for a pass, ms; 0: not known yet."""

    round_trip_ms: float = 0.0
    """On the line alone: what the cloud says it spent is taken off."""
    wait_ms: float = 0.0
    """From a question to its answer, the last one."""
    cloud_ms: float = 0.0
    _asked: tuple[int, float] | None = None

    def asked(self, epoch: int, now_ms: float) -> None:
        """A question was sent; its answer carries `epoch`."""
        self._asked = (epoch, now_ms)

    def arrived(self, frame: wire.Predicts | wire.Opened, now_ms: float) -> None:
        """A frame arrived; the first of a question's epoch answers it."""
        stamp = wire.Stamp.unpack(frame.stamp)
        if stamp.compute_us:
            spent = stamp.compute_us / 1e3
            self.cloud_ms += (spent - self.cloud_ms) * (0.2 if self.cloud_ms else 1.0)
        if self._asked is None:
            return
        epoch, asked_ms = self._asked
        if isinstance(frame, wire.Predicts):
            if frame.epoch < epoch:
                return
            self._asked = None
        self.wait_ms = now_ms - asked_ms if now_ms > asked_ms else 0.0
        on_the_line = self.wait_ms - (stamp.sent_us - stamp.received_us) / 1e3
        if on_the_line > 0 and not 0 < self.round_trip_ms < on_the_line:
            self.round_trip_ms = on_the_line
