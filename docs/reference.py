"""Writes docs/cli.md from the code: `make reference`. A test holds the file to the code."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import costeer  # noqa: E402  # the repository's own, wherever this is run from


def reference() -> str:
    """The whole page."""
    pages = ["# Command line reference\n", "Made from the code by `make reference`.\n"]
    pages.append(_section([], "costeer"))
    for verb in costeer.VERBS:
        if importlib.util.find_spec(verb.where.partition(":")[0]) is None:
            continue
        pages.append(_section([verb.name], f"costeer {verb.name}"))
        pages += [
            _section([verb.name, inner], f"costeer {verb.name} {inner}") for inner in _inner(verb)
        ]
    return "\n".join(pages)


def _inner(verb: costeer.Verb) -> list[str]:
    """Sub-verbs, of a verb that is an app of its own."""
    target = verb.load()
    commands = getattr(target, "registered_commands", [])
    return [command.name or command.callback.__name__ for command in commands]


def _section(words: list[str], title: str) -> str:
    # Width and colour must not depend on the terminal at hand.
    before = dict(os.environ)
    os.environ |= {"COLUMNS": "96", "TERMINAL_WIDTH": "96", "NO_COLOR": "1", "TERM": "dumb"}
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            costeer.app(words[0] if words else None, rich=False)(
                [*words, "--help"], prog_name="costeer", standalone_mode=False
            )
    finally:
        os.environ.clear()
        os.environ.update(before)
    lines = [line.rstrip() for line in text.getvalue().strip().splitlines()]
    return f"## `{title}`\n\n```text\n" + "\n".join(lines) + "\n```\n"


if __name__ == "__main__":
    (HERE / "cli.md").write_text(reference(), encoding="utf-8")
