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
    _known(path, setting, table)
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    inner = content
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
    inner[path[-1]] = value


def _known(path: Sequence[str], setting: str, table: Any) -> None:
    for depth, part in enumerate(path):
        known = table.model_fields if table else {}
        if part not in known:
            prefix = ".".join(path[:depth])
            raise UsageError(
                f"--set {setting}",
                f"unknown key {part!r}" + (f" in {prefix}" if prefix else ""),
                todo=did_you_mean(part, known) if known else "Leave it out",
            )
        annotation = known[part].annotation
        inner = [annotation, *getattr(annotation, "__args__", ())]
        table = next((k for k in inner if isinstance(k, type) and issubclass(k, Checked)), None)
