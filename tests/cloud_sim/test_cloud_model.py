"""The cloud model against plain transformers, which computes every prefix anew and alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_sim.live.llm import TransformersModel
from cloud_sim.live.load import load
from cloud_sim.live.ragged import ATTENTION, KeyValues
from cloud_sim.model import ScoreRequest
from edge_runtime.errors import EnvironmentFailure, UsageError
from edge_runtime.text import Text
from edge_runtime.vocabulary import fingerprint, open_tokenizer
from tests.tiny import VOCABULARY_SIZE, write_model

CLOSE = 2e-5
"""Weights here are float64, but transformers computes norms and angles in float32."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    """Tiny matrices are faster on one thread, by far where others want the cores too."""
    torch.set_num_threads(1)


class Oracle:
    """Log-probabilities after each token of a prefix, by one plain forward pass without a cache."""

    def __init__(self, folder: Path) -> None:
        self.model = load(str(folder), dtype="float64", attention="eager").model

    def __call__(self, tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            logits = self.model(torch.tensor([tokens]), use_cache=False).logits[0]
        rows: np.ndarray = torch.log_softmax(logits, -1).numpy()
        return rows


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "gemma3"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TransformersModel, Oracle]:
    folder = write_model(tmp_path_factory.mktemp("cloud") / request.param, request.param)
    loaded = load(str(folder), dtype="float64", attention=ATTENTION)
    return TransformersModel(loaded, pass_tokens=13), Oracle(folder)


def tokens_of(rng: np.random.Generator, n: int) -> tuple[int, ...]:
    return tuple(int(t) for t in rng.integers(3, VOCABULARY_SIZE, n))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_any_course_of_a_session_is_as_if_computed_anew(
    pair: tuple[TransformersModel, Oracle], seed: int
) -> None:
    """Extend, roll back, fork, several sequences of different lengths in one pass."""
    model, oracle = pair
    rng = np.random.default_rng(seed)
    held: list[tuple[KeyValues, list[int]]] = [(model.open(), []) for _ in range(3)]
    for _ in range(6):
        if rng.random() < 0.3:
            sequence, tokens = held[int(rng.integers(len(held)))]
            keep = int(rng.integers(len(tokens) + 1))
            held.append((model.fork(sequence, keep), tokens[:keep]))
        chosen = [i for i in range(len(held)) if rng.random() < 0.6] or [0]
        requests = []
        for i in chosen:
            sequence, tokens = held[i]
            keep = int(rng.integers(len(tokens) + 1)) if rng.random() < 0.4 else len(tokens)
            new = tokens_of(rng, int(rng.integers(1, 20)))
            requests.append(ScoreRequest(model, sequence, keep, new, bool(rng.random() < 0.5)))
            held[i] = (sequence, [*tokens[:keep], *new])
        for i, request, got in zip(chosen, requests, model.score(requests), strict=True):
            expected = oracle(held[i][1])[request.keep :]
            expected = expected if request.every else expected[-1:]
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=CLOSE)
    for sequence, _ in held:
        model.close(sequence)
    assert not model.held


def test_float32_predictions_are_normalised_in_float32(tiny_model_dir: Path) -> None:
    model = TransformersModel.open_source(str(tiny_model_dir), dtype="bfloat16")
    sequence = model.open()
    (rows,) = model.score([ScoreRequest(model, sequence, 0, (5, 6, 7), every=True)])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.exp(rows.astype(np.float64)).sum(1), 1.0, atol=1e-5)


def test_a_cache_never_claims_what_it_does_not_hold(tiny_model_dir: Path) -> None:
    model = TransformersModel.open_source(str(tiny_model_dir))
    sequence = model.open()
    model.score([ScoreRequest(model, sequence, 0, (5, 6, 7))])
    with pytest.raises(ValueError, match="asked to keep 4 of 3 tokens"):
        model.score([ScoreRequest(model, sequence, 4, (5,))])


def test_memory_grows_with_the_answer_and_goes_with_the_session(tiny_model_dir: Path) -> None:
    model = TransformersModel.open_source(str(tiny_model_dir))
    sequence = model.open()
    model.score([ScoreRequest(model, sequence, 0, (5,) * 10)])
    small = sequence.bytes
    model.score([ScoreRequest(model, sequence, 10, (5,) * 200)])
    assert small < sequence.bytes <= 2 * 210 / 10 * small
    model.close(sequence)
    assert sequence.bytes == 0


def test_prompt_vocabulary_and_end_tokens_are_the_device_s(tiny_model_dir: Path) -> None:
    model = TransformersModel.open_source(str(tiny_model_dir))
    tokenizer = open_tokenizer(tiny_model_dir / "tokenizer.json")
    template = (
        (tiny_model_dir / "chat_template.jinja").read_text()
        if (tiny_model_dir / "chat_template.jinja").is_file()
        else None
    )
    assert model.vocabulary == fingerprint(tokenizer)
    assert model.vocabulary_size == VOCABULARY_SIZE
    assert tokenizer.token_to_id("<|im_end|>") == model.end_ids[0]
    if template is not None:
        assert model.prompt("Where?") == list(Text(tokenizer, template).prompts("Where?").agnostic)
    text = tokenizer.decode(model.prompt("Where?"), skip_special_tokens=False)
    assert text == "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("source", "arguments", "kind", "says"),
    [
        ("nothing-here", {}, UsageError, "it is no file, no folder and no hub id"),
        ("./gone/model.gguf", {}, UsageError, "it is no file, no folder and no hub id"),
        ("smollm2-135m", {"dtype": "int3"}, UsageError, "no such number format"),
        ("smollm2-135m", {"device": "abacus"}, UsageError, "no such device"),
    ],
)
def test_a_source_that_is_none(
    source: str, arguments: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        load(source, **arguments)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nonsense")
    with pytest.raises(EnvironmentFailure, match="no GGUF file"):
        load(str(tmp_path / "x.gguf"))
    for left in (b"GGUF", b"GGUF\x03\0\0\0"):
        (tmp_path / "cut.gguf").write_bytes(left)
        with pytest.raises(EnvironmentFailure, match="it cannot be loaded"):
            load(str(tmp_path / "cut.gguf"))
    with pytest.raises(EnvironmentFailure, match="it cannot be loaded") as failed:
        load(str(tmp_path))
    assert "\n" not in str(failed.value)


def test_a_model_with_another_attention_is_not_taken(tiny_model_dir: Path) -> None:
    with pytest.raises(ValueError, match="'sdpa', needs 'costeer_ragged'"):
        TransformersModel(load(str(tiny_model_dir)))
