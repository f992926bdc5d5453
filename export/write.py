"""Writes the three graphs of a CPU bundle from a float decoder, the head's weight and a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import CANDIDATES, DECODER, HEAD
from export.graph import IR_VERSION, OPSETS, FloatDecoder, Product
from export.products import Steps, bound_norms, integer_product
from export.quantize import (
    ROWS,
    GraphParts,
    block_weights,
    per_channel,
    quantize_rows,
    table_product,
    zero_points,
)
from export.recipes import Recipe
from export.rewrites import FLAT
from export.tensors import LazyTensor, TensorFile

ACCURACY_INT8 = 4
"""MatMulNBits accuracy level: activations as int8 blocks, the only one with integer kernels."""


def write_graphs(
    folder: Path,
    decoder: FloatDecoder,
    head: LazyTensor,
    embedding: LazyTensor | None,
    recipe: Recipe,
) -> int:
    """Write decoder.onnx, head.onnx, candidates.onnx and weights.bin; returns the latter's bytes.

    `head` and `embedding` are [vocabulary, hidden]; `embedding` is None when tied. The decoder's
    weights are dropped as they are written, so that peak memory stays near the source's size.
    """
    with TensorFile(folder) as file:
        write_heads(folder, file, head, recipe)
        if embedding is not None:
            store_rows(file, "embedding", embedding, recipe)
        _write_decoder(folder, file, decoder, recipe, "head" if embedding is None else "embedding")
        return file.size_bytes


def store_rows(file: TensorFile, name: str, weight: LazyTensor, recipe: Recipe) -> None:
    """Store a table [vocabulary, hidden] as `name`.weight, integers with a `name`.scale a row."""
    if recipe.body == "float":
        file.add(f"{name}.weight", weight.load())
        return
    quantized, scale = per_channel(weight.load())
    file.add(f"{name}.weight", quantized)
    file.add(f"{name}.scale", scale)


def write_heads(folder: Path, file: TensorFile, head: LazyTensor, recipe: Recipe) -> None:
    """Write head.onnx and candidates.onnx, and the table [vocabulary, hidden] that they share."""
    from onnx import TensorProto, helper

    store_rows(file, "head", head, recipe)
    vocabulary, hidden = head.shape
    hidden_in = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["rows", hidden])
    ids_in = helper.make_tensor_value_info("candidate_ids", TensorProto.INT64, ["candidates"])
    for name, width, inputs in (
        (HEAD, vocabulary, [hidden_in]),
        (CANDIDATES, "candidates", [hidden_in, ids_in]),
    ):
        parts = GraphParts(file)
        some = name == CANDIDATES
        weight = _rows(parts, "head.weight", some)
        if recipe.body == "float":
            parts.node("Gemm", ["hidden", weight], "logits", transB=1)
        else:
            scale = _rows(parts, "head.scale", some)
            zeros = zero_points(parts, vocabulary)
            if some:
                zeros = parts.node("Gather", [zeros, "candidate_ids"], "zeros/some", axis=0)
            rows = quantize_rows(parts, "hidden", recipe.head_terms)
            table_product(parts, rows, weight, scale, zeros, "logits", recipe.head_terms)
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", width])
        _save(folder / name, parts, inputs, [logits])


def _rows(parts: GraphParts, tensor: str, some: bool) -> str:
    parts.used[tensor] = None
    if not some:
        return tensor
    return parts.node("Gather", [tensor, "candidate_ids"], f"{tensor}/some", axis=0)


def _write_decoder(
    folder: Path, file: TensorFile, decoder: FloatDecoder, recipe: Recipe, table: str
) -> None:
    parts = GraphParts(file)
    steps = bound_norms(decoder, recipe) if recipe.body == "int8" else {}
    for node in decoder.nodes:
        if node.op_type == "Reshape" and node.input[1].startswith(FLAT):
            parts.shapes[node.output[0]] = (ROWS, 1, None)
        product = decoder.products.pop(node.name, None)
        if product is not None:
            _write_product(parts, product, recipe, steps.get(product.x))
            continue
        for name in node.input:
            if name in decoder.tensors:
                parts.tensor(name, decoder.tensors[name].load())
        parts.nodes.append(node)
        if decoder.embedding_ids in node.output:
            _write_embedding(parts, decoder, table, recipe)
    _save(folder / DECODER, parts, decoder.inputs, decoder.outputs)


def _write_product(
    parts: GraphParts, product: Product, recipe: Recipe, steps: Steps | None
) -> None:
    width, outputs = product.weight.shape
    weight = np.ascontiguousarray(product.weight.load().T)
    name = product.name.strip("/").replace("/", ".")
    if recipe.body == "float":
        kept = parts.tensor(f"{name}.weight", np.ascontiguousarray(weight.T))
        parts.node("MatMul", [product.x, kept], product.y)
    elif recipe.body == "block":
        packed, scale = block_weights(weight, recipe.bits, recipe.block)
        parts.node(
            "MatMulNBits",
            [
                product.x,
                parts.tensor(f"{name}.weight", packed),
                parts.tensor(f"{name}.scale", scale.reshape(-1)),
            ],
            product.y,
            domain="com.microsoft",
            K=width,
            N=outputs,
            bits=recipe.bits,
            block_size=recipe.block,
            accuracy_level=ACCURACY_INT8,
        )
    else:
        quantized, scale = per_channel(weight)
        integer_product(
            parts,
            product,
            parts.tensor(f"{name}.weight", quantized.T),
            parts.tensor(f"{name}.scale", scale),
            recipe.terms_at(product.site),
            steps,
        )


def _write_embedding(parts: GraphParts, decoder: FloatDecoder, table: str, recipe: Recipe) -> None:
    from onnx import TensorProto

    ids, out = decoder.embedding_ids, decoder.embedding_out
    parts.used[f"{table}.weight"] = None
    if recipe.body == "float":
        parts.node("Gather", [f"{table}.weight", ids], out, axis=0)
        return
    parts.used[f"{table}.scale"] = None
    rows = parts.node("Gather", [f"{table}.weight", ids], "embedding/rows", axis=0)
    rows = parts.node("Cast", [rows], "embedding/float", to=TensorProto.FLOAT)
    scale = parts.node("Gather", [f"{table}.scale", ids], "embedding/scales", axis=0)
    axis = parts.tensor("q.axis", np.array([-1], np.int64))
    scale = parts.node("Unsqueeze", [scale, axis], "embedding/scale")
    parts.shapes[out] = (ROWS, 1, None)
    parts.node("Mul", [rows, scale], out)


def _save(path: Path, parts: GraphParts, inputs: list[Any], outputs: list[Any]) -> None:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        parts.nodes,
        path.stem,
        inputs,
        outputs,
        [parts.file.proto(name) for name in sorted(parts.used)],
        value_info=[
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in parts.shapes.items()
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in OPSETS.items()],
        ir_version=IR_VERSION,
        producer_name="costeer-edge",
    )
    path.write_bytes(model.SerializeToString(deterministic=True))
