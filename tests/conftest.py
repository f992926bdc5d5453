"""Fixtures that many tests share: a tiny model and the bundle made of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.errors import BundleError
from edge_runtime.weights import SMOLLM2, cache_dir
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
    export_bundle(str(tiny_model_dir), out, verify=False)
    return open_bundle(out)


@pytest.fixture(scope="session")
def smollm2_bundle() -> Bundle:
    """The `cpu-int8` bundle of SmolLM2-135M (mark the test `weights`).

    Kept in the user's cache under a hash of the weights and of the exporter's own code: an export
    takes most of a minute, and the same code makes the same bytes.
    """
    from export.pipeline import export_bundle

    digest = hashlib.sha256(SMOLLM2.sha256.encode())
    root = Path(__file__).parents[1]
    for file in sorted([*root.glob("export/**/*.py"), root / "edge_runtime" / "bundle.py"]):
        digest.update(file.read_bytes())
    folder = cache_dir() / "test-bundles" / f"smollm2-135m-cpu-int8-{digest.hexdigest()[:16]}"
    try:
        return open_bundle(folder)
    except BundleError:
        export_bundle("smollm2-135m", folder, replace=True)
        return open_bundle(folder)
