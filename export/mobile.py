"""What the phone providers other than QNN would take of a bundle's graphs, node by node.

NNAPI and CoreML: onnxruntime's own mobile usability checker, called as a library. It knows their
operators and the ranks CoreML allows, not every restriction, so its counts are upper bounds.
XNNPACK is not in that checker and not in the stock wheel: its published operator list is applied
here (float MatMul and Gemm by a constant, Softmax, pooling and convolutions).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from edge_runtime.bundle import Bundle

XNNPACK = frozenset(
    {"AveragePool", "Conv", "ConvTranspose", "Gemm", "MatMul", "MaxPool", "Resize", "Softmax"}
)
_BY_CONSTANT = frozenset({"Gemm", "MatMul"})

Taken = dict[str, Any]


def usability(bundle: Bundle) -> dict[str, dict[str, Taken]]:
    """By graph and provider: what would be taken if the shapes were fixed, and as exported.

    `nodes`: of the graph; `taken`: with fixed shapes; `taken_dynamic`: with the shapes as they
    are; `partitions`: pieces the graph falls into; `refused`: operators it does not know.
    """
    graphs = sorted(bundle.path.glob("*.onnx"))
    return {path.stem: graph_usability(path) for path in graphs if not path.stem.endswith("_ctx")}


def graph_usability(path: Path) -> dict[str, Taken]:
    """The same for one ONNX file; its external weights are not read."""
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    model = onnx.load(str(path), load_external_data=False)
    shaped = onnx.shape_inference.infer_shapes(model)

    def coreml(kind: str) -> Callable[[onnx.ModelProto, bool], Any]:
        name = f"coreml_supported_{kind}_ops.md"
        return lambda graph, fixed: checker.check_coreml_partitions(graph, fixed, name)

    return {
        "NNAPI": _checked(checker.check_nnapi_partitions, shaped),
        "CoreML NeuralNetwork": _checked(coreml("neuralnetwork"), shaped),
        "CoreML MLProgram": _checked(coreml("mlprogram"), shaped),
        "XNNPACK": _xnnpack(model),
    }


def _checked(check: Callable[[onnx.ModelProto, bool], Any], model: onnx.ModelProto) -> Taken:
    fixed = check(model, False)
    # Without any inferred shape the checker refuses to look; then nothing is of a fixed size.
    dynamic = check(model, True) if model.graph.value_info else None
    return {
        "nodes": fixed.num_nodes,
        "taken": fixed.num_supported_nodes,
        "taken_dynamic": dynamic.num_supported_nodes if dynamic else 0,
        "partitions": fixed.num_partitions,
        "refused": sorted(name.removeprefix("ai.onnx:") for name in fixed.unsupported_ops),
        "advice": fixed.suitability().name.lower(),
    }


def _xnnpack(model: onnx.ModelProto) -> Taken:
    constants = {tensor.name for tensor in model.graph.initializer}
    taken = [
        node
        for node in model.graph.node
        if node.domain in ("", "ai.onnx")
        and node.op_type in XNNPACK
        and (node.op_type not in _BY_CONSTANT or node.input[1] in constants)
    ]
    kinds = Counter(node.op_type for node in model.graph.node)
    return {
        "nodes": len(model.graph.node),
        "taken": len(taken),
        "taken_dynamic": len(taken),
        "partitions": len(taken),
        "refused": sorted(set(kinds) - {node.op_type for node in taken}),
        "advice": "yes" if len(taken) * 2 > len(model.graph.node) else "no",
    }


def table(found: dict[str, dict[str, Taken]]) -> str:
    """The findings as a Markdown table."""
    lines = [
        "| graph | provider | nodes taken, shapes fixed | as exported | partitions | advice |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {graph} | {provider} | {row['taken']} of {row['nodes']} | {row['taken_dynamic']} "
        f"| {row['partitions']} | {row['advice']} |"
        for graph, providers in found.items()
        for provider, row in providers.items()
    ]
    return "\n".join(lines)
