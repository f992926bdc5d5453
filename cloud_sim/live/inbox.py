"""What a client has sent and its session has not looked at yet: bounded, checked, never blocking.

Whatever makes the rest of a session pointless is found here, and raised when the session next
looks: `Gone`, or a `Problem` with the refusal that names it.
"""

from __future__ import annotations

import asyncio
from collections import deque

from starlette.websockets import WebSocket

from cloud_sim.live.limits import ServerLimits
from edge_runtime import wire
from edge_runtime.connections.realtime import told
from edge_runtime.errors import ConnectionFailed
from edge_runtime.schedules.actions import Arrival, Timeout
from edge_runtime.timing import now_ms


class Gone(Exception):
    """The client has left, and may come back for its cache."""


class Problem(Exception):
    """Ends the session with a typed refusal, which the session itself may have `sent` already."""

    def __init__(self, refusal: wire.Refusal, sent: bool = False) -> None:
        self.refusal = refusal
        self.sent = sent


class Inbox:
    """Frames that have arrived, each with when; filled by `listen`, emptied by the session."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._frames: deque[tuple[wire.Up, float]] = deque()
        self._problem: wire.Refusal | None = None
        self._gone = False
        self._news = asyncio.Event()

    async def listen(self, socket: WebSocket) -> None:
        """Take frames until the client leaves or does something that ends its session."""
        while self._problem is None:
            message = await socket.receive()
            now = now_ms()
            if message["type"] == "websocket.disconnect":
                self._gone = True
            else:
                self._take(message.get("bytes"), now)
            self._news.set()
            if self._gone:
                return

    def _take(self, raw: bytes | None, now: float) -> None:
        limits = self._limits
        if raw is None:
            self._problem = refusal("not_a_frame", "a text message is no frame", "text", "binary")
        elif len(raw) > limits.frame_bytes:
            self._problem = refusal(
                "frame_too_large",
                "a message is larger than this server allows",
                f"{len(raw)} bytes",
                f"at most {limits.frame_bytes}",
                "Shorten the query",
            )
        elif len(self._frames) >= limits.inbox_frames:
            self._problem = refusal(
                "flood",
                "messages come faster than they can be answered",
                f"{len(self._frames) + 1} waiting",
                f"at most {limits.inbox_frames}",
                "Wait for answers",
            )
        else:
            try:
                self._frames.append((wire.decode_up(raw), now))
            except ConnectionFailed as error:
                self._problem = refusal(
                    "not_a_frame", error.what, error.got or "", error.allowed or ""
                )

    def check(self) -> None:
        """Raises `Gone` or `Problem` if there is nothing left to serve."""
        if self._gone:
            raise Gone
        if self._problem is not None:
            raise Problem(self._problem)

    async def next(self, deadline_ms: float | None) -> Arrival | Timeout:
        """The next frame; `Timeout` after `deadline_ms`. Raises `Gone` or `Problem`."""
        allowed = self._limits.idle_s * 1e3
        wait = allowed if deadline_ms is None else min(deadline_ms, allowed)
        until = now_ms() + wait
        while True:
            self.check()
            if self._frames:
                frame, arrived = self._frames.popleft()
                return Arrival(frame, arrived, bool(self._frames))
            if not await told(self._news, until - now_ms()):
                break
        if deadline_ms is not None and deadline_ms <= allowed:
            return Timeout(now_ms())
        raise Problem(
            refusal(
                "idle",
                "the device has been silent for too long",
                f"{wait / 1e3:.0f} s",
                f"at most {self._limits.idle_s:.0f} s",
                "Ask again",
            )
        )


def refusal(code: str, what: str, got: str = "", allowed: str = "", todo: str = "") -> wire.Refusal:
    """What the cloud tells a client whose session it ends; `code` is for programs."""
    return wire.Refusal(code, "cloud", what, got, allowed, todo)
