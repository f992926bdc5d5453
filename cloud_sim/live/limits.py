"""What one server allows its clients, all sessions together."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloud_sim.session import Limits


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the server as a whole allows; `session` is what one answer may ask for."""

    session: Limits = field(default_factory=Limits)
    sessions: int = 64
    """Connections at a time."""
    frame_bytes: int = 65_536
    """One uplink message."""
    inbox_frames: int = 256
    """Messages that may wait to be looked at, per session."""
    idle_s: float = 120.0
    """Silence allowed while the cloud waits for the device."""
    kept_caches: int = 16
    """Caches of broken connections that wait for their devices; 0: none."""
    kept_s: float = 300.0
    """How long they wait, at the least; twice as long at the most."""
    send_s: float = 20.0
    """A client that takes nothing for so long is dropped."""
