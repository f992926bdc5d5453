"""Recipe `npu-qnn`: 8-bit weights in blocks of 32, fp16 everything else; nothing to calibrate.

HTP dequantizes a block as it reads it and computes in fp16, so the error is the weights' rounding
alone. Keys and values cross the graph's edge in fp16: half the bytes the host copies a step.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.errors import UsageError
from export.npu.model import Array

BLOCK = 32
_LEVELS = 127


def block_quantize(weight: Array) -> tuple[Array, Array]:
    """[out, in] float -> int8 levels [out, in / 32, 32] and float32 scales [out, in / 32].

    Symmetric: level 127 is the block's largest magnitude. An all-zero block gets scale 1.
    """
    out, width = weight.shape
    if width % BLOCK:
        raise UsageError(
            "export", "a matrix is not a whole number of blocks wide", got=width, allowed=BLOCK
        )
    blocks = weight.reshape(out, width // BLOCK, BLOCK).astype(np.float32)
    scales = np.abs(blocks).max(axis=-1) / np.float32(_LEVELS)
    scales = np.where(scales > 0, scales, np.float32(1))
    return np.rint(blocks / scales[..., None]).astype(np.int8), scales


def blocks_recipe(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace, in place, each MatMul by a constant with MatMulNBits, and make KV fp16 at the edge.

    Graph inputs `past_*` and outputs `key.*`, `value.*` become float16.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [_cast_kv_input(value) for value in graph.input if value.name.startswith("past_")]
    replaced: dict[str, list[onnx.TensorProto]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            name = node.input[1]
            if name not in replaced:
                replaced[name] = _packed(name, numpy_helper.to_array(constants[name]).T)
            levels, scales = replaced[name]
            node = helper.make_node(
                "MatMulNBits",
                [node.input[0], levels.name, scales.name],
                list(node.output),
                name=node.name,
                domain="com.microsoft",
                K=levels.dims[1] * BLOCK,
                N=levels.dims[0],
                bits=8,
                block_size=BLOCK,
            )
        for index, name in enumerate(node.input):
            if name.startswith(("past_key.", "past_value.")):
                node.input[index] = name + ".float"
        nodes.append(node)
    kept = [tensor for tensor in graph.initializer if tensor.name not in replaced]
    packed = [tensor for pair in replaced.values() for tensor in pair]
    nodes = _cast_kv_outputs(graph, nodes)
    for field, values in (("node", nodes), ("initializer", kept + packed)):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def _packed(name: str, weight: Array) -> list[onnx.TensorProto]:
    levels, scales = block_quantize(weight)
    # MatMulNBits stores level + 128 as uint8, its default zero point.
    shifted = (levels.astype(np.int16) + 128).astype(np.uint8)
    return [
        numpy_helper.from_array(shifted, name + ".levels"),
        numpy_helper.from_array(scales, name + ".scales"),
    ]


def _cast_kv_input(value: onnx.ValueInfoProto) -> onnx.NodeProto:
    value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return helper.make_node(
        "Cast", [value.name], [value.name + ".float"], name=f"n.{value.name}", to=TensorProto.FLOAT
    )


def _cast_kv_outputs(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    casts = []
    for value in graph.output:
        if not value.name.startswith(("key.", "value.")):
            continue
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
        for node in nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == value.name:
                        names[index] = name + ".float"
        casts.append(
            helper.make_node(
                "Cast",
                [value.name + ".float"],
                [value.name],
                name=f"n.{value.name}.half",
                to=TensorProto.FLOAT16,
            )
        )
    return nodes + casts
