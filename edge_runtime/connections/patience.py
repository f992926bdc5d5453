"""How long a driver tries before it gives up, and the pauses between attempts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from edge_runtime.timing import now_ms


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try before giving up."""

    connect_s: float = 10.0
    """For one attempt to connect."""
    reconnect_s: float = 60.0
    """For getting a broken connection up again; 0: give up at once."""
    first_pause_s: float = 0.1
    """Before the third attempt (the second comes at once); doubles up to `longest_pause_s`."""
    longest_pause_s: float = 2.0
    keepalive_s: float = 10.0
    """A ping goes out after so much time and must be answered in as much: so a half-open
    connection is noticed."""
    silence_s: float = 120.0
    """A server counts as gone when nothing comes for so long that somebody waits for; of one that
    answers pings too."""


PATIENT = Patience()


class Trials:
    """Attempts to get something going again, until there is progress or patience is over.

    An attempt that works is no progress yet: a server that takes every connection and dies on
    every question would else be asked for ever.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._until_ms: float | None = None
        self._pause_s = 0.0

    def progress(self) -> None:
        """It goes again: the next trouble is a new one."""
        self._until_ms = None

    @property
    def under_way(self) -> bool:
        """Whether there was an attempt since the last progress."""
        return self._until_ms is not None

    @property
    def left_s(self) -> float:
        """How long patience will last."""
        return 0.0 if self._until_ms is None else max(0.0, (self._until_ms - now_ms()) / 1e3)

    async def again(self) -> bool:
        """Pause, except before the first attempt; False when patience is over."""
        if self._until_ms is None:
            self._until_ms = now_ms() + 1e3 * self._patience.reconnect_s
            self._pause_s = self._patience.first_pause_s
        else:
            await asyncio.sleep(min(self._pause_s, self.left_s))
            self._pause_s = min(2 * self._pause_s, self._patience.longest_pause_s)
        return self.left_s > 0
