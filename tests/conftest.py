"""Fixtures that many tests share: a tiny model and the bundle made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.bundle import Bundle, open_bundle
from tests.tiny import write_model


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: a random two-layer Llama with a real tokenizer."""
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The `cpu-int8` bundle of `tiny_model_dir`."""
    from export.pipeline import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(str(tiny_model_dir), out)
    return open_bundle(out)
