"""One matrix stored twice is found by its content, and kept once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from export.pipeline import export_bundle
from export.sources import ModelSource
from export.tied import share_table
from tests.tiny import write_model

TEXTS = [(1, 40, 50, 60, 70, 80), (1, 90, 100, 110)]


@pytest.fixture
def untied(tmp_path: Path) -> Iterator[Any]:
    from transformers import AutoModelForCausalLM

    folder = write_model(tmp_path / "untied", tie_word_embeddings=False)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def source(path: Path, gguf: bool) -> ModelSource:
    file = path / ("m.gguf" if gguf else "folder")
    file.touch() if gguf else file.mkdir()
    return ModelSource("gguf" if gguf else "folder", "m", file, "0" * 64)


def roundings(model: Any, step: float) -> None:
    """The head becomes the embedding rounded to multiples of `step`, the embedding to four."""
    with torch.no_grad():
        table = model.get_input_embeddings().weight.clone()
        model.get_output_embeddings().weight.copy_((table / step).round() * step)
        model.get_input_embeddings().weight.copy_((table / (4 * step)).round() * 4 * step)


def is_shared(model: Any) -> bool:
    first, last = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return first.data_ptr() == last.data_ptr()


def test_equal_tensors_are_shared_whatever_the_flag_says(untied: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        untied.get_output_embeddings().weight.copy_(untied.get_input_embeddings().weight)
    assert not is_shared(untied)
    found = share_table(untied, source(tmp_path, gguf=False), TEXTS)
    assert found == {"shared": True, "difference": 0.0, "kl": 0.0}
    assert is_shared(untied)
    assert share_table(untied, source(tmp_path, gguf=True), TEXTS) is None


def test_matrices_trained_apart_stay_apart(untied: Any, tmp_path: Path) -> None:
    found = share_table(untied, source(tmp_path, gguf=True), TEXTS)
    assert found is not None
    assert not found["shared"]
    assert found["difference"] > 1
    assert not is_shared(untied)


def test_two_roundings_are_shared_in_the_finer_one(
    untied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.tied._finer", lambda source: ({"head": "Q8_0"}, "head"))
    roundings(untied, step=0.0005)
    head = untied.get_output_embeddings().weight.clone()
    found = share_table(untied, source(tmp_path, gguf=True), TEXTS)
    assert found is not None
    assert found["shared"]
    assert found["kept"] == "head"
    assert 0 < found["kl"] < 0.02
    assert torch.equal(untied.get_input_embeddings().weight, head)


def test_a_pair_whose_sharing_would_change_the_model_is_kept(
    untied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.tied._finer", lambda source: ({"head": "Q8_0"}, "head"))
    monkeypatch.setattr("export.tied.SAME_MODEL_KL", 0.0)
    roundings(untied, step=0.01)
    before = untied.get_input_embeddings().weight.clone()
    found = share_table(untied, source(tmp_path, gguf=True), TEXTS)
    assert found is not None
    assert found["kl"] > 0
    assert not found["shared"]
    assert not is_shared(untied)
    assert torch.equal(untied.get_input_embeddings().weight, before)


def test_in_a_folder_only_equal_bits_count(untied: Any, tmp_path: Path) -> None:
    roundings(untied, step=0.0005)
    found = share_table(untied, source(tmp_path, gguf=False), TEXTS)
    assert found is not None
    assert not found["shared"]
    assert found["difference"] < 0.1


def test_a_bundle_holds_such_a_table_once(untied: Any, tmp_path: Path) -> None:
    apart = export_bundle(str(tmp_path / "untied"), tmp_path / "apart", verify=False)
    with torch.no_grad():
        untied.get_output_embeddings().weight.copy_(untied.get_input_embeddings().weight)
    untied.save_pretrained(tmp_path / "untied")
    shared = export_bundle(str(tmp_path / "untied"), tmp_path / "shared", verify=False)
    table = untied.get_input_embeddings().weight.numel()
    saved = apart.manifest.memory.weights_bytes - shared.manifest.memory.weights_bytes
    assert saved >= table
