"""A token's deadline, and what to do with a token that would miss it.

wait     nothing: the answer is the same however slow anyone is
device   the CLOUD is late: the aware small model's own token, blended with the last prediction
         known; the cloud is told what was emitted when it is heard from again
cloud    the DEVICE is late: the cloud's own token, unsteered; the device catches up later
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edge_runtime.errors import UsageError, did_you_mean

OnLate = Literal["wait", "device", "cloud"]

A_MOMENT_MS = 1e-6
"""Less than this is nothing: a clock to which it is added may read the same as before, for ever."""

AT_MOST = 4.0
"""Deadlines that one token counts as at most: a device that was held up once (its application was
in the background) would else be thought slow for hundreds of tokens."""


@dataclass(slots=True)
class Deadline:
    """`token_ms` for each token after the first (0: none), and the rule for a late one."""

    token_ms: float = 0.0
    on_late: OnLate = "wait"
    device_ms: float = 0.0
    """What a steered token has lately cost on the device."""

    def __post_init__(self) -> None:
        if self.on_late not in ("wait", "device", "cloud"):
            raise UsageError(
                "on-late",
                "no such rule",
                got=self.on_late,
                allowed="wait, device, cloud",
                todo=did_you_mean(self.on_late, ["wait", "device", "cloud"]),
            )
        if self.token_ms < 0:
            raise UsageError(
                "token-deadline-ms", "a deadline cannot lie in the past", got=self.token_ms
            )
        if not math.isfinite(self.token_ms):
            raise UsageError("token-deadline-ms", "the deadline is no time", got=self.token_ms)
        if self.on_late == "wait" and self.token_ms:
            raise UsageError(
                "token-deadline-ms",
                "nothing happens at this deadline, since late tokens are waited for",
                got=self.token_ms,
                todo="Say what a late token is to be: --on-late device or cloud",
            )
        if self.on_late != "wait" and not self.token_ms:
            raise UsageError(
                "on-late",
                f"'{self.on_late}' needs a deadline to be late for",
                todo="Set --token-deadline-ms",
            )

    @property
    def device_too_slow(self) -> bool:
        """Whether a token that the device steers would be late."""
        return self.on_late == "cloud" and self.device_ms > self.token_ms

    def left(self, began_ms: float, now_ms: float) -> float | None:
        """What is left of the wait that began at `began_ms`; a clock that jumped counts as none."""
        if self.on_late != "device":
            return None
        left = self.token_ms - min(max(0.0, now_ms - began_ms), self.token_ms)
        return left if left > A_MOMENT_MS else 0.0

    def steered(self, spent_ms: float) -> None:
        """A steered token cost `spent_ms` on the device."""
        if self.on_late == "cloud":
            spent_ms = min(spent_ms, AT_MOST * self.token_ms)
        self.device_ms += 0.5 * ((spent_ms if spent_ms > 0 else 0.0) - self.device_ms)

    def skipped(self) -> None:
        """A token went unsteered: believe the old times a little less, so as to try again."""
        self.device_ms *= 0.9
