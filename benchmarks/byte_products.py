"""Whether this processor's byte products are exact: 63 levels an activation byte, and 127.

x86 without VNNI adds pairs of products in 16 bits and saturates. To see it on a newer machine:
`qemu-x86_64-static -cpu Haswell $(readlink -f $(which python)) benchmarks/byte_products.py`
"""

from __future__ import annotations

import json
import platform

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

WIDTH, OUTPUTS, ROWS = 256, 32, 4


def exact(levels: int, zero: int) -> bool:
    """Whether onnxruntime's QGemm agrees with 64-bit integers, at the largest values."""
    some = np.random.default_rng(0)
    weight = some.integers(-127, 128, (OUTPUTS, WIDTH)).astype(np.int8)
    weight[0] = 127
    x = some.integers(zero - levels, zero + levels + 1, (ROWS, WIDTH)).astype(np.uint8)
    x[0] = zero + levels
    tensors = {
        "one": np.float32(1),
        "zero": np.uint8(zero),
        "weight": weight,
        "scale": np.ones(OUTPUTS, np.float32),
        "zeros": np.zeros(OUTPUTS, np.int8),
    }
    inputs = ["x", "one", "zero", "weight", "scale", "zeros"]
    graph = helper.make_graph(
        [helper.make_node("QGemm", inputs, ["y"], domain="com.microsoft", transB=1)],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", OUTPUTS])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = (x.astype(np.int64) - zero) @ weight.T.astype(np.int64)
    return bool(np.array_equal(session.run(None, {"x": x})[0], expected))


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "machine": platform.machine(),
                "exact_63_levels": exact(63, 64),
                "exact_127_levels": exact(127, 128),
            }
        )
    )
