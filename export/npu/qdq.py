"""Recipe `npu-qnn-w8a16`, the graph: 16-bit integer activations, 8-bit weights per channel.

Every float tensor is followed by a QuantizeLinear / DequantizeLinear pair (QDQ), which HTP fuses
into integer operators. Keys and values stay uint16 at the graph's edge: the host moves them
between calls without knowing their scale, so prefill and decode must agree on it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.npu.model import Array

LEVELS = 65535
KV_ZERO = 32768
"""Zero point of every key and value: the host fills empty slots with it."""

Ranges = dict[str, tuple[float, float]]
"""Smallest and largest value of each float tensor, by name."""

_SAME = ("Reshape", "Transpose", "Slice")
"""Operators that move numbers without changing them: output and input share a scale."""


def is_kv(name: str) -> bool:
    """Whether a tensor is keys or values at the graph's edge."""
    return name.startswith(("past_key.", "past_value.", "key.", "value."))


def tied(model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> Ranges:
    """`ranges` with equal ranges where the integer graph needs equal scales.

    Moved tensors take their source's; the pieces of a Concat, and its output, take the union;
    keys (and values) of a layer are symmetric, so that their zero point is `KV_ZERO`.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.get(name, name) != name:
            name = parent[name]
        return name

    for node in model.graph.node:
        count = {"Concat": len(node.input)}.get(node.op_type, int(node.op_type in _SAME))
        for name in node.input[:count]:
            parent[root(name)] = root(node.output[0])
    groups: dict[str, list[str]] = {}
    for name in sorted(ranges):
        groups.setdefault(root(name), []).append(name)
    out: Ranges = {}
    for members in groups.values():
        low = min(0.0, *(ranges[name][0] for name in members))
        high = max(0.0, *(ranges[name][1] for name in members))
        if any(is_kv(name) for name in members):
            high = max(high, -low)
            # Level 32768 is zero, so the upper half is one level shorter.
            low, high = -high * 32768 / 32767, high
        out.update(dict.fromkeys(members, (low, high)))
    return out


def scale_and_zero(low: float, high: float) -> tuple[np.float32, np.uint16]:
    """uint16 scale and zero point for values in [low, high]; zero is exact."""
    scale = max(high - low, 1e-4) / LEVELS
    return np.float32(scale), np.uint16(np.clip(round(-low / scale), 0, LEVELS))


def per_channel(weight: Array) -> tuple[Array, Array]:
    """[in, out] float -> int8 and float32 scales [out]; symmetric, an all-zero column gets 1."""
    scales = np.abs(weight).max(axis=0).astype(np.float32) / np.float32(127)
    scales = np.where(scales > 0, scales, np.float32(1))
    return np.rint(weight / scales).astype(np.int8), scales


class _Writer:
    def __init__(self, model: onnx.ModelProto, ranges: Ranges) -> None:
        self.graph = model.graph
        self.ranges = ranges
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.kept: dict[str, onnx.TensorProto] = {}
        self.readable: dict[str, str] = {}
        """Float tensor -> name of its dequantized form, which consumers read."""

    def add(self, kind: str, inputs: list[str], output: str, **attributes: int) -> str:
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=f"{kind}.{output}", **attributes)
        )
        return output

    def store(self, name: str, array: npt.ArrayLike) -> str:
        self.kept.setdefault(name, numpy_helper.from_array(np.asarray(array), name))
        return name

    def parameters(self, name: str) -> list[str]:
        scale, zero = scale_and_zero(*self.ranges[name])
        return [self.store(name + ".scale", scale), self.store(name + ".zero", zero)]

    def pair(self, source: str, name: str, quantized: str | None = None) -> None:
        """Quantize float `source`, and let readers of `name` read it dequantized."""
        parameters = self.parameters(name)
        quantized = self.add("QuantizeLinear", [source, *parameters], quantized or name + ".q")
        self.readable[name] = self.add("DequantizeLinear", [quantized, *parameters], name + ".dq")

    def constant(self, name: str, matrix: bool) -> str:
        """The dequantized form of a float constant: int8 per channel, or uint16."""
        if name in self.readable:
            return self.readable[name]
        array = numpy_helper.to_array(self.constants[name])
        if matrix:
            levels, scales = per_channel(array)
            inputs = [
                self.store(name + ".levels", levels),
                self.store(name + ".scales", scales),
                self.store(name + ".zeros", np.zeros(len(scales), np.int8)),
            ]
            self.readable[name] = self.add("DequantizeLinear", inputs, name + ".dq", axis=1)
            return self.readable[name]
        scale, zero = scale_and_zero(min(0.0, float(array.min())), max(0.0, float(array.max())))
        levels = np.clip(np.rint(array / scale) + int(zero), 0, LEVELS).astype(np.uint16)
        inputs = [
            self.store(name + ".levels", levels),
            self.store(name + ".scale", scale),
            self.store(name + ".zero", zero),
        ]
        self.readable[name] = self.add("DequantizeLinear", inputs, name + ".dq")
        return self.readable[name]

    def node(self, node: onnx.NodeProto) -> None:
        for index, name in enumerate(node.input):
            if name in self.readable:
                node.input[index] = self.readable[name]
            elif name in self.constants:
                tensor = self.constants[name]
                if tensor.data_type == TensorProto.FLOAT:
                    matrix = node.op_type == "MatMul"
                    node.input[index] = self.constant(name, matrix)
                else:
                    self.kept[name] = tensor
        name = node.output[0]
        node.output[0] = name + ".float"
        self.nodes.append(node)
        outputs = {value.name for value in self.graph.output}
        if is_kv(name) and name in outputs:
            self.pair(node.output[0], name, quantized=name)
            return
        self.pair(node.output[0], name)
        if name in outputs:
            self.nodes[-1].output[0] = name
            self.readable[name] = name


def qdq(model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> onnx.ModelProto:
    """Turn, in place, a float static graph into its QDQ form.

    `ranges`: of every float tensor in the graph, inputs included (`export.npu.calibrate`).
    Keys and values become uint16 at the edge; other inputs and outputs stay float32.
    """
    graph = model.graph
    for node in graph.node:
        if node.op_type == "Sigmoid":  # HTP fixes this scale
            ranges = {**ranges, node.output[0]: (0.0, LEVELS / (LEVELS + 1))}
    writer = _Writer(model, tied(model, ranges))
    for value in graph.input:
        if is_kv(value.name):
            value.type.tensor_type.elem_type = TensorProto.UINT16
            writer.readable[value.name] = writer.add(
                "DequantizeLinear",
                [value.name, *writer.parameters(value.name)],
                value.name + ".dq",
            )
        else:
            writer.pair(value.name, value.name)
    for node in list(graph.node):
        writer.node(node)
    for value in graph.output:
        if is_kv(value.name):
            value.type.tensor_type.elem_type = TensorProto.UINT16
    for field, values in (("node", writer.nodes), ("initializer", list(writer.kept.values()))):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    return model


def quantize_kv(array: Array, low: float, high: float) -> Array:
    """float keys or values -> uint16 levels, as the graph's own QuantizeLinear does it."""
    scale, zero = scale_and_zero(low, high)
    return np.clip(np.rint(array / scale) + int(zero), 0, LEVELS).astype(np.uint16)
