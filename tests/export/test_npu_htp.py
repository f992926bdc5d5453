"""Compiled NPU graphs on Qualcomm's HTP simulator: all nodes placed, same numbers as the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge_runtime.errors import EnvironmentFailure
from edge_runtime.npu import qnn
from edge_runtime.npu.branches import NpuBranches
from edge_runtime.steering import log_softmax
from export.npu.build import NpuBuild, NpuOptions, build
from export.npu.compile import HTP, compile_graph
from export.npu.graph import Shape, decoder_graph
from export.npu.model import static_model
from export.npu.socs import soc
from tests.export.test_npu_graph import AGNOSTIC, ANSWER, AWARE, architecture_of, load
from tests.tiny import VOCABULARY_SIZE, write_model

pytestmark = [
    pytest.mark.npu,
    pytest.mark.skipif(
        not (qnn.available() and qnn.simulated()), reason="needs the [npu] extra on x86_64 Linux"
    ),
]

_ORDER = np.random.default_rng(5)
PROMPTS = [[1, *_ORDER.permutation(np.arange(3, VOCABULARY_SIZE))[:32].tolist()] for _ in range(16)]
"""Calibration: a token that never occurred there would be cut off at another's range."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(write_model(tmp_path_factory.mktemp("model"), "qwen2"))


@pytest.fixture(scope="module", params=["npu-qnn", "npu-qnn-w8a16"])
def built(
    request: pytest.FixtureRequest, model: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, NpuBuild]:
    folder = tmp_path_factory.mktemp(request.param)
    options = NpuOptions(target=request.param, chunk=8, past=32)
    return folder, build(model, folder, options, calibration=PROMPTS)


def scores(folder: Path, made: NpuBuild, model: Any, backend: str) -> np.ndarray:
    """Logits [3, 2, V]: after the prompts, after a decode step, after a chunk."""
    branches = NpuBranches(folder, made.section, architecture_of(model), backend=backend)
    branches.prefill(AWARE, AGNOSTIC)
    out = [branches.logits().copy()]
    branches.extend(ANSWER[:1])
    out.append(branches.logits().copy())
    branches.extend(ANSWER[1:])
    out.append(branches.logits().copy())
    return np.stack(out)


def divergence(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """KL in nats between the distributions of two arrays of logits [..., V]."""
    p, q = log_softmax(wanted.astype(np.float64)), log_softmax(got.astype(np.float64))
    return (np.exp(p) * (p - q)).sum(-1)


def test_every_node_is_on_htp_and_the_binaries_are_named(built: tuple[Path, NpuBuild]) -> None:
    folder, made = built
    for name in ("prefill", "decode", "head"):
        coverage = made.section.coverage[name]
        assert set(coverage.nodes) == {HTP}
        assert coverage.nodes[HTP] == sum(coverage.operators[HTP].values()) > 1
        graph = getattr(made.section, name)
        assert (folder / graph.binary).stat().st_size > 10_000
        static = onnx.load(str(folder / graph.static), load_external_data=False).graph
        placed = json.loads((folder / "placement.json").read_text())[name]
        assert {provider for provider, _, _ in placed} == {HTP}
        names = {node.name for node in static.node}
        # onnxruntime may split or add a conversion; whatever is in the graph is in the list.
        assert len(names & {node for _, _, node in placed}) > 0.9 * len(names)
    assert [path.name for path in folder.glob("*.json")] == ["placement.json"]


def test_the_simulator_says_what_the_cpu_says(built: tuple[Path, NpuBuild], model: Any) -> None:
    folder, made = built
    on_cpu, on_htp = (scores(folder, made, model, backend) for backend in ("cpu", "simulator"))
    assert divergence(on_cpu, on_htp).max() < 0.002


def test_both_recipes_are_near_the_float_model(built: tuple[Path, NpuBuild], model: Any) -> None:
    import torch

    folder, made = built
    got = scores(folder, made, model, "cpu")
    for row, prompt in enumerate((AWARE, AGNOSTIC)):
        with torch.no_grad():
            wanted = model(torch.tensor([prompt + ANSWER])).logits[0].numpy()
        for at, kept in enumerate((0, 1, len(ANSWER))):
            expected = wanted[len(prompt) + kept - 1]
            assert divergence(expected, got[at, row]) < 0.002


def test_the_same_model_gives_the_same_bytes(
    built: tuple[Path, NpuBuild], model: Any, tmp_path: Path
) -> None:
    folder, made = built
    target = "npu-qnn" if made.section.recipe == "blocks" else "npu-qnn-w8a16"
    build(model, tmp_path, NpuOptions(target=target, chunk=8, past=32), calibration=PROMPTS)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_graph_that_htp_cannot_run_whole_is_an_error_and_leaves_nothing(
    tmp_path: Path, model: Any
) -> None:
    """fp16 on v68: refused, where a silent fallback would have run it on the CPU."""
    graph = tmp_path / "decode.onnx"
    graph.write_bytes(decoder_graph(static_model(model), Shape(2, 1, 16)).SerializeToString())
    with pytest.raises(EnvironmentFailure, match=r"HTP v68 does not take this graph"):
        compile_graph(graph, tmp_path / "decode_ctx.onnx", soc("SM8350"))
    assert [path.name for path in tmp_path.iterdir()] == ["decode.onnx"]
