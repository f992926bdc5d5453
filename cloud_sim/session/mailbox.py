"""Frames from the device, each applied once and in its order, whatever the line did to them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from cloud_sim.session.admission import out_of_turn
from edge_runtime import wire
from edge_runtime.schedules.actions import Action, Arrival, Receive, Timeout

_Counted = wire.Extend | wire.Credit
"""Frames that carry an epoch."""
_ANY_TIME, _NOW = Receive(), Receive(0.0)

MOST_HELD = 64
"""Frames kept for later because an earlier one is missing."""

MOST_OPENED = 16
"""Modes that one connection may ask for; each is remembered, to be told from its double."""


@dataclass(slots=True)
class Mailbox:
    """Yields `Receive`; what it hands out has the epochs in order and no frame twice."""

    epoch: int = -1
    """Of the last frame that was handed out; -1: nothing but an `Open` may come."""
    now_ms: float = 0.0
    """When the last event happened, on the driver's clock."""
    _more: bool = True
    """Whether others may have arrived behind the last frame."""
    _opened: list[wire.Open] = field(default_factory=list)
    _held: list[wire.Extend | wire.Credit] = field(default_factory=list)

    def next(self) -> Generator[Action, object, wire.Up]:
        """The next frame to act on; `Close` when the device is gone for good."""
        while True:
            frame = yield from self._one(_ANY_TIME)
            if frame is not None:
                return frame

    def already(self) -> Generator[Action, object, wire.Up | None]:
        """A frame to act on that has already arrived, else None."""
        return self._one(_NOW)

    @property
    def more(self) -> bool:
        """Whether `already` might have a frame."""
        return self._more or bool(self._held)

    def _one(self, wanted: Receive) -> Generator[Action, object, wire.Up | None]:
        due = self._due() if self._held else None
        while due is None:
            event = yield wanted
            if type(event) is Timeout:
                self.now_ms = event.now_ms
                return None
            if not isinstance(event, Arrival):
                return wire.Close()
            self.now_ms, self._more = event.now_ms, event.more
            frame = event.frame
            if not isinstance(frame, _Counted):
                if isinstance(frame, wire.Open):
                    if frame in self._opened:
                        continue
                    if len(self._opened) >= MOST_OPENED:
                        raise out_of_turn(frame, "extend, credit or close")
                    self._opened.append(frame)
                return frame
            opened, turn = self.epoch >= 0, self.epoch + isinstance(frame, wire.Extend)
            if not opened and isinstance(frame, wire.Credit):
                raise out_of_turn(frame, "open")  # it is given for predictions, so after them
            if opened and not self._held and frame.epoch == turn:
                self.epoch = frame.epoch
                return frame
            self._held.append(frame)
            if len(self._held) > MOST_HELD:
                raise out_of_turn(frame, "the frames before it, or open")
            due = self._due()
        return due

    def _due(self) -> wire.Extend | wire.Credit | None:
        """The held frame whose turn it is; frames of epochs that have passed are dropped."""
        if self.epoch < 0:
            return None  # drafts that have overtaken the `Open`
        self._held = [f for f in self._held if f.epoch + isinstance(f, wire.Credit) > self.epoch]
        for frame in self._held:
            if frame.epoch == self.epoch + isinstance(frame, wire.Extend):
                self._held.remove(frame)
                self.epoch = frame.epoch
                return frame
        return None
