"""`--set KEY=VALUE`: one value of a scenario file, changed from the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

from edge_runtime.checked import Checked
from edge_runtime.errors import UsageError, did_you_mean


def apply(content: dict[str, Any], setting: str, table: type[Checked]) -> None:
    """Put KEY=VALUE into `content`, the tables of `table`; VALUE is TOML, or else a plain string.

    Raises `UsageError` for what is no setting or no key.
    """
    key, equals, text = setting.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise UsageError(
            "--set", "not a setting", got=setting, allowed="KEY=VALUE", todo="As in seed=3"
        )
    _known(path, table)
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        read = {"value": text}
    inner = content
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UsageError(
                f"--set {key}", "the file has something else there than a table",
                got=f"{part} = {inner}", todo="Correct the file",
            )  # fmt: skip
    # A line behind the first is no part of the value, so it is text as it stands.
    inner[path[-1]] = read["value"] if len(read) == 1 else text


def _known(path: Sequence[str], table: Any) -> None:
    for depth, part in enumerate(path):
        known = table.model_fields if table else {}
        if part not in known:
            prefix = ".".join(path[:depth])
            raise UsageError(
                f"--set {'.'.join(path)}",  # not its value, which may be a note
                f"unknown key {part!r}" + (f" in {prefix}" if prefix else ""),
                todo=did_you_mean(part, known) if known else "Leave it out",
            )
        annotation = known[part].annotation
        inner = [annotation, *getattr(annotation, "__args__", ())]
        table = next((k for k in inner if isinstance(k, type) and issubclass(k, Checked)), None)
