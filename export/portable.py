"""The `portable` target: optimum's graph of plain ONNX operators, for runtimes that lack
GroupQueryAttention.

Attention is written out, keys and values grow from call to call (`edge_runtime.graphs.growing` runs
it), and the only operators outside the ONNX standard are the quantized products: MatMulNBits in the
decoder, and the head's. Head, candidates and embedding are those of every CPU target.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import DECODER
from edge_runtime.errors import UsageError
from export.graph import IR_VERSION, embedding_weight, head_weight
from export.quantize import GraphParts, block_weights
from export.recipes import Recipe
from export.tensors import Array, TensorFile
from export.write import ACCURACY_INT8, store_rows, write_heads

HIDDEN = "hidden"


def write_portable(folder: Path, model: Any, recipe: Recipe) -> int:
    """Write the three graphs and weights.bin of a transformers causal model; the latter's bytes.

    Raises `UsageError` when optimum has no export for the model, or one that does not end in a
    plain product with the head.
    """
    embedding = embedding_weight(model)
    # Beside the bundle's files, where the room for it was checked and everything is cleaned up.
    with tempfile.TemporaryDirectory(dir=folder) as work, TensorFile(folder) as file:
        source = Path(work) / "model.onnx"
        _export(model, source)
        write_heads(folder, file, head_weight(model), recipe)
        if embedding is not None:
            store_rows(file, "embedding", embedding, recipe)
        table = "head" if embedding is None else "embedding"
        _write_decoder(folder, file, source, recipe, table)
        return file.size_bytes


def _export(model: Any, path: Path) -> None:
    from optimum.exporters.onnx.convert import export
    from optimum.exporters.tasks import TasksManager

    task = "text-generation"
    kind = model.config.model_type
    with _quiet():
        try:
            make = TasksManager.get_exporter_config_constructor(
                "onnx", model=model, task=task, library_name="transformers"
            )
        except (KeyError, ValueError) as error:
            raise UsageError(
                "--target", "optimum cannot export this family", got=kind,
                todo="Use --target cpu-int8-block for this model",
            ) from error  # fmt: skip
        config = make(model.config, task=task, use_past=True, use_past_in_inputs=True)
        export(model, config, path)


def _write_decoder(
    folder: Path, file: TensorFile, source: Path, recipe: Recipe, table: str
) -> None:
    import onnx
    from onnx import helper

    plain = onnx.load(str(source), load_external_data=False)
    graph = plain.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    parts = GraphParts(file)
    logits = _producer(graph, "logits")
    if logits.op_type != "MatMul" or logits.input[1] not in weights:
        raise UsageError(
            "--target", "optimum's graph does not end in a plain head", got=logits.op_type,
            todo="Use --target cpu-int8-block for this model",
        )  # fmt: skip
    _producer(graph, logits.input[0]).output[0] = HIDDEN
    for node in graph.node:
        if node is logits or list(node.output) == list(logits.output):
            continue
        if node.op_type == "Gather" and _is_embedding(weights.get(node.input[0]), node):
            _write_embedding(parts, node, table)
        elif node.op_type == "MatMul" and node.input[1] in weights:
            weight = _array(weights[node.input[1]], source.parent)
            _write_product(parts, node, np.ascontiguousarray(weight.T), recipe)
        else:
            for name in node.input:
                if name in weights:
                    parts.tensor(name, _array(weights[name], source.parent))
            parts.nodes.append(node)
    width = [value for value in graph.output if value.name == "logits"]
    width[0].name = HIDDEN
    width[0].type.tensor_type.shape.dim[2].dim_value = _hidden_size(plain, logits)
    opsets = {one.domain: one.version for one in plain.opset_import} | {"com.microsoft": 1}
    made = helper.make_model(
        helper.make_graph(
            parts.nodes,
            "decoder",
            list(graph.input),
            list(graph.output),
            [file.proto(name) for name in sorted(parts.used)],
        ),
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        ir_version=IR_VERSION,
        producer_name="costeer-edge",
    )
    (folder / DECODER).write_bytes(_named(made).SerializeToString(deterministic=True))


def _named(model: Any) -> Any:
    """The model with the shape of every tensor written down, which halves the time to load it:
    onnxruntime reuses no buffer whose shape it cannot name."""
    import onnx
    from onnx import TensorProto, helper
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    # The inference reads the constants of an element-wise product, and looks for those in
    # weights.bin where we stand. Their shapes are all it needs: as inputs they have nothing else.
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    stored = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    inside = [t for t in model.graph.initializer if t.data_location != TensorProto.EXTERNAL]
    bare.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in stored
    )
    _set(bare.graph, "initializer", inside)
    with _quiet():
        named = SymbolicShapeInference.infer_shapes(bare, auto_merge=True)
    _set(named.graph, "initializer", list(model.graph.initializer))
    _set(named.graph, "input", list(model.graph.input))
    return named


def _set(graph: Any, field: str, values: list[Any]) -> None:
    graph.ClearField(field)
    getattr(graph, field).extend(values)


def _producer(graph: Any, name: str) -> Any:
    return next(node for node in graph.node if name in node.output)


def _hidden_size(model: Any, logits: Any) -> int:
    head = next(t for t in model.graph.initializer if t.name == logits.input[1])
    return int(head.dims[0])


def _is_embedding(tensor: Any, node: Any) -> bool:
    return tensor is not None and len(tensor.dims) == 2 and node.input[1] == "input_ids"


def _write_embedding(parts: GraphParts, node: Any, table: str) -> None:
    from onnx import TensorProto

    ids = node.input[1]
    parts.used |= {f"{table}.weight": None, f"{table}.scale": None}
    rows = parts.node("Gather", [f"{table}.weight", ids], "embedding/rows", axis=0)
    rows = parts.node("Cast", [rows], "embedding/float", to=TensorProto.FLOAT)
    scale = parts.node("Gather", [f"{table}.scale", ids], "embedding/scales", axis=0)
    axis = parts.tensor("embedding.axis", np.array([-1], np.int64))
    scale = parts.node("Unsqueeze", [scale, axis], "embedding/scale")
    parts.node("Mul", [rows, scale], node.output[0])


def _write_product(parts: GraphParts, node: Any, weight: Array, recipe: Recipe) -> None:
    outputs, width = weight.shape
    name = node.name.strip("/").replace("/", ".")
    packed, scale = block_weights(weight, recipe.bits, recipe.block)
    parts.node(
        "MatMulNBits",
        [
            node.input[0],
            parts.tensor(f"{name}.weight", packed),
            parts.tensor(f"{name}.scale", scale.reshape(-1)),
        ],
        node.output[0],
        domain="com.microsoft",
        K=width,
        N=outputs,
        bits=recipe.bits,
        block_size=recipe.block,
        accuracy_level=ACCURACY_INT8,
    )


def _array(tensor: Any, folder: Path) -> Array:
    from onnx import numpy_helper

    array: Array = numpy_helper.to_array(tensor, base_dir=str(folder))
    return array


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of every Python condition in the model's code; ours is compared afterwards."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
