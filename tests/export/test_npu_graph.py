"""The static NPU graphs on onnxruntime's CPU provider, against transformers.

No QNN plugin is needed here: `test_npu_htp.py` runs the compiled graphs on the simulator.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import BudgetExceeded, UsageError
from edge_runtime.npu.branches import NpuBranches
from edge_runtime.npu.host import Frame
from export.npu.blocks import block_quantize
from export.npu.build import NpuOptions, build
from export.npu.model import static_model
from export.npu.pipeline import export_npu
from export.npu.socs import SOCS, soc
from tests.tiny import VOCABULARY_SIZE, write_model

FAMILIES = ("llama", "qwen2", "qwen3")
AWARE = [1, *range(40, 63)]
AGNOSTIC = [1, *range(50, 61)]
ANSWER = [70, 71, 72, 73, 74]


def load(folder: Path) -> Any:
    """The model, its matrices already rounded as the recipe rounds them.

    Rounding again changes nothing, so what is left between the graph and transformers is the
    graph itself (and fp16 keys and values).
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                levels, scales = block_quantize(parameter.numpy())
                rounded = (levels * scales[..., None]).reshape(parameter.shape)
                parameter.copy_(torch.from_numpy(rounded))
    return model


def reference(model: Any, ids: list[int]) -> np.ndarray:
    """float32 logits [n, V] of transformers."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def architecture_of(model: Any) -> Any:
    """What a manifest says of the model's shape."""
    static = static_model(model)
    return SimpleNamespace(
        vocabulary_size=static.vocabulary,
        hidden=static.hidden,
        kv_heads=static.kv_heads,
        head_dim=static.head_dim,
        layers=static.layers,
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("families")
    return {family: load(write_model(root / family, family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def opened(
    models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, NpuBranches]:
    opened = {}
    for family, model in models.items():
        folder = tmp_path_factory.mktemp(family)
        made = build(model, folder, NpuOptions(chunk=8, past=48, compile=False))
        opened[family] = NpuBranches(folder, made.section, architecture_of(model), backend="cpu")
    return opened


@pytest.mark.parametrize("family", FAMILIES)
def test_two_rows_of_different_length_say_what_transformers_says(
    family: str, models: dict[str, Any], opened: dict[str, NpuBranches]
) -> None:
    branches = opened[family]
    branches.prefill(AWARE, AGNOSTIC)
    branches.extend(ANSWER[:1])  # the decode graph
    branches.extend(ANSWER[1:])  # the chunk graph
    assert branches.length == len(ANSWER)
    wanted = [reference(models[family], prompt + ANSWER) for prompt in (AWARE, AGNOSTIC)]
    for kept in range(len(ANSWER), -1, -1):
        branches.rollback(kept)
        for row, prompt in enumerate((AWARE, AGNOSTIC)):
            expected = wanted[row][len(prompt) + kept - 1]
            got = branches.logits()[row]
            np.testing.assert_allclose(got, expected, atol=0.01)


def test_rollback_and_another_token_equal_a_fresh_answer(opened: dict[str, NpuBranches]) -> None:
    branches = opened["llama"]
    branches.prefill(AWARE, AGNOSTIC)
    for token in (90, 91, 92):
        branches.extend([token])
    branches.rollback(1)
    branches.extend([95])
    back = branches.logits().copy()
    branches.prefill(AWARE, AGNOSTIC)
    branches.extend([90])
    branches.extend([95])
    np.testing.assert_array_equal(branches.logits(), back)


def test_candidates_are_columns_of_the_whole_head(opened: dict[str, NpuBranches]) -> None:
    branches = opened["llama"]
    branches.prefill(AWARE, AGNOSTIC)
    ids = np.array([3, 77, 500])
    whole = branches.logits()
    assert whole.shape == (2, VOCABULARY_SIZE)
    np.testing.assert_array_equal(branches.logits(ids), whole[:, ids])
    np.testing.assert_array_equal(branches.delta(ids), whole[0, ids] - whole[1, ids])


def test_rows_do_not_see_each_other(opened: dict[str, NpuBranches]) -> None:
    branches = opened["llama"]
    branches.prefill(AWARE, AGNOSTIC)
    together = branches.logits()[1].copy()
    branches.prefill(AWARE[::-1], AGNOSTIC)
    np.testing.assert_array_equal(branches.logits()[1], together)


def test_what_does_not_fit_is_refused_before_it_is_computed(opened: dict[str, NpuBranches]) -> None:
    branches = opened["llama"]
    with pytest.raises(BudgetExceeded, match=r"got 49 tokens; allowed 48.*larger --past"):
        branches.prefill(list(range(1, 50)), AGNOSTIC)
    branches.prefill(list(range(1, 48)), AGNOSTIC)
    branches.extend([7])
    with pytest.raises(BudgetExceeded):
        branches.extend([8])


def test_a_family_with_another_block_is_refused(tmp_path: Path) -> None:
    model = load(write_model(tmp_path / "gemma3", "gemma3"))
    with pytest.raises(UsageError, match=r"got gemma3.*allowed llama, qwen2, qwen3"):
        static_model(model)


@pytest.mark.parametrize(
    ("family", "said"),
    [("gemma3", r"allowed llama, qwen2, qwen3.*cpu-int8"), ("gpt2", r"got gpt2.*qwen3\)\.$")],
)
def test_such_a_family_is_refused_before_its_weights_are_read(
    family: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / family, family)
    monkeypatch.setattr("export.npu.pipeline.load_model", None)
    with pytest.raises(UsageError, match=said):
        export_npu(str(folder), tmp_path / "out", NpuOptions(compile=False))
    assert not (tmp_path / "out").exists()


def test_v68_needs_the_integer_recipe() -> None:
    with pytest.raises(UsageError, match="integer-only NPU"):
        NpuOptions(soc=soc("sm8350"))
    assert NpuOptions(target="npu-qnn-w8a16", soc=soc("sm8350")).soc.architecture == 68
    with pytest.raises(UsageError, match=r"Did you mean SM8750\?"):
        soc("SM875")
    assert {entry.architecture for entry in SOCS} == {68, 69, 73, 75, 79, 81}


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_a_block_is_off_by_half_a_level_at_most(rows: int, blocks: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, 32 * blocks)).astype(np.float32)
    levels, scales = block_quantize(weight)
    back = (levels * scales[..., None]).reshape(weight.shape)
    bound = np.repeat(scales, 32, axis=1) * 0.5001
    assert (np.abs(back - weight) <= bound).all()


@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=2),
    st.lists(st.integers(0, 4), min_size=2, max_size=2),
)
def test_the_mask_shows_the_past_and_no_future(lengths: list[int], counts: list[int]) -> None:
    frame = Frame(past=6, group=2, inv_freq=np.ones(4, np.float32), mask_floor=-7)
    mask = frame.mask(lengths, counts, 4)
    assert mask.shape == (2, 1, 8, 10)
    for row in range(2):
        for line in range(8):
            for column in range(10):
                token = line % 4
                past = column < lengths[row]
                new = 6 <= column <= 6 + token and column - 6 < counts[row]
                assert (mask[row, 0, line, column] == 0) == (past or new)
