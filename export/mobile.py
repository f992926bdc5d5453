"""What the phone providers other than QNN would take of a bundle's graphs, node by node.

onnxruntime's own mobile usability checker, called as a library. It brings lists of operators for
NNAPI and CoreML; XNNPACK's is read from that provider's source (`export/data`), since the checker
has none and the stock wheel is built without it. The checker knows operators, ranks and fixed
shapes, and for XNNPACK's products also that a factor must be constant; not every restriction, so
its counts are upper bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from edge_runtime.bundle import Bundle
from edge_runtime.errors import BundleError

XNNPACK_OPERATORS = "xnnpack_supported_ops.md"

Taken = dict[str, Any]


def usability(bundle: Bundle) -> dict[str, dict[str, Taken]]:
    """By graph and provider: what would be taken if the shapes were fixed, and as exported.

    `nodes`: of the graph; `taken`: with fixed shapes; `taken_dynamic`: with the shapes as they
    are; `partitions`: pieces the graph falls into; `refused`: operators it does not know.
    """
    graphs = sorted(bundle.path.glob("*.onnx"))
    return {path.stem: graph_usability(path) for path in graphs if not path.stem.endswith("_ctx")}


def graph_usability(path: Path) -> dict[str, Taken]:
    """The same for one ONNX file; its external weights are not read. Raises `BundleError`."""
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    try:
        model = onnx.load(str(path), load_external_data=False)
        shaped = onnx.shape_inference.infer_shapes(model)
    except (DecodeError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise BundleError(
            str(path), "this is no whole ONNX graph", todo="Export or fetch the bundle again"
        ) from error

    def coreml(kind: str) -> Callable[[onnx.ModelProto, bool], Any]:
        name = f"coreml_supported_{kind}_ops.md"
        return lambda graph, fixed: checker.check_coreml_partitions(graph, fixed, name)

    return {
        "NNAPI": _checked(checker.check_nnapi_partitions, shaped),
        "CoreML NeuralNetwork": _checked(coreml("neuralnetwork"), shaped),
        "CoreML MLProgram": _checked(coreml("mlprogram"), shaped),
        "XNNPACK": _checked(_xnnpack, shaped),
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


def _xnnpack(model: onnx.ModelProto, fixed: bool) -> Any:
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    constants = {tensor.name for tensor in model.graph.initializer}

    class Operators(checker._SupportedOpsChecker):
        """The list, and the restriction that decides: products of two activations are not taken."""

        def is_op_supported(self, node: onnx.NodeProto) -> bool:
            by_constant = all(name in constants for name in node.input[1:])
            if node.op_type in ("MatMul", "Gemm") and not by_constant:
                return False
            return bool(super().is_op_supported(node))

    with resources.as_file(resources.files("export.data") / XNNPACK_OPERATORS) as path:
        return checker.check_partitioning(model.graph, Operators(path), fixed)


def brief(found: dict[str, dict[str, Taken]]) -> dict[str, dict[str, Taken]]:
    """The findings without the names of what was refused, for the report."""
    return {
        graph: {
            provider: {key: value for key, value in row.items() if key != "refused"}
            for provider, row in providers.items()
        }
        for graph, providers in found.items()
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
