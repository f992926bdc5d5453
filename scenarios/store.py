"""Where a study's results are: one small file a finished cell, one Parquet file of all rows.

    OUT/study.json             what was asked, and which cells that makes
    OUT/cells/<key>.json       a finished cell: its row, and its answer token by token
    OUT/results.parquet        all rows, in the study's order

A cell's key is the hash of everything its result depends on, so a study that was stopped goes on
where it was, and one whose axes changed runs only what is new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import EnvironmentFailure
from edge_runtime.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
"""Raised whenever a row's figures change their meaning: older cells are then run again."""


def content_key(content: Mapping[str, Any]) -> str:
    """The hash of plain `content`, the same on every machine and in every process."""
    text = json.dumps({"schema": SCHEMA, **content}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Store:
    """The results of one study in a folder."""

    folder: Path

    def has(self, key: str) -> bool:
        """Whether that cell is finished."""
        return self._cell(key).is_file()

    def put(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep a finished cell."""
        write_whole(self._cell(key), json.dumps(result, sort_keys=True) + "\n")

    def get(self, key: str) -> dict[str, Any]:
        """A finished cell. Raises `EnvironmentFailure` when it is not there or not readable."""
        path = self._cell(key)
        try:
            result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EnvironmentFailure(
                str(path), f"this result cannot be read: {error}", todo="Delete it and run again"
            ) from error
        return result

    def finish(self, study: Mapping[str, Any], keys: Sequence[str]) -> Path:
        """Write the study's own file and all its rows as Parquet; the latter's path."""
        record = {"schema": SCHEMA, **study, "cells": list(keys)}
        write_whole(self.folder / "study.json", json.dumps(record, indent=1) + "\n")
        path = self.folder / "results.parquet"
        write_whole(path, parquet([flat(self.get(key)["row"]) for key in keys]))
        return path

    def study(self) -> dict[str, Any]:
        """What was asked. Raises `EnvironmentFailure` when no study was finished here."""
        path = self.folder / "study.json"
        if not path.is_file():
            raise EnvironmentFailure(
                str(self.folder),
                "no finished study is in this folder",
                todo="Run costeer sweep STUDY --out FOLDER first",
            )
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record

    def rows(self) -> pd.DataFrame:
        """All rows, in the study's order, with what follows from them or stands beside them."""
        import pandas as pd

        study = self.study()
        rows = pd.read_parquet(self.folder / "results.parquet")
        if "tokens_per_s" in rows:
            # The mean, not the median: run-ahead's median token knows nothing of its divergences.
            rows = rows.assign(token_ms=1e3 / rows["tokens_per_s"])
        if study["measure"] == "codec":
            # Read off the clock, so it is beside the rows and not in them.
            clocks = [self.get(key)["clock"]["encode_us"] for key in study["cells"]]
            rows = rows.assign(encode_us=clocks)
        return rows

    def _cell(self, key: str) -> Path:
        return self.folder / "cells" / f"{key}.json"


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with nested tables as dotted columns and lists as JSON text."""
    plain: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            plain |= {f"{name}.{inner}": item for inner, item in flat(value).items()}
        else:
            plain[name] = json.dumps(value) if isinstance(value, list) else value
    return plain


def parquet(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """`rows` as a Parquet file: the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(rows)
    names = sorted({name for row in rows for name in row})
    table = pa.table({name: _column([row.get(name) for row in rows]) for name in names})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _column(values: list[Any]) -> list[Any]:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    if len(kinds) > 1:
        return [None if value is None else str(value) for value in values]
    return values
