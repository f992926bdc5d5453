"""Kept notes: the same numbers to the bit, nothing readable without the key, nothing stale."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_runtime.branches import TwoBranches
from edge_runtime.bundle import Bundle
from edge_runtime.cli_context import app
from edge_runtime.errors import EnvironmentFailure, UsageError
from edge_runtime.graphs.decoder import CHUNK
from edge_runtime.snapshot import PART, Shelf, read_key

KEY = b"0123456789abcdef0123456789abcdef"
NOTE = [5 + i % 90 for i in range(CHUNK + 40)]
AGNOSTIC = [3, 4, 5]


@pytest.fixture(scope="module")
def branches(tiny_bundle: Bundle) -> TwoBranches:
    return TwoBranches.open(tiny_bundle, max_length=300)


def keep(branches: TwoBranches, shelf: Shelf, name: str = "mine") -> None:
    branches.notes = None
    branches.prefill([*NOTE, 1], AGNOSTIC, note=len(NOTE))
    shelf.put(branches.bundle, NOTE, branches.note_blocks(len(NOTE)), name)


@pytest.mark.parametrize("key", [None, KEY])
def test_a_kept_note_gives_the_same_numbers_to_the_bit(
    branches: TwoBranches, tmp_path: Path, key: bytes | None
) -> None:
    shelf = Shelf(tmp_path, key)
    keep(branches, shelf)
    query = [7, 8, 9, 10]
    branches.prefill([*NOTE, *query], AGNOSTIC, note=len(NOTE))
    branches.extend([2])
    expected = branches.logits()
    # Something else in the cache, then the note from the file: only the query is computed.
    branches.prefill([1] * 250, [1] * 250)
    branches.notes = shelf
    ran: list[int] = []
    real = branches._decoder.one
    branches._decoder.one = lambda row, ids, past: (ran.append(len(ids)), real(row, ids, past))[1]  # type: ignore
    branches.prefill([*NOTE, *query], AGNOSTIC, note=len(NOTE))
    branches._decoder.one = real  # type: ignore[method-assign]
    assert ran == [len(query), len(AGNOSTIC)]
    branches.extend([2])
    np.testing.assert_array_equal(branches.logits(), expected)
    branches.notes = None


def test_another_note_or_another_model_is_not_found(branches: TwoBranches, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    keep(branches, shelf)
    bundle = branches.bundle
    assert shelf.find(bundle, NOTE) is not None
    assert shelf.find(bundle, [*NOTE, 1]) is None
    files = dict(bundle.manifest.files)
    files["chat_template.jinja"] = files["chat_template.jinja"].model_copy(
        update={"sha256": "0" * 64}
    )
    other = dataclasses.replace(
        bundle, manifest=bundle.manifest.model_copy(update={"files": files})
    )
    assert shelf.find(other, NOTE) is None


def test_a_changed_note_drops_the_old_one(branches: TwoBranches, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    keep(branches, shelf)
    shelf.put(branches.bundle, NOTE[:50], branches.note_blocks(50), "mine")
    (only,) = shelf.entries()
    assert only.tokens == 50
    assert len(list(tmp_path.iterdir())) == 1


def test_with_a_key_nothing_of_the_note_can_be_read(branches: TwoBranches, tmp_path: Path) -> None:
    keep(branches, Shelf(tmp_path, KEY))
    (file,) = tmp_path.iterdir()
    raw = file.read_bytes()
    for block in branches.note_blocks(len(NOTE)):
        assert np.ascontiguousarray(block).tobytes()[:64] not in raw
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    # The name is keyed: whoever guesses the note cannot confirm the guess.
    assert Shelf(tmp_path).find(branches.bundle, NOTE) is None
    assert Shelf(tmp_path, KEY[::-1]).find(branches.bundle, NOTE) is None


@pytest.mark.parametrize("where", [2, 300, 5000, -1])
def test_an_altered_file_is_refused(branches: TwoBranches, tmp_path: Path, where: int) -> None:
    shelf = Shelf(tmp_path, KEY)
    keep(branches, shelf)
    (file,) = tmp_path.iterdir()
    raw = bytearray(file.read_bytes())
    raw[where] ^= 1
    file.write_bytes(raw)
    found = shelf.find(branches.bundle, NOTE)
    assert found is not None
    with pytest.raises(EnvironmentFailure, match="damaged, or its key is another one"):
        list(found)
    file.write_bytes(raw[:-100])


def test_a_cut_file_is_refused_also_without_a_key(branches: TwoBranches, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    keep(branches, shelf)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    found = shelf.find(branches.bundle, NOTE)
    assert found is not None
    with pytest.raises(EnvironmentFailure, match="damaged"):
        list(found)


def test_an_interrupted_write_leaves_nothing(branches: TwoBranches, tmp_path: Path) -> None:
    def blocks():  # type: ignore[no-untyped-def]
        yield from list(branches.note_blocks(10))[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Shelf(tmp_path).put(branches.bundle, NOTE[:10], blocks())
    assert not list(tmp_path.iterdir())


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"short\n")
    with pytest.raises(UsageError, match=r"the key is too short .*5 bytes; allowed 16 or more"):
        read_key(path)


def test_the_verb(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSTEER_CACHE_DIR", str(tmp_path))
    note = tmp_path / "allergies.txt"
    note.write_text("I am vegetarian and allergic to peanuts.")
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32).hex().encode())
    run = CliRunner().invoke
    added = run(app, ["add", str(tiny_bundle.path), str(note), "--key-file", str(key)])
    assert added.exit_code == 0, added.output
    assert "allergies: " in added.output
    assert "encrypted" in run(app, ["list"]).output
    assert run(app, ["drop", "allergies"]).output == "1 dropped.\n"
    assert run(app, ["list"]).output == "No note is kept.\n"
    assert isinstance(run(app, ["drop", "allergies"]).exception, UsageError)


def test_a_flipped_bit_is_noticed_without_a_key_too(branches: TwoBranches, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    keep(branches, shelf)
    (file,) = tmp_path.iterdir()
    raw = bytearray(file.read_bytes())
    raw[5000] ^= 0x40
    file.write_bytes(raw)
    found = shelf.find(branches.bundle, NOTE)
    assert found is not None
    with pytest.raises(EnvironmentFailure, match=f"costeer context drop {file.name}"):
        list(found)


def test_what_cannot_be_read_is_shown_and_can_be_dropped(
    branches: TwoBranches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged header, and what a writer that was killed has left: both hold the note."""
    monkeypatch.setenv("COSTEER_CACHE_DIR", str(tmp_path))
    notes = tmp_path / "notes"
    keep(branches, Shelf(notes))
    (file,) = notes.iterdir()
    file.write_bytes(b"{" + file.read_bytes())
    part = notes / f"{PART}k3"
    part.write_bytes(b"half of a note")
    run = CliRunner().invoke
    listed = run(app, ["list"]).output
    assert file.name in listed
    assert part.name in listed
    assert run(app, ["drop", file.name]).output == "1 dropped.\n"
    assert run(app, ["drop", "--all"]).output == "1 dropped.\n"
    assert not list(notes.iterdir())


def test_a_header_decides_nothing_about_other_files(branches: TwoBranches, tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    shelf = Shelf(tmp_path / "notes")
    keep(branches, shelf)
    (file,) = shelf.folder.iterdir()
    head, _, blocks = file.read_bytes().partition(b"\n")
    told = json.loads(head) | {"file": "../victim.txt"}
    file.write_bytes(json.dumps(told).encode() + b"\n" + blocks)
    assert shelf.drop("mine") == [file.name]
    assert victim.exists()
    assert not file.exists()


@pytest.mark.parametrize("name", ["n" * 201, "two\nlines", "\x1b[31mred"])
def test_a_name_that_cannot_be_listed_is_refused(
    name: str, branches: TwoBranches, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="has to fit on a line"):
        keep(branches, Shelf(tmp_path), name)
