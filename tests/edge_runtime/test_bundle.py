"""A bundle is whole, unaltered, understood and verified, or it is refused in one line."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.bundle import (
    DECODER,
    MANIFEST,
    WEIGHTS,
    Bundle,
    BundleWriter,
    open_bundle,
)
from edge_runtime.errors import BundleError, UsageError
from edge_runtime.vocabulary import fingerprint


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle.path, tmp_path / "copy")


def edit_manifest(folder: Path, **changes: object) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | changes))


def test_opens_with_the_shapes_of_the_model(tiny_bundle: Bundle) -> None:
    architecture = tiny_bundle.manifest.architecture
    assert (architecture.layers, architecture.kv_heads, architecture.head_dim) == (2, 2, 32)
    assert tiny_bundle.manifest.vocabulary_sha256 == fingerprint(tiny_bundle.tokenizer)
    assert tiny_bundle.kv_bytes(10) == 2 * 10 * (2 * 2 * 2 * 32 * 4)
    assert tiny_bundle.manifest.memory.weights_bytes == (tiny_bundle.path / WEIGHTS).stat().st_size


def test_missing_folder_and_foreign_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        open_bundle(tmp_path)


def test_truncated_file(copy: Path) -> None:
    weights = copy / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"weights\.bin: is truncated.*got \d+ bytes; allowed"):
        open_bundle(copy, check=False)


def test_one_altered_byte(copy: Path) -> None:
    weights = copy / WEIGHTS
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(BundleError, match=r"weights\.bin: was altered"):
        open_bundle(copy)


def test_missing_file(copy: Path) -> None:
    (copy / DECODER).unlink()
    with pytest.raises(BundleError, match=r"decoder\.onnx: is missing"):
        open_bundle(copy)


def test_newer_schema(copy: Path) -> None:
    edit_manifest(copy, schema_version=99, invented_later=1)
    with pytest.raises(BundleError, match=r"newer costeer \(got schema 99; allowed up to 1\)"):
        open_bundle(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 1}'])
def test_manifest_that_is_none(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(copy)


def test_a_manifest_cannot_point_outside(copy: Path) -> None:
    files = json.loads((copy / MANIFEST).read_text())["files"]
    edit_manifest(copy, files=files | {"../secret": {"bytes": 1, "sha256": "0"}})
    with pytest.raises(BundleError, match="directly in its folder"):
        open_bundle(copy)


def test_not_ready_needs_force(copy: Path) -> None:
    edit_manifest(copy, ready=False)
    with pytest.raises(BundleError, match="failed its verification"):
        open_bundle(copy)
    assert not open_bundle(copy, force=True).manifest.ready


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with BundleWriter(tmp_path / "out") as writer:
            (writer.path / DECODER).write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Not enough free space to write 4096 bytes after offset 0"),  # numpy's tofile
        OSError("4096 requested and 0 written"),  # the same, where a file cannot be reserved
    ],
)
def test_a_disk_that_fills_up_is_said_and_leaves_nothing(error: OSError, tmp_path: Path) -> None:
    def write() -> None:
        with BundleWriter(tmp_path / "out") as writer:
            (writer.path / "weights.bin").write_bytes(b"some of it")
            raise error

    with pytest.raises(BundleError, match=r"the disk filled up.*nothing was left behind"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_replaces_only_bundles(tiny_bundle: Bundle, copy: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="not empty and no bundle"):
        BundleWriter(foreign, replace=True)
    with pytest.raises(UsageError, match="--replace"):
        BundleWriter(copy)
    with BundleWriter(copy, replace=True) as writer:
        (writer.path / "only.txt").write_text("new")
        writer.finish(tiny_bundle.manifest)
    assert sorted(file.name for file in copy.iterdir()) == [MANIFEST, "only.txt"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_folder_that_came_meanwhile_is_not_replaced(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write() -> None:
        with BundleWriter(out) as writer:
            (writer.path / "only.txt").write_text("new")
            writer.finish(tiny_bundle.manifest)
            out.mkdir()
            (out / "thesis.txt").write_text("years of work")

    with pytest.raises(UsageError, match="not empty and no bundle"):
        write()
    assert (out / "thesis.txt").read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {}},
        {"architecture": {"layers": -3}},
        {"architecture": {"vocabulary_size": 0}},
        {"tokens": {"end_ids": [10**30]}},
    ],
)
def test_a_manifest_that_cannot_be_is_refused(changes: dict[str, Any], copy: Path) -> None:
    content = json.loads((copy / MANIFEST).read_text())
    for name, inner in changes.items():
        edit_manifest(copy, **{name: (content[name] | inner) if inner else inner})
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(copy)
