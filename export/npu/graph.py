"""The static graph that a phone's NPU takes, written node by node from a transformers model.

Qualcomm's HTP compiles fixed shapes only, so one model becomes three graphs: `prefill` (rows x
chunk), `decode` (rows x 1) and `head`. What the compiler refuses, or would do slowly, is done on
the host instead: the embedding lookup, the rotary tables, the mask, and writing the new keys and
values into their slots. Every operator here is one that the HTP back end places.

Not covered: sliding windows, mixture of experts, learned positions, norms after a block (Gemma).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.npu.model import Array, StaticModel

OPSET = 23  # the first with RMSNormalization, which HTP runs as one operator
IR_VERSION = 10
HEAD_PIECE = 4096


@dataclass(frozen=True, slots=True)
class Shape:
    """The fixed sizes of one graph: branches, tokens a call, and slots of past."""

    rows: int
    sequence: int
    past: int


class _Nodes:
    """Nodes, weights, inputs and outputs of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def op(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"n.{name}", **attributes))
        return name

    def constant(self, name: str, array: Array) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def shape(self, *sizes: int) -> str:
        return self.constant("to." + "x".join(map(str, sizes)), np.array(sizes, np.int64))

    def take(self, name: str, sizes: list[int]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
        return name

    def give(self, name: str, sizes: list[int]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))

    def model(self, name: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, name, self.inputs, self.outputs, list(self.constants.values())
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="costeer-edge",
        )


class _Decoder(_Nodes):
    """One pass of the blocks and the final norm, in the operators that HTP places."""

    def __init__(self, model: StaticModel, shape: Shape) -> None:
        super().__init__()
        self.m = model
        self.s = shape

    def norm(self, x: str, name: str, weight: str, scale: float = 1.0) -> str:
        gain = self.m.weights[weight] * np.float32(scale)
        return self.op(
            "RMSNormalization",
            [x, self.constant(name + ".gain", gain)],
            name,
            axis=-1,
            epsilon=self.m.epsilon,
        )

    def linear(self, x: str, name: str, source: str, scale: float = 1.0) -> str:
        """x W^T (+ b); the constant is stored [in, out], the order that MatMul reads."""
        weight = self.m.weights[source + ".weight"] * np.float32(scale)
        bias = self.m.weight(source + ".bias")
        matmul = name if bias is None else name + ".product"
        out = self.op("MatMul", [x, self.constant(name + ".weight", weight.T)], matmul)
        if bias is None:
            return out
        return self.op("Add", [out, self.constant(name + ".bias", bias * np.float32(scale))], name)

    def heads(self, x: str, name: str, count: int) -> str:
        """[rows, sequence, count * d] -> [rows, sequence, count, d]."""
        sizes = self.shape(self.s.rows, self.s.sequence, count, self.m.head_dim)
        return self.op("Reshape", [x, sizes], name + ".split")

    def rotate(self, x: str, name: str) -> str:
        """x cos + swap(x) sin: the minus sign of the rotation is already in `sin`."""
        half = self.m.head_dim // 2
        axis = self.constant("axis3", np.array([3], np.int64))
        first = self.op("Slice", [x, self.shape(0), self.shape(half), axis], name + ".first")
        second = self.op(
            "Slice", [x, self.shape(half), self.shape(self.m.head_dim), axis], name + ".second"
        )
        swapped = self.op("Concat", [second, first], name + ".swapped", axis=3)
        return self.op(
            "Add",
            [
                self.op("Mul", [x, "cos"], name + ".cos"),
                self.op("Mul", [swapped, "sin"], name + ".sin"),
            ],
            name,
        )

    def attention(self, x: str, layer: int) -> str:
        m, s = self.m, self.s
        p, n = f"model.layers.{layer}.self_attn.", f"l{layer}."
        normed = f"{p}q_norm.weight" in m.weights
        # 1/sqrt(d) costs nothing in the query's weights; a query norm would undo it there.
        scale = m.head_dim**-0.5
        q = self.linear(x, n + "q", p + "q_proj", 1.0 if normed else scale)
        k = self.linear(x, n + "k", p + "k_proj")
        v = self.linear(x, n + "v", p + "v_proj")
        q, k = self.heads(q, n + "q", m.heads), self.heads(k, n + "k", m.kv_heads)
        v = self.heads(v, n + "v", m.kv_heads)
        if normed:
            q = self.norm(q, n + "q.norm", p + "q_norm.weight", scale)
            k = self.norm(k, n + "k.norm", p + "k_norm.weight")
        by_head = [0, 2, 1, 3]
        q = self.rotate(self.op("Transpose", [q], n + "q.heads", perm=by_head), n + "q.rotated")
        k = self.rotate(self.op("Transpose", [k], n + "k.heads", perm=by_head), f"key.{layer}")
        v = self.op("Transpose", [v], f"value.{layer}", perm=by_head)
        new = [s.rows, m.kv_heads, s.sequence, m.head_dim]
        old = [s.rows, m.kv_heads, s.past, m.head_dim]
        past_key = self.take(f"past_key.{layer}", old)
        past_value = self.take(f"past_value.{layer}", old)
        self.give(k, new)
        self.give(v, new)
        keys = self.op("Concat", [past_key, k], n + "keys", axis=2)
        values = self.op("Concat", [past_value, v], n + "values", axis=2)
        # Grouped queries as more query rows of the one key head: nothing is repeated.
        grouped = self.shape(s.rows, m.kv_heads, m.group * s.sequence, m.head_dim)
        q = self.op("Reshape", [q, grouped], n + "q.grouped")
        keys = self.op("Transpose", [keys], n + "keys.turned", perm=[0, 1, 3, 2])
        scores = self.op("MatMul", [q, keys], n + "scores")
        scores = self.op("Add", [scores, "mask"], n + "scores.masked")
        shares = self.op("Softmax", [scores], n + "shares", axis=-1)
        mixed = self.op("MatMul", [shares, values], n + "mixed")
        mixed = self.op(
            "Reshape",
            [mixed, self.shape(s.rows, m.heads, s.sequence, m.head_dim)],
            n + "mixed.heads",
        )
        mixed = self.op("Transpose", [mixed], n + "mixed.tokens", perm=by_head)
        mixed = self.op(
            "Reshape", [mixed, self.shape(s.rows, s.sequence, m.heads * m.head_dim)], n + "joined"
        )
        return self.linear(mixed, n + "o", p + "o_proj")

    def feed_forward(self, x: str, layer: int) -> str:
        p, n = f"model.layers.{layer}.mlp.", f"l{layer}."
        gate = self.linear(x, n + "gate", p + "gate_proj")
        up = self.linear(x, n + "up", p + "up_proj")
        open_ = self.op("Mul", [gate, self.op("Sigmoid", [gate], n + "sigmoid")], n + "silu")
        return self.linear(self.op("Mul", [open_, up], n + "gated"), n + "down", p + "down_proj")

    def build(self) -> onnx.ModelProto:
        m, s = self.m, self.s
        x = self.take("x", [s.rows, s.sequence, m.hidden])
        self.take("cos", [s.rows, 1, s.sequence, m.head_dim])
        self.take("sin", [s.rows, 1, s.sequence, m.head_dim])
        self.take("mask", [s.rows, 1, m.group * s.sequence, s.past + s.sequence])
        for layer in range(m.layers):
            p, n = f"model.layers.{layer}.", f"l{layer}."
            h = self.norm(x, n + "norm1", p + "input_layernorm.weight")
            x = self.op("Add", [x, self.attention(h, layer)], n + "after_attention")
            h = self.norm(x, n + "norm2", p + "post_attention_layernorm.weight")
            x = self.op("Add", [x, self.feed_forward(h, layer)], n + "after_mlp")
        hidden = self.norm(x, "hidden", "model.norm.weight")
        self.give(hidden, [s.rows, s.sequence, m.hidden])
        return self.model("decoder")


def decoder_graph(model: StaticModel, shape: Shape) -> onnx.ModelProto:
    """The blocks and the final norm in float32, for `shape`.

    Inputs: x [rows, sequence, hidden] (embedded tokens); cos, sin [rows, 1, sequence, d] (sin with
    the rotation's sign); mask [rows, 1, group * sequence, past + sequence] (0, or a large negative
    number); past_key.L, past_value.L [rows, kv_heads, past, d].
    Outputs: hidden [rows, sequence, hidden]; key.L, value.L [rows, kv_heads, sequence, d].
    """
    return _Decoder(model, shape).build()


def head_graph(model: StaticModel, rows: int) -> onnx.ModelProto:
    """The output head in float32: hidden [rows, 1, hidden] -> logits [rows, 1, vocabulary].

    The head is cut into pieces of `HEAD_PIECE` tokens: the HTP compiler takes 60 s for one matrix
    of 49,152 rows and 2 s for the same matrix in sixteen.
    """
    g = _Nodes()
    g.take("hidden", [rows, 1, model.hidden])
    pieces = []
    for start in range(0, model.vocabulary, HEAD_PIECE):
        name = f"head.{start // HEAD_PIECE}"
        weight = g.constant(name + ".weight", model.head[start : start + HEAD_PIECE].T)
        pieces.append(g.op("MatMul", ["hidden", weight], name))
    g.op("Concat", pieces, "logits", axis=2)
    g.give("logits", [rows, 1, model.vocabulary])
    return g.model("head")
