"""What other phone providers would take of a bundle, from onnxruntime's own checker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.bundle import Bundle
from export.mobile import graph_usability, table, usability

PROVIDERS = {"NNAPI", "CoreML NeuralNetwork", "CoreML MLProgram", "XNNPACK"}


def test_every_graph_is_judged_for_every_provider(tiny_bundle: Bundle) -> None:
    found = usability(tiny_bundle)
    assert set(found) == {"decoder", "head", "candidates"}
    nodes = {
        name: len(onnx.load(tiny_bundle.path / f"{name}.onnx", load_external_data=False).graph.node)
        for name in found
    }
    for graph, providers in found.items():
        assert set(providers) == PROVIDERS
        for row in providers.values():
            assert row["nodes"] == nodes[graph]
            assert 0 <= row["taken_dynamic"] <= row["taken"] <= row["nodes"]
    # Attention in one operator is what makes the decoder fast on a CPU, and nobody else knows it.
    assert "com.microsoft:GroupQueryAttention" in found["decoder"]["NNAPI"]["refused"]
    assert found["decoder"]["NNAPI"]["advice"] == "no"
    assert table(found).count("\n") == 1 + 3 * len(PROVIDERS)


def test_a_float_product_by_a_constant_is_xnnpack_s(tmp_path: Path) -> None:
    shape = [1, 4, 4]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("MatMul", ["y", "x"], ["z"]),
            helper.make_node("Softmax", ["z"], ["p"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    found = graph_usability(path)
    assert found["XNNPACK"]["taken"] == 2  # the product by a constant, and Softmax
    assert found["NNAPI"]["nodes"] == 3
