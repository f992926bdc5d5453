"""What other phone providers would take of a bundle, from onnxruntime's own checker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.bundle import Bundle
from edge_runtime.errors import BundleError
from export.mobile import XNNPACK_OPERATORS, graph_usability, table, usability

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
    # The product by a constant and Softmax, apart: a product of two activations lies between them.
    assert (found["XNNPACK"]["taken"], found["XNNPACK"]["partitions"]) == (2, 2)
    assert found["XNNPACK"]["refused"] == ["MatMul"]
    assert found["NNAPI"]["nodes"] == 3


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_truncated_graph_is_refused_in_one_line(
    tiny_bundle: Bundle, tmp_path: Path, kept: float
) -> None:
    whole = (tiny_bundle.path / "decoder.onnx").read_bytes()
    (tmp_path / "decoder.onnx").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(BundleError, match=r"decoder\.onnx: this is no whole ONNX graph"):
        graph_usability(tmp_path / "decoder.onnx")


def test_the_list_for_xnnpack_is_one_that_the_checker_reads() -> None:
    from importlib import resources

    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    with resources.as_file(resources.files("export.data") / XNNPACK_OPERATORS) as path:
        listed = checker._SupportedOpsChecker(path)._ops
    assert {"ai.onnx:MatMul", "ai.onnx:Gemm", "ai.onnx:Softmax", "ai.onnx:Conv"} <= listed.keys()
    assert not [name for name in listed if "microsoft" in name]
