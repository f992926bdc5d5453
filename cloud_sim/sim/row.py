"""One simulated answer as one flat record, with where each figure comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_runtime.transcript import Transcript

MODELLED = (
    "ttft_ms",
    "token_ms_p50",
    "token_ms_p95",
    "token_ms_p99",
    "tokens_per_s",
    "ms_per_token",
    "parts",
    "retransmissions",
    "transport_bytes",
    "connect_ms",
)
"""A simulated time is modelled, whatever its inputs are."""

SETTINGS = ("method", "gain", "schedule", "codec", "virtual", "profile", "seed", "finish", "notes")
"""What was asked for, and words: no figures."""


def row(
    transcript: Transcript, *, profile: str, seed: int, origins: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`Transcript.row` plus the simulation's own keys.

    Parameters
    ----------
    origins : `network`, `device`, `cloud` to `measured`, `published`, `modelled` or `assumed`:
        where the cost models' inputs are from.

    """
    given = dict(origins or {})
    parts = transcript.mean_parts().as_dict()
    figures = {
        **transcript.row(),
        "profile": profile,
        "seed": seed,
        "parts": parts,
        "retransmissions": int(transcript.counters.get("retransmissions", 0)),
        "transport_bytes": transcript.transport_bytes,
    }
    # What is not modelled was counted on what the real code did: tokens, frames, divergences.
    origin = {
        name: "modelled" if name in MODELLED else "measured"
        for name in figures
        if name not in SETTINGS
    }
    return {**figures, "origin": origin, "inputs": given}
