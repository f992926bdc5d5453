"""Whether disk and memory can hold an export, from the sizes known before it begins.

Both grow with the parameters: each line lies a little above every peak that was measured
(docs/export.md, "What an export takes").
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from edge_runtime.errors import BudgetExceeded
from export.recipes import Recipe

GB = 1_000_000_000
SMALL_FILES = 64 << 20
"""Graphs, tokenizer, report."""

FLOAT_GRAPH_BITS = 64
"""A parameter on disk while optimum writes the `portable` graph in float, twice at the worst."""


class Needs(NamedTuple):
    """Bytes that an export with verification takes at its peak."""

    disk: int
    memory: int


def cpu_needs(parameters: int, chosen: Recipe) -> Needs:
    """Of a CPU target; `parameters` in the source's files, the head counted where it is stored."""
    bits = {"int8": 8.2, "block": chosen.bits + 2.5, "float": 32.0}[chosen.body]
    base, slope = 1.7, 5.4
    if chosen.graph == "portable":  # optimum traces the model and builds its graph in float
        bits, slope = bits + FLOAT_GRAPH_BITS, 13.0
    return _needs(parameters, bits, base, slope)


def npu_needs(parameters: int) -> Needs:
    """Of an NPU target: the float graph beside the model, a compiler beside both; the weights on
    disk in the static graphs and in two binaries."""
    return _needs(parameters, bits=28.0, base_gb=1.2, bytes_each=16.0)


def _needs(parameters: int, bits: float, base_gb: float, bytes_each: float) -> Needs:
    return Needs(
        int(parameters * bits / 8) + SMALL_FILES, int(base_gb * GB + parameters * bytes_each)
    )


def admit(needs: Needs, out: Path) -> None:
    """Refuse an export into `out` that disk or memory cannot hold. Raises `BudgetExceeded`."""
    import psutil

    folder = out
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needs.disk:
        raise BudgetExceeded(
            "--out", "the disk cannot hold the bundle and what making it takes",
            got=f"{free / GB:.1f} GB free", allowed=f"{needs.disk / GB:.1f} GB or more",
        )  # fmt: skip
    available = psutil.virtual_memory().available
    if available < needs.memory:
        raise BudgetExceeded(
            "export", "there is too little memory for this model",
            got=f"{available / GB:.1f} GB available", allowed=f"{needs.memory / GB:.1f} GB or more",
            todo="Close other programs, or export on a larger machine",
        )  # fmt: skip
