"""How an NPU bundle's graphs and embedding are laid out on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edge_runtime.npu.host import row_type
from export.npu.blocks import BLOCK, block_quantize
from export.npu.model import StaticModel
from export.tensors import TensorFile


def save_static(model: onnx.ModelProto, path: Path, tensors: TensorFile) -> None:
    """Write a graph whose tensors go into `tensors` by name; equal names must be equal tensors."""
    kept = []
    for tensor in model.graph.initializer:
        tensors.add(tensor.name, numpy_helper.to_array(tensor))
        kept.append(tensors.proto(tensor.name))
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(kept)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_embedding(static: StaticModel, path: Path) -> None:
    """The input embedding as one row a token: int8 levels in blocks of 32, then fp16 scales."""
    rows = np.empty(static.vocabulary, row_type(static.hidden, BLOCK))
    levels, scales = block_quantize(static.embedding)
    rows["levels"], rows["scales"] = levels, scales.astype(np.float16)
    rows.tofile(path)
