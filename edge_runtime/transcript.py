"""The record of one answer: tokens, when, why, where the time and the bytes went.

Both drivers fill it; every table, row and picture is made from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from edge_runtime.policy import Decision
from edge_runtime.schedules.actions import Finish
from edge_runtime.timing import Parts


class TokenRecord(msgspec.Struct, frozen=True):
    """One emitted token."""

    token: int
    at_ms: float
    """Since the answer was asked for."""
    parts: Parts
    """The time since the token before; they add up."""
    decision: Decision | None = None


@dataclass(slots=True)
class Transcript:
    """One answer. Byte counts are whole messages (`wire.encode`), without transport headers."""

    method: str
    gain: float
    schedule: str
    codec: str
    virtual: bool = False
    """True: times come from a simulator."""
    records: list[TokenRecord] = field(default_factory=list)
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    uplink_frames: int = 0
    downlink_frames: int = 0
    transport_bytes: int = 0
    """Headers below our messages, both directions; 0: not counted."""
    round_trips: int = 0
    """Times the device waited for an answer to something it had sent."""
    finish: str = ""
    notes: list[str] = field(default_factory=list)
    """What a user should know about this run, one line each."""
    counters: dict[str, float] = field(default_factory=dict)
    """Named by the schedule or driver: divergences, accepted, wasted_cloud_tokens, late, ..."""

    def end(self, finish: Finish) -> None:
        """Take in how the schedule ended and what it counted. One that counts its own round trips
        knows better than its driver which waits were one."""
        self.finish = finish.reason
        self.counters.update(finish.counters)
        self.round_trips = int(self.counters.pop("round_trips", self.round_trips))
        self.notes.extend(finish.notes)

    @property
    def tokens(self) -> list[int]:
        """Ids of the emitted tokens."""
        return [record.token for record in self.records]

    @property
    def ttft_ms(self) -> float:
        """Time to first token, ms; NaN when there is none."""
        return self.records[0].at_ms if self.records else float("nan")

    @property
    def token_ms(self) -> np.ndarray:
        """Time per token after the first, ms [n-1]."""
        return np.array([record.parts.total for record in self.records[1:]])

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first over the time they took."""
        spent = float(self.token_ms.sum())
        return 1e3 * (len(self.records) - 1) / spent if spent > 0 else float("nan")

    def mean_parts(self) -> Parts:
        """Mean parts of the tokens after the first, ms; their sum is the mean time per token."""
        total = Parts()
        rest = self.records[1:]
        for record in rest:
            total.add(record.parts)
        return total.scaled(1 / len(rest)) if rest else total

    def percentile(self, q: float) -> float:
        """The q-th percentile of the time per token, ms."""
        times = self.token_ms
        return float(np.percentile(times, q)) if len(times) else float("nan")

    def row(self) -> dict[str, Any]:
        """The figures every verb prints as JSON."""
        parts = self.mean_parts()
        return {
            "method": self.method,
            "gain": self.gain,
            "schedule": self.schedule,
            "codec": self.codec,
            "virtual": self.virtual,
            "tokens": self.tokens,
            "finish": self.finish,
            "ttft_ms": self.ttft_ms,
            "tokens_per_s": self.tokens_per_s,
            "ms_per_token": {"total": parts.total, **parts.as_dict()},
            "token_ms_p50": self.percentile(50),
            "token_ms_p95": self.percentile(95),
            "token_ms_p99": self.percentile(99),
            "uplink_bytes": self.uplink_bytes,
            "downlink_bytes": self.downlink_bytes,
            "round_trips": self.round_trips,
            **self.counters,
            "notes": self.notes,
        }


def finite(value: Any) -> Any:
    """`value` for JSON, which has no word for what is no number (a single token has no speed): null
    in its place, in tables and lists too."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
