"""What the hardware allows: bytes a token must read, the memory bandwidth, and the floor in ms.

Decoding one token reads every weight once, whatever the processor does with it, so the time for
that is a floor. Not covered: caches that hold part of the weights make the floor lower than main
memory would (the bandwidth is therefore measured on a working set of the same size), and prefill,
which is bound by arithmetic.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Roofline:
    """One decode step against the memory floor."""

    weight_bytes: int
    """Weights that a step reads: all but the embedding table, and of the head what is asked for."""
    kv_bytes: int
    """Keys and values that attention reads, both rows."""
    bandwidth_gbps: float
    """Measured reading bandwidth, 10^9 bytes a second."""

    @property
    def bytes_per_token(self) -> int:
        """Everything that one step reads."""
        return self.weight_bytes + self.kv_bytes

    @property
    def floor_ms(self) -> float:
        """Time to read that once, ms."""
        return self.bytes_per_token / self.bandwidth_gbps / 1e6


def step_bytes(bundle: Bundle, past: int, *, candidates: int | None = 64) -> tuple[int, int]:
    """Bytes of weights and of keys and values that one two-row step reads at `past` tokens.

    `candidates`: how many rows of the head; None: the full head. A tied embedding and head are one
    table; of the embedding a step reads one row.
    """
    shape = bundle.manifest.architecture
    weights = bundle.manifest.memory.weights_bytes
    bits = 32 if bundle.manifest.recipe.get("body") == "float" else 8
    table = shape.vocabulary_size * shape.hidden * bits // 8
    body = max(0, weights - table)
    rows = shape.vocabulary_size if candidates is None else candidates
    return body + rows * shape.hidden * bits // 8, bundle.kv_bytes(past)


def bandwidth_gbps(working_set: int, *, rounds: int = 7) -> float:
    """Reading bandwidth over `working_set` bytes, 10^9 bytes a second: the best of `rounds`.

    A dot product of two float32 vectors, which adds little arithmetic to the reading. It uses as
    many threads as numpy's BLAS was told to.
    """
    count = max(1 << 16, working_set // 8)
    a, b = np.ones(count, np.float32), np.ones(count, np.float32)
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        np.dot(a, b)
        best = min(best, time.perf_counter() - began)
    return 8 * count / best / 1e9
