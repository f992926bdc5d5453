"""The decoder's products with integers: few and cheap nodes around each of them.

`export.quantize` says what two terms are. A node costs 3 us before it does anything, and a step has
120 products, so what surrounds one counts as much as the product:

    steps       [T, 1, K], within +-63, that stand for the activations
    bytes       [T, 2, K]: round(steps), and 126 times what that left
    product     [T, 2, N], ONE MatMulIntegerToFloat
    result      [T, 1, N]: first + second / 126, and the row's unit, as ONE product with what the
                two terms are worth, [1, 2] by [2, N] for each token

After a norm the steps cost nothing: a row of RMS 1 has no value above sqrt(K), so the norm's own
gain, divided by sqrt(K) * max|gain| / 63, gives steps within bounds for every input. Elsewhere one
RMS norm makes them and hands out its 1 / RMS, by which the result is divided. Against the row's
largest value this gives up one to three of 14 bits, and weights have 8.

A recipe with one term has no bit to give up and divides by the row's largest value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from export.graph import FloatDecoder, Product
from export.quantize import LEVELS, ROWS, GraphParts, quantize_rows
from export.recipes import Recipe
from export.tensors import Array, LazyTensor

FINE = np.float32(1 / (2 * LEVELS))
"""Worth of the second term."""
_NORMS = {"SimplifiedLayerNormalization": 1, "SkipSimplifiedLayerNormalization": 2}
"""Where each kind of norm has its gain among the inputs."""
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Steps:
    """Activations as numbers within +-LEVELS: activation = step * unit / inverse."""

    name: str
    unit: float
    inverse: str | None = None
    """A tensor [T, 1, 1], or None for 1."""


def bound_norms(decoder: FloatDecoder, recipe: Recipe) -> dict[str, Steps]:
    """Make norms that only two-term products read give steps; which, by the norm's output."""
    readers: dict[str, list[Any]] = {}
    for node in decoder.nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in decoder.nodes:
        output = node.output[0]
        read_by = [decoder.products.get(reader.name) for reader in readers.get(output, [])]
        if node.op_type not in _NORMS or not read_by:
            continue
        if any(product is None or recipe.terms_at(product.site) != 2 for product in read_by):
            continue
        gain = node.input[_NORMS[node.op_type]]
        values = decoder.tensors[gain].load().astype(np.float64)
        unit = float(np.abs(values).max() * np.sqrt(len(values)) / LEVELS) or 1.0
        decoder.tensors[gain] = LazyTensor.of((values / unit).astype(np.float32))
        found[output] = Steps(output, unit)
    return found


def integer_product(
    parts: GraphParts, product: Product, weight: str, scale: str, terms: int, steps: Steps | None
) -> None:
    """`product` with the int8 tensor `weight` [K, N], scales [N], and `steps` from `bound_norms`.

    Node for node the same for each row, whatever rows are beside it: bit-equal alone or together.
    """
    width, y = product.weight.shape[0], product.y
    if terms == 1:
        integers, row_scale = quantize_rows(parts, product.x, 1)
        out = _multiply(parts, integers, weight, scale, 1.0, y + "/product")
        parts.node("Mul", [out, row_scale], y)
        return
    steps = steps or _normalised(parts, product.x, width)
    out = _multiply(parts, _bytes(parts, steps.name), weight, scale, steps.unit, y + "/product")
    worth = parts.tensor("q.worth", np.array([[1, FINE]], np.float32))
    if steps.inverse is not None:
        worth = parts.node("Div", [worth, steps.inverse], y + "/worth")
        parts.shapes[worth] = (ROWS, 1, 2)
    parts.node("MatMul", [worth, out], y)
    parts.shapes[y] = (ROWS, 1, product.weight.shape[1])


def _normalised(parts: GraphParts, x: str, width: int) -> Steps:
    """Steps of any activations; a row of zeros stays one."""
    unit = np.sqrt(width) / LEVELS
    gain = parts.tensor(f"q.gain_{width}", np.full(width, 1 / unit, np.float32))
    steps, inverse = f"{x}/q/steps", f"{x}/q/inverse"
    parts.node(
        "SimplifiedLayerNormalization",
        [x, gain],
        [steps, inverse],
        axis=-1,
        epsilon=_TINY,
        stash_type=1,
    )
    return Steps(steps, float(unit), inverse)


def _bytes(parts: GraphParts, steps: str) -> str:
    """Both terms of `steps` [T, 1, K] as uint8 [T, 2, K], zero at 64."""
    node = parts.node
    rest = node("Sub", [steps, node("Round", [steps], steps + "/round")], steps + "/rest")
    terms = node("Concat", [steps, rest], steps + "/terms", axis=1)
    units = parts.tensor("q.units", np.array([1, FINE], np.float32))
    zeros = parts.tensor("q.zeros", np.full(2, LEVELS + 1, np.uint8))
    return node("QuantizeLinear", [terms, units, zeros], steps + "/int", axis=1)


def _multiply(parts: GraphParts, x: str, weight: str, scale: str, unit: float, y: str) -> str:
    one: Array = np.array(unit, np.float32)
    # Named by its value: every norm has its own, and all sites that share one share the tensor.
    name = parts.tensor(f"q.unit_{float(one).hex()}", one)
    zero = parts.tensor("q.zero", np.uint8(LEVELS + 1))
    return parts.node(
        "MatMulIntegerToFloat", [x, weight, name, scale, zero], y, domain="com.microsoft"
    )
