"""The graph without GroupQueryAttention: against transformers, and behind the runtime's verbs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_runtime.branches import TwoBranches
from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.steering import AGNOSTIC, AWARE
from edge_runtime.text import Text
from export.pipeline import export_bundle
from export.portable import _named
from export.runner import BundleRunner
from export.verify import kl, log_softmax, torch_reference
from tests.tiny import VOCABULARY_SIZE, write_model

LONG, SHORT, STEPS = 140, 31, 3
"""The longer prompt takes two calls; the shorter one leaves a gap that the mask hides."""


@pytest.fixture(scope="module")
def portable(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("portable") / "tiny"
    return open_bundle(
        export_bundle(str(tiny_model_dir), out, target="portable", verify=False).path
    )


@pytest.fixture(scope="module")
def prompts() -> tuple[list[int], list[int], list[int]]:
    ids = np.random.default_rng(5).integers(3, VOCABULARY_SIZE, LONG + SHORT + STEPS).tolist()
    return ids[:LONG], ids[LONG : LONG + SHORT], ids[LONG + SHORT :]


def float_logits(folder: Path, ids: list[int]) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return torch_reference(model)(ids, 1)[0]


def divergence(folder: Path, ids: list[int], found: np.ndarray) -> float:
    return kl(log_softmax(float_logits(folder, ids)), log_softmax(found))


def test_only_the_quantized_products_are_outside_the_standard(portable: Bundle) -> None:
    graph = onnx.load(str(portable.decoder), load_external_data=False).graph
    foreign = {node.op_type for node in graph.node if node.domain not in ("", "ai.onnx")}
    assert foreign == {"MatMulNBits"}
    # Two layers of q, k, v, o, gate, up and down.
    assert sum(node.op_type == "MatMulNBits" for node in graph.node) == 14


def test_the_same_source_gives_the_same_bytes(
    portable: Bundle, tiny_model_dir: Path, tmp_path: Path
) -> None:
    again = export_bundle(str(tiny_model_dir), tmp_path / "b", target="portable", verify=False)
    assert again.manifest.files == portable.manifest.files


def test_both_rows_say_what_transformers_says(
    portable: Bundle, tiny_model_dir: Path, prompts: tuple[list[int], list[int], list[int]]
) -> None:
    aware, agnostic, answer = prompts
    branches = TwoBranches.open(portable, max_length=256)
    branches.prefill(aware, agnostic)
    for length in range(STEPS + 1):
        logits = branches.logits()
        for row, prompt in ((AWARE, aware), (AGNOSTIC, agnostic)):
            said = [*prompt, *answer[:length]]
            assert divergence(tiny_model_dir, said, logits[row]) < 3e-3
        if length < STEPS:
            branches.extend([answer[length]])


def test_rolling_back_and_chunks_give_the_same(
    portable: Bundle, prompts: tuple[list[int], list[int], list[int]]
) -> None:
    aware, agnostic, answer = prompts
    branches = TwoBranches.open(portable, max_length=256)
    branches.prefill(aware, agnostic)
    branches.extend(answer)
    straight = branches.logits()
    branches.rollback(0)
    branches.extend([5, 6])
    branches.rollback(0)
    for token in answer:
        branches.extend([token])
    np.testing.assert_allclose(branches.logits(), straight, atol=1e-4)


def test_two_ragged_rows_in_one_call_agree_with_each_alone(
    portable: Bundle, prompts: tuple[list[int], list[int], list[int]]
) -> None:
    runner = BundleRunner(portable)
    aware, agnostic, answer = prompts
    both_cache = runner.caches(2, 256)
    both = runner.hidden([aware, agnostic], both_cache)
    step = runner.hidden([answer[:1]] * 2, both_cache, [LONG, SHORT])
    for row, prompt in enumerate((aware, agnostic)):
        cache = runner.caches(1, 256)
        alone = runner.hidden([prompt], cache)
        np.testing.assert_allclose(both[row, : len(prompt)], alone[0], atol=1e-4)
        after = runner.hidden([answer[:1]], cache, [len(prompt)])
        np.testing.assert_allclose(step[row], after[0], atol=1e-4)


WIDE: dict[str, Any] = {"hidden_size": 320, "initializer_range": 0.067}
"""So wide that a norm's weights are in weights.bin, as every real model's are."""


@pytest.mark.parametrize(
    ("family", "tied", "others"),
    [("qwen2", True, {}), ("qwen3", False, {}), ("gemma3", True, {}), ("llama", True, WIDE)],
)
def test_other_families(
    family: str,
    tied: bool,
    others: dict[str, Any],
    tmp_path: Path,
    prompts: tuple[list[int], list[int], list[int]],
) -> None:
    folder = write_model(tmp_path / family, family, tie_word_embeddings=tied, **others)
    made = export_bundle(str(folder), tmp_path / "out", target="portable", verify=False)
    branches = TwoBranches.open(open_bundle(made.path), max_length=64)
    _, agnostic, answer = prompts
    branches.prefill(agnostic, agnostic[:9])
    branches.extend(answer)
    said = [[*agnostic, *answer], [*agnostic[:9], *answer]]
    for row, logits in zip(said, branches.logits(), strict=True):
        assert divergence(folder, row, logits) < 3e-3


def test_shapes_are_named_without_reading_a_weight() -> None:
    """The weights' file lies in the bundle, not where we stand."""
    outside = TensorProto(
        name="norm", dims=[576], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "2304")):
        outside.external_data.add(key=key, value=value)
    sizes = ["rows", "tokens", 576]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in "xy")
    nodes = [helper.make_node("Mul", ["x", "norm"], ["n"]), helper.make_node("Relu", ["n"], ["y"])]
    named = _named(helper.make_model(helper.make_graph(nodes, "g", [x], [y], [outside]))).graph
    assert [value.name for value in named.input] == ["x"]
    assert list(named.initializer) == [outside]
    assert [d.dim_param or d.dim_value for d in shape_of(named, "n")] == sizes


def shape_of(graph: onnx.GraphProto, name: str) -> list:
    (value,) = (value for value in graph.value_info if value.name == name)
    return list(value.type.tensor_type.shape.dim)


def test_the_report_judges_it_like_every_target(tiny_model_dir: Path, tmp_path: Path) -> None:
    made = export_bundle(str(tiny_model_dir), tmp_path / "out", target="portable")
    assert made.report is not None
    assert made.report["integer_matmuls"] == 15
    assert (
        made.report["float_matmuls"] == 5
    )  # scores and values of two layers, and the rotation's angles
    assert made.report["branches"] == open_bundle(made.path, force=True).manifest.branches
    assert "GroupQueryAttention" not in made.report["ops"]
    assert not list(made.path.glob("*/"))


def test_the_commands_run_it_like_any_bundle(portable: Bundle, tmp_path: Path) -> None:
    def costeer(*words: str) -> dict:
        run = subprocess.run(
            [sys.executable, "-m", "costeer", *words, "--json"],
            capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return dict(json.loads(run.stdout.splitlines()[-1]))

    note = tmp_path / "note.txt"
    note.write_text("I am a vegetarian in Porto.", encoding="utf-8")
    alone = ("--method", "device-only", "--context", str(note), "--max-tokens", "5")
    answer = costeer("generate", str(portable.path), "Where should we eat tonight?", *alone)
    assert len(answer["tokens"]) == 5
    report = costeer(
        "profile", str(portable.path), "--context-tokens", "100", "--past", "32", "--rounds", "3"
    )
    assert report["ops_ms"]["MatMulNBits"] > 0


@pytest.mark.weights
def test_real_weights_become_one_too(smollm2_bundle: Bundle, tmp_path: Path) -> None:
    """A tiny model's weights may lie inside its graph where real ones cannot: once an export of the
    former passed every test and one of the latter failed. The two forms of one model agree."""
    made = export_bundle("smollm2-135m", tmp_path / "out", target="portable", verify=False)
    ids = Text.open(smollm2_bundle).prompts("What should I cook for dinner tonight?").agnostic
    said = []
    for bundle in (smollm2_bundle, open_bundle(made.path)):
        rows = TwoBranches.open(bundle, max_length=128)
        rows.prefill(ids, ids)
        said.append(log_softmax(rows.logits()[AWARE]))
    assert kl(said[0], said[1]) < 0.05
    assert said[0].argmax() == said[1].argmax()
