"""`costeer context`: private notes whose keys and values are kept on this device."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edge_runtime.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Keep private notes ready on this device.")

KeyFile = Annotated[
    Path | None, typer.Option("--key-file", help="File with the key that encrypts the notes.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def add(
    bundle: Annotated[Path, typer.Argument(help="Folder made by costeer export.")],
    note: Annotated[Path, typer.Argument(help="File with the private note.")],
    name: Annotated[str, typer.Option(help="What to call it; the file's name if not given.")] = "",
    key_file: KeyFile = None,
    threads: Annotated[int, typer.Option(min=1, help="For the small model.")] = 1,
    force: Annotated[
        bool, typer.Option("--force", help="Use a bundle that failed its verification.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prefill a note once and keep it, so that queries over it answer sooner."""
    from edge_runtime.branches import TwoBranches
    from edge_runtime.bundle import open_bundle
    from edge_runtime.cli_files import CONTEXT_BYTES, read_text
    from edge_runtime.snapshot import users_shelf
    from edge_runtime.text import Text

    shelf = users_shelf(key_file)
    opened = open_bundle(bundle, force=force)
    if opened.manifest.npu is not None:
        raise UsageError(
            "context", "notes of NPU bundles are not kept", got=bundle,
            todo="Use a cpu-int8 bundle",
        )  # fmt: skip
    text = read_text(note, "NOTE", CONTEXT_BYTES).strip()
    prompts = Text.open(opened).prompts("?", text)
    if not prompts.note:
        raise UsageError("NOTE", "the file is empty", got=note)
    branches = TwoBranches.open(opened, max_length=len(prompts.aware), threads=threads)
    branches.prefill(prompts.aware, prompts.agnostic, note=prompts.note)
    ids = prompts.aware[: prompts.note]
    entry = shelf.put(opened, ids, branches.note_blocks(prompts.note), name or note.stem)
    _say(
        as_json,
        {"added": asdict(entry)},
        f"{entry.name}: {entry.tokens} tokens kept{', encrypted' if entry.encrypted else ''}.",
    )


@app.command(name="list")
def list_notes(as_json: Json = False) -> None:
    """The notes that are kept."""
    from edge_runtime.snapshot import users_shelf

    shelf = users_shelf()
    entries = shelf.entries()
    sizes = [(shelf.folder / entry.file).stat().st_size / 1e6 for entry in entries]
    lines = [
        f"{entry.name}  {entry.tokens} tokens, {size:.1f} MB"
        f"{', encrypted' if entry.encrypted else ''}"
        for entry, size in zip(entries, sizes, strict=True)
    ]
    unreadable = shelf.unreadable()
    lines += [
        f"{file}  cannot be read: damaged, unfinished or of another version" for file in unreadable
    ]
    _say(
        as_json,
        {"notes": [asdict(entry) for entry in entries], "unreadable": unreadable},
        "\n".join(lines) or "No note is kept.",
    )


@app.command()
def drop(
    name: Annotated[str, typer.Argument(help="As costeer context list shows it; or --all.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every note.")] = False,
    as_json: Json = False,
) -> None:
    """Delete a kept note."""
    from edge_runtime.snapshot import users_shelf

    shelf = users_shelf()
    if everything == bool(name):
        raise UsageError("context drop", "name one note, or --all")
    files = [entry.file for entry in shelf.entries()] + shelf.unreadable()
    dropped = [file for one in (files if everything else [name]) for file in shelf.drop(one)]
    _say(
        as_json,
        {"dropped": dropped},
        f"{len(dropped)} dropped.",
    )


def _say(as_json: bool, row: dict[str, object], text: str) -> None:
    print(json.dumps(row) if as_json else text)
