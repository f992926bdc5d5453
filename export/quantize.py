"""Weights and activations as integers: the building blocks that recipes are made of.

Two-term activations (`cpu-int8`): one 8-bit integer per activation loses most of the steered
policy's precision, since steering amplifies errors six- to eightfold. So each row x is written as

    s = max|x| / L,   q1 = round(x / s),   q2 = round((x / s - q1) * 2L)
    x = s * (q1 + q2 / 2L)  up to  s / 4L

and both integer rows go through ONE product with the same int8 weights: integer kernels, weights
read once, activations as precise as 14 bits. With L = 63 a product of an unsigned activation byte
(at most 127) and a weight (at most 127), added in pairs, stays below 2^15: x86 processors without
VNNI multiply bytes with an instruction that saturates there, so L = 127 would be wrong on them.
Each row has its own scale, which keeps rows in one call independent, bit for bit.

Here are tables and heads; the decoder's products are in `export.products`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from export.tensors import Array, TensorFile

LEVELS = 63
"""Largest integer of an activation (L above)."""

ROWS, TERM_ROWS = "rows", "term_rows"
"""Names of two numbers in a graph: tokens, and both terms of all tokens."""

_TINY = np.float32(1e-30)


@dataclass(slots=True)
class GraphParts:
    """A graph being written: its nodes, and the names of the tensors they use."""

    file: TensorFile
    nodes: list[Any] = field(default_factory=list)
    used: dict[str, None] = field(default_factory=dict)
    shapes: dict[str, tuple[int | str | None, ...]] = field(default_factory=dict)
    """Of float tensors whose number of rows shape inference cannot name. Without a name,
    onnxruntime reuses no buffer of theirs and searches them all: loading took 10 x longer."""

    def node(
        self,
        op: str,
        inputs: list[str],
        output: str | list[str],
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node named after its first output; returns that output."""
        from onnx import helper

        outputs = [output] if isinstance(output, str) else output
        self.nodes.append(
            helper.make_node(
                op, inputs, outputs, name="/" + outputs[0], domain=domain or None, **attributes
            )
        )
        return outputs[0]

    def tensor(self, name: str, array: Array | np.generic) -> str:
        """Store (once) and refer to a tensor."""
        self.used[self.file.add(name, np.asarray(array))] = None
        return name


def per_channel(weight: Array) -> tuple[Array, Array]:
    """Symmetric int8 per output channel: weight [N, K] as (int8 [N, K], float32 scales [N])."""
    scale = (np.abs(weight).max(axis=1) / np.float32(127)).astype(np.float32)
    scale[scale == 0] = 1
    quantized = np.clip(np.rint(weight / scale[:, None]), -127, 127).astype(np.int8)
    return quantized, scale


def quantize_rows(parts: GraphParts, x: str, terms: int) -> tuple[str, str]:
    """Nodes that write x [T, K] as uint8 [terms * T, K], zero at 64, and its scales [T, 1].

    An all-zero row gets a tiny scale instead of a division by zero.
    """
    p = f"{x}/q"
    t, node = parts.tensor, parts.node
    largest = node("ReduceMax", [node("Abs", [x], p + "/abs"), t("q.axis", _ints(-1))], p + "/max")
    guarded = node("Max", [largest, t("q.tiny", _TINY)], p + "/guard")
    scale = node("Mul", [guarded, t("q.step", np.float32(1 / LEVELS))], p + "/scale")
    steps = node("Div", [x, scale], p + "/steps")
    if terms == 2:
        rest = node("Sub", [steps, node("Round", [steps], p + "/round")], p + "/rest")
        fine = node("Mul", [rest, t("q.fine", np.float32(2 * LEVELS))], p + "/fine")
        steps = node("Concat", [steps, fine], p + "/terms", axis=0)
        parts.shapes[steps] = (TERM_ROWS, None)
    one, zero = t("q.one", np.float32(1)), t("q.zero", np.uint8(64))
    return node("QuantizeLinear", [steps, one, zero], p + "/int"), scale


def table_product(
    parts: GraphParts,
    x: tuple[str, str],
    weight: str,
    scale: str,
    zeros: str,
    y: str,
    terms: int,
) -> None:
    """y [T, N] = x @ weight with `x` from `quantize_rows`, int8 weight [N, K], scales [N].

    By rows, as a table is whose rows are also looked up. A session takes longer to load it so,
    since kernels pack weights by columns.
    """
    integers, row_scale = x
    one, zero = parts.tensor("q.one", np.float32(1)), parts.tensor("q.zero", np.uint8(64))
    out = parts.node(
        "QGemm",
        [integers, one, zero, weight, scale, zeros],
        y + "/product",
        domain="com.microsoft",
        transB=1,
    )
    if terms == 2:
        high, low = y + "/high", y + "/low"
        parts.node("Split", [out], [high, low], axis=0, num_outputs=2)
        parts.shapes |= {out: (TERM_ROWS, None), high: (ROWS, None), low: (ROWS, None)}
        fine = parts.tensor("q.unfine", np.float32(1 / (2 * LEVELS)))
        low = parts.node("Mul", [low, fine], y + "/low_scaled")
        out = parts.node("Add", [high, low], y + "/sum")
    parts.node("Mul", [out, row_scale], y)


def zero_points(parts: GraphParts, count: int) -> str:
    """A tensor of `count` int8 zeros (QGemm wants one per channel)."""
    return parts.tensor(f"q.zeros_{count}", np.zeros(count, np.int8))


def block_weights(weight: Array, bits: int, block: int) -> tuple[Array, Array]:
    """Symmetric blocks for MatMulNBits: weight [N, K] as uint8 [N, blocks, bytes] and its scales.

    Scales are float32 [N, blocks]; the last block is padded with zeros; the zero is 2^(bits-1).
    """
    rows, width = weight.shape
    blocks = -(-width // block)
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :width] = weight
    padded = padded.reshape(rows, blocks, block)
    middle = 1 << (bits - 1)
    # The extreme value of each block sits exactly on the grid's far end, whichever its sign.
    index = np.abs(padded).argmax(axis=2)
    extreme = np.take_along_axis(padded, index[:, :, None], axis=2)[:, :, 0]
    scale = (-extreme / middle).astype(np.float32)
    scale[scale == 0] = 1
    quantized = np.clip(np.rint(padded / scale[:, :, None]) + middle, 0, 2 * middle - 1)
    packed = quantized.astype(np.uint8)
    if bits == 4:
        packed = packed[:, :, 0::2] | (packed[:, :, 1::2] << 4)
    return packed, scale


def _ints(*values: int) -> Array:
    return np.array(values, np.int64)
