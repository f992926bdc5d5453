"""Exports of tiny random models against transformers, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import costeer
from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.errors import BudgetExceeded, EnvironmentFailure, UsageError
from export.admission import Needs, admit, npu_needs
from export.pipeline import export_bundle
from export.quantize import LEVELS
from export.recipes import RECIPES
from tests.tiny import VOCABULARY_SIZE, write_model

LONG, SHORT = 40, 31
"""Two rows of different length; longer than the tiny Gemma's sliding window of 16."""

KL_LIMIT = {
    "cpu-int8": 2e-3,
    "cpu-int8-block": 3e-3,
    "cpu-int8-fast": 8e-3,
    "cpu-int4": 0.2,
    "cpu-fp32": 1e-6,
}


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def hidden(decoder: onnxruntime.InferenceSession, ids: np.ndarray, lengths: list[int]) -> Any:
    mask = (np.arange(ids.shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
    caches = {
        i.name: np.zeros((len(ids), i.shape[1], 64, i.shape[3]), np.float32)
        for i in decoder.get_inputs()
        if i.name.startswith("past")
    }
    return decoder.run(["hidden"], {"input_ids": ids, "attention_mask": mask, **caches})[0]


@pytest.fixture(scope="module")
def prompt_ids() -> np.ndarray:
    return np.random.default_rng(5).integers(3, VOCABULARY_SIZE, (2, LONG))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        "llama": write_model(root / "llama"),
        "qwen2": write_model(root / "qwen2", "qwen2"),
        "qwen3-untied": write_model(root / "qwen3", "qwen3", tie_word_embeddings=False),
        "gemma3": write_model(root / "gemma3", "gemma3"),
    }


def torch_logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        rows = (ids[:1], ids[1:, :SHORT])
        return np.concatenate([model(torch.from_numpy(row)).logits[0].numpy() for row in rows])


def mean_kl(p: np.ndarray, q: np.ndarray) -> float:
    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    a, b = log_softmax(p), log_softmax(q)
    return float((np.exp(a) * (a - b)).sum(-1).mean())


FUSED = [target for target, recipe in RECIPES.items() if recipe.graph == "fused"]
CASES = [("llama", target) for target in FUSED] + [
    (name, target)
    for name in ("qwen2", "qwen3-untied", "gemma3")
    for target in ("cpu-int8", "cpu-fp32")
]


@pytest.mark.parametrize(("name", "target"), CASES)
def test_a_bundle_says_what_transformers_says(
    name: str, target: str, models: dict[str, Path], prompt_ids: np.ndarray, tmp_path: Path
) -> None:
    bundle = open_bundle(
        export_bundle(str(models[name]), tmp_path / "b", target=target, verify=False).path
    )
    decoder = session(bundle.decoder)
    both = hidden(decoder, prompt_ids, [LONG, SHORT])
    alone = [hidden(decoder, prompt_ids[:1], [LONG])[0]]
    alone.append(hidden(decoder, prompt_ids[1:, :SHORT], [SHORT])[0])
    if bundle.manifest.branches == "together":
        np.testing.assert_array_equal(both[0], alone[0])
        np.testing.assert_array_equal(both[1, :SHORT], alone[1])
    states = np.concatenate(alone)
    logits = session(bundle.head).run(None, {"hidden": states})[0]
    expected = torch_logits(models[name], prompt_ids)
    assert mean_kl(expected, logits) < KL_LIMIT[target]

    ids = np.array([5, 0, VOCABULARY_SIZE - 1, 77, 5])
    some = session(bundle.candidates).run(None, {"hidden": states, "candidate_ids": ids})[0]
    if target == "cpu-fp32":
        np.testing.assert_allclose(some, logits[:, ids], atol=1e-4)
    else:
        np.testing.assert_array_equal(some, logits[:, ids])


def test_an_all_zero_state_is_no_division_by_zero(tiny_bundle: Bundle) -> None:
    states = np.zeros((1, 64), np.float32)
    logits = session(tiny_bundle.head).run(None, {"hidden": states})[0]
    np.testing.assert_array_equal(logits, np.zeros_like(logits))


def test_tensors_are_stored_once_and_on_pages(tiny_bundle: Bundle) -> None:
    import onnx

    offsets: dict[str, set[int]] = {}
    for path in (tiny_bundle.decoder, tiny_bundle.head, tiny_bundle.candidates):
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if entries:
                offsets.setdefault(tensor.name, set()).add(int(entries["offset"]))
                large = int(entries["length"]) >= 1 << 16
                assert int(entries["offset"]) % (4096 if large else 64) == 0
    assert all(len(places) == 1 for places in offsets.values())
    shared = {"head.weight", "head.scale"}
    assert shared <= offsets.keys()


def test_the_same_source_gives_the_same_bytes(
    tiny_model_dir: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    again = open_bundle(export_bundle(str(tiny_model_dir), tmp_path / "again", verify=False).path)
    assert again.manifest.files == tiny_bundle.manifest.files
    one, two = (json.loads((b.path / "manifest.json").read_text()) for b in (again, tiny_bundle))
    one["created"] = two["created"] = ""
    assert one == two


def test_a_context_limit_shortens_the_rotations(tiny_model_dir: Path, tmp_path: Path) -> None:
    made = export_bundle(str(tiny_model_dir), tmp_path / "short", max_context=64, verify=False)
    assert made.manifest.architecture.max_context == 64


def test_other_families_are_refused_with_the_list(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "gpt2", "gpt2")
    with pytest.raises(UsageError, match=r"got GPT2LMHeadModel; allowed llama .*gemma3"):
        export_bundle(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickles_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pickles.*--allow-pickle"):
        export_bundle(str(folder), tmp_path / "out")


def test_a_hub_model_of_pickles_alone_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()  # as it looks when pickles were not downloaded
    monkeypatch.setattr("export.sources._download", lambda model, allow_pickle: folder)
    with pytest.raises(UsageError, match=r"no weights.*Pickled ones need --allow-pickle"):
        export_bundle("some/model", tmp_path / "out")


def test_allowed_pickles_are_read_where_there_is_nothing_else(
    tiny_model_dir: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    both = shutil.copytree(tiny_model_dir, tmp_path / "tiny-llama")
    export_bundle(str(both), tmp_path / "safe", verify=False, allow_pickle=True)
    torch.save(load_file(both / "model.safetensors"), both / "pytorch_model.bin")
    (both / "model.safetensors").unlink()
    export_bundle(str(both), tmp_path / "pickled", verify=False, allow_pickle=True)
    for made in ("safe", "pickled"):
        weights = (tmp_path / made / "weights.bin").read_bytes()
        assert weights == (tiny_bundle.path / "weights.bin").read_bytes()


@pytest.mark.parametrize("model", ["smollm9", "/nowhere/at/all", "not a model"])
def test_an_unknown_model_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model"):
        export_bundle(model, tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    [b"GGUF", b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 40, b"GGUF" + bytes(60)],
)
def test_a_damaged_gguf_file_is_refused_in_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    model = ["--model", str(tmp_path / "m.gguf")]
    assert costeer.run(["export", *model, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("--model: its configuration cannot be read: ")
    assert ("the file is damaged or cut off" in err) == (content[4:5] != b"\0")
    assert err.count("\n") == 1


def test_a_hub_that_does_not_answer_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(EnvironmentFailure, match=r"^--model: nobody/nothing could not be fetched"):
        export_bundle("nobody/nothing", tmp_path / "out")
    assert "Retry" not in caplog.text


def test_the_command_knows_all_targets(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "--model", "x", "--out", "x", "--target"]
    assert costeer.run([*words, "npu-qn"]) == 2
    assert "Did you mean npu-qnn?" in capsys.readouterr().err


def test_an_unknown_target_suggests_the_nearest(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean cpu-int8"):
        export_bundle(str(tiny_model_dir), tmp_path / "out", target="cpu-int")


def test_byte_products_stay_below_sixteen_bits() -> None:
    largest_byte, largest_weight = 64 + LEVELS, 127
    assert 2 * largest_byte * largest_weight < 2**15


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_two_terms_are_as_precise_as_fourteen_bits(seed: int, size: float) -> None:
    x = np.random.default_rng(seed).normal(size=96) * size
    step = np.abs(x).max() / LEVELS
    first = np.round(x / step)
    second = np.round((x / step - first) * 2 * LEVELS)
    assert np.abs(first).max() <= LEVELS
    assert np.abs(second).max() <= LEVELS
    # Half of one step of the second term.
    assert np.abs(x - step * (first + second / (2 * LEVELS))).max() <= step / (4 * LEVELS) * 1.001


@pytest.mark.parametrize(
    "needs", [Needs(10**15, 0), Needs(0, 10**15), npu_needs(10**14)], ids=["disk", "memory", "npu"]
)
def test_what_memory_or_disk_cannot_hold_is_refused_before_the_work(
    needs: Needs, tmp_path: Path
) -> None:
    with pytest.raises(BudgetExceeded, match=r"GB (free|available); allowed"):
        admit(needs, tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export.pipeline.write_graphs", stop)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(str(tiny_model_dir), tmp_path / "out", verify=False)
    assert list(tmp_path.iterdir()) == []


def test_a_terminated_export_leaves_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    """SIGTERM while files are being written, in a process of its own."""
    code = f"""
import os, signal, costeer, export.pipeline
def half(folder, *rest):
    (folder / "weights.bin").write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
export.pipeline._write = half
costeer.main(["export", "--model", {str(tiny_model_dir)!r}, "--out", {str(tmp_path / "out")!r}])
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 143, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
