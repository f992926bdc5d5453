"""Recipe `npu-qnn-w8a16`, the files: calibrate, write the QDQ graphs, ship position 0.

For v68, whose NPU has no fp16, and as the candidate that may be faster elsewhere. Its error is
several times that of `npu-qnn` (docs/npu.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.errors import UsageError
from edge_runtime.npu.manifest import ROWS
from export.npu.calibrate import MASK_FLOOR, calibrate
from export.npu.files import save_static
from export.npu.graph import Shape, decoder_graph, head_graph
from export.npu.model import StaticModel
from export.npu.qdq import Ranges, qdq, quantize_kv, tied
from export.tensors import TensorFile

FIRST_KV = "first_kv.npz"


def write_w8a16(
    static: StaticModel,
    folder: Path,
    *,
    chunk: int,
    past: int,
    prompts: Sequence[Sequence[int]] | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Write the three QDQ graphs, their weights and `first_kv.npz`; returns manifest fields.

    `prompts`: calibration text as token ids (`export.npu.calibrate.shipped_prompts`).
    """
    if not prompts:
        raise UsageError("export", "npu-qnn-w8a16 needs calibration text")
    progress("calibrating")
    measured = calibrate(static, prompts, chunk)
    kv_ranges: Ranges = {}
    with TensorFile(folder) as tensors:
        for name, sequence in (("prefill", chunk), ("decode", 1)):
            progress(f"quantizing {name}")
            graph = decoder_graph(static, Shape(ROWS, sequence, past))
            kv_ranges = kv_ranges or tied(graph, measured.ranges)
            save_static(qdq(graph, measured.ranges), folder / f"{name}.onnx", tensors)
        progress("quantizing head")
        head = head_graph(static, ROWS)
        logits = measured.ranges["logits"]
        pieces = {node.output[0]: logits for node in head.graph.node}
        save_static(
            qdq(head, {"hidden": measured.ranges["hidden"], **pieces}),
            folder / "head.onnx",
            tensors,
        )
    first: dict[str, Any] = {
        name: quantize_kv(kv, *kv_ranges[name]) for name, kv in measured.first_kv.items()
    }
    np.savez(folder / FIRST_KV, **first)
    return {
        "recipe": "w8a16",
        "kv": "uint16",
        "mask_floor": MASK_FLOOR,
        "first_token": measured.first_token,
        "first_kv": FIRST_KV,
    }
