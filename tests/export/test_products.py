"""The nodes around an integer product, run by onnxruntime on rows of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.graph import IR_VERSION, OPSETS, FloatDecoder, Product
from export.products import Steps, bound_norms, integer_product
from export.quantize import LEVELS, GraphParts, per_channel
from export.recipes import RECIPES
from export.tensors import LazyTensor, TensorFile

WIDTH, OUTPUTS = 96, 32
BITS = np.sqrt(WIDTH) / (4 * LEVELS**2)
"""Half of the second term's step, for a row of RMS 1."""


def some(name: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(name).normal(size=shape).astype(np.float32)


WEIGHT, SCALE = per_channel(some(1, OUTPUTS, WIDTH))
EXACT = WEIGHT.astype(np.float64).T * SCALE
"""The weight that the integers stand for, [K, N]."""
GAIN = np.abs(some(2, WIDTH)) * 3 + 0.01


def session(folder: Path, *, after_a_norm: bool) -> onnxruntime.InferenceSession:
    """x [rows, 1, K] -> y [rows, 1, N], with a norm before the product or without."""
    source = "normed" if after_a_norm else "x"
    product = Product("/mlp", source, "y", LazyTensor((WIDTH, OUTPUTS), lambda: EXACT))
    norm = helper.make_node(
        "SimplifiedLayerNormalization", ["x", "gain"], ["normed"], axis=-1, epsilon=1e-6
    )
    matmul = helper.make_node("MatMul", [source, ""], ["y"], name="/mlp")
    nodes = [norm, matmul] if after_a_norm else [matmul]
    decoder = FloatDecoder("llama", nodes, [], [], {"gain": LazyTensor.of(GAIN)}, {"/mlp": product})
    steps: dict[str, Steps] = bound_norms(decoder, RECIPES["cpu-int8"])
    assert (source in steps) == after_a_norm
    with TensorFile(folder) as file:
        parts = GraphParts(file)
        if after_a_norm:
            parts.tensor("gain", decoder.tensors["gain"].load())
            parts.nodes.append(norm)
        weight, scale = parts.tensor("w", np.ascontiguousarray(WEIGHT.T)), parts.tensor("s", SCALE)
        integer_product(parts, product, weight, scale, 2, steps.get(source))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1, width])
        for name, width in (("x", WIDTH), ("y", OUTPUTS))
    ]
    tensors = [file.proto(name) for name in parts.used]
    graph = helper.make_graph(parts.nodes, "product", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid(*one) for one in OPSETS.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    path = folder / "product.onnx"
    path.write_bytes(model.SerializeToString())
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    return session(tmp_path_factory.mktemp("plain"), after_a_norm=False)


@pytest.fixture(scope="module")
def normed(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    return session(tmp_path_factory.mktemp("normed"), after_a_norm=True)


def run(session: onnxruntime.InferenceSession, rows: np.ndarray) -> Any:
    return session.run(None, {"x": rows[:, None]})[0][:, 0]


ROWS = st.tuples(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from([0.0, 1e-6, 1.0, 1e5]), min_size=1, max_size=5),
    st.sampled_from([1.0, 3.0, 1000.0]),
)


def rows_of(drawn: tuple[int, list[float], float]) -> np.ndarray:
    """Rows of very different sizes, each with one value that stands out."""
    seed, sizes, outlier = drawn
    x = some(seed, len(sizes), WIDTH)
    x[:, seed % WIDTH] *= outlier
    return x * np.array(sizes, np.float32)[:, None]


@settings(deadline=None, max_examples=40)
@given(ROWS)
def test_a_product_errs_by_less_than_its_last_bit(
    plain: onnxruntime.InferenceSession, drawn: tuple[int, list[float], float]
) -> None:
    x = rows_of(drawn)
    size = np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True))
    allowed = 1.02 * BITS * size * np.abs(EXACT).sum(0) + 2e-5 * np.abs(x) @ np.abs(EXACT)
    assert (np.abs(run(plain, x) - x @ EXACT) <= allowed + 1e-12).all()


@settings(deadline=None, max_examples=40)
@given(ROWS)
def test_after_a_norm_no_value_leaves_the_range(
    normed: onnxruntime.InferenceSession, drawn: tuple[int, list[float], float]
) -> None:
    x = rows_of(drawn).astype(np.float64)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * GAIN
    allowed = 1.02 * BITS * GAIN.max() * np.abs(EXACT).sum(0) + 2e-5 * np.abs(expected) @ np.abs(
        EXACT
    )
    found = run(normed, x.astype(np.float32))
    assert (np.abs(found - expected @ EXACT) <= allowed).all()


@settings(deadline=None, max_examples=20)
@given(ROWS)
def test_a_row_is_the_same_alone_and_among_others(
    plain: onnxruntime.InferenceSession,
    normed: onnxruntime.InferenceSession,
    drawn: tuple[int, list[float], float],
) -> None:
    x = rows_of(drawn)
    for session in (plain, normed):
        together = run(session, x)
        for index in range(len(x)):
            np.testing.assert_array_equal(together[index], run(session, x[index : index + 1])[0])


def test_a_row_of_zeros_gives_zeros(plain: onnxruntime.InferenceSession) -> None:
    np.testing.assert_array_equal(run(plain, np.zeros((2, WIDTH), np.float32)), 0)
