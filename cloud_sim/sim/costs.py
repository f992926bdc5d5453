"""How long a piece of work takes, as stated models of its `Load`: for a device and for a cloud.

Both are linear. A device's step reads all weights once (two rows cost a little more than one), and
the keys and values of what it has seen; a prompt costs by the token; the head by the candidate.
A cloud's forward pass has a floor (weights, launches) and a cost per new and per past token.
What is not modelled: heat, frequency scaling, other applications, noise. `origin` says where the
numbers are from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_runtime.schedules.actions import Kind, Load

Origin = Literal["measured", "modelled", "published"]
"""Read on the device itself; computed from something else; taken from a publication."""


@dataclass(frozen=True, slots=True)
class DeviceCosts:
    """Milliseconds of device work. All terms are for both branches (two rows)."""

    step_ms: float
    """One new token through both rows, head not included."""
    step_ms_per_past_token: float = 0.0
    chunk_ms_per_token: float = 0.0
    """Each new token beyond the first of one pass."""
    prefill_ms: float = 0.0
    prefill_ms_per_token: float = 0.0
    """Per prompt token of one row."""
    head_ms: float = 0.0
    head_ms_per_candidate: float = 0.0
    steer_ms: float = 0.0
    steer_ms_per_candidate: float = 0.0
    origin: Origin = "modelled"

    def ms(self, kind: Kind, load: Load) -> float:
        """Time of one `Compute` of that kind and load."""
        if load.rows == 0:  # no small model takes part
            return 0.0
        if kind == "head":
            return self.head_ms + self.head_ms_per_candidate * load.candidates
        if kind == "steer":
            return self.steer_ms + self.steer_ms_per_candidate * load.candidates
        if kind == "prefill":
            return self.prefill_ms + self.prefill_ms_per_token * load.rows * load.tokens
        return (
            self.step_ms
            + self.step_ms_per_past_token * load.past
            + self.chunk_ms_per_token * max(0, load.tokens - 1)
        )


@dataclass(frozen=True, slots=True)
class CloudCosts:
    """Milliseconds of a forward pass that one session has to itself, head included."""

    step_ms: float
    """The floor: one new token."""
    ms_per_token: float = 0.0
    """Each new token of a row beyond the first (a prompt, a draft)."""
    ms_per_row: float = 0.0
    """Each row beyond the first (run-ahead's branches)."""
    ms_per_past_token: float = 0.0
    origin: Origin = "modelled"

    def ms(self, load: Load) -> float:
        """Time of one pass over `load.tokens` new tokens."""
        return (
            self.step_ms
            + self.ms_per_token * load.rows * max(0, load.tokens - 1)
            + self.ms_per_row * (load.rows - 1)
            + self.ms_per_past_token * load.rows * load.past
        )
