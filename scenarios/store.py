"""Where a study's results are: one small file a finished cell, one Parquet file of all rows.

    OUT/study.json             what was asked, and which cells that makes
    OUT/cells/<key>.json       a finished cell: its row, and its answer token by token
    OUT/results.parquet        all rows, in the study's order

A cell's key is the hash of everything its result depends on, so a study that was stopped goes on
where it was, and one whose axes changed runs only what is new. What holds an answer is for its
owner alone, as the note is that the answer was made with.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edge_runtime.errors import EnvironmentFailure
from edge_runtime.files import write_whole
from edge_runtime.transcript import finite
from scenarios.spec import Measure

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
"""Raised whenever a row's figures change their meaning: older cells are then run again."""
AGAIN = "Run costeer sweep for this folder again"
"""What helps where a study's own files are not what they were: cells that are whole are kept."""
ANEW = "Delete it and run costeer sweep for this folder again"
"""What helps where a cell looks whole but is of another kind of study."""


def content_key(content: Mapping[str, Any]) -> str:
    """The hash of plain `content`, the same on every machine and in every process."""
    text = json.dumps({"schema": SCHEMA, **content}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Store:
    """The results of one study in a folder."""

    folder: Path

    def has(self, key: str) -> bool:
        """Whether that cell is finished; one that is there and not whole is not."""
        if not self._cell(key).is_file():
            return False
        try:
            self.get(key)
        except EnvironmentFailure:
            return False
        return True

    def put(self, key: str, result: Mapping[str, Any]) -> None:
        """Keep a finished cell."""
        text = json.dumps(finite(result), sort_keys=True, allow_nan=False)
        write_whole(self._cell(key), text + "\n", private=True)

    def get(self, key: str) -> dict[str, Any]:
        """A finished cell. Raises `EnvironmentFailure` when it is not there or not readable."""
        path = self._cell(key)
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EnvironmentFailure(
                str(path), f"this result cannot be read: {_why(error)}", todo=AGAIN
            ) from error
        row = result.get("row") if isinstance(result, dict) else None
        if not row or not isinstance(row, dict):
            raise EnvironmentFailure(str(path), "this result has no row", todo=AGAIN)
        return dict(result)

    def answer(self, key: str) -> dict[str, Any]:
        """A finished cell that has an answer: `row` and `tokens`. Raises `EnvironmentFailure`."""
        result = self.get(key)
        row = result["row"]
        if not {"case", "text"} <= row.keys() or not isinstance(result.get("tokens"), list):
            raise _damaged(self._cell(key), "this result has no answer", ANEW)
        return result

    def finish(self, study: Mapping[str, Any], keys: Sequence[str]) -> Path:
        """Write all rows as Parquet and the study's own file; the former's path.

        The rows come first and the study says which rows are its own, so that what fails on the way
        leaves the study that was here, or one that is refused, but no study with another's rows.
        """
        raw = parquet([flat(self.get(key)["row"]) for key in keys])
        record = {"schema": SCHEMA, **study, "cells": list(keys), "results": _digest(raw)}
        path, own = self.folder / "results.parquet", self.folder / "study.json"
        write_whole(path, raw, private=True)
        try:
            write_whole(own, json.dumps(record, indent=1) + "\n")
        except BaseException:
            own.unlink(missing_ok=True)  # it is of the rows that were here before
            raise
        return path

    def study(self) -> dict[str, Any]:
        """What was asked. Raises `EnvironmentFailure` when no study was finished here, or its file
        is not what `finish` wrote."""
        path = self.folder / "study.json"
        if not path.is_file():
            raise EnvironmentFailure(
                str(self.folder),
                "no finished study is in this folder",
                todo="Run costeer sweep STUDY --out FOLDER first",
            )
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _damaged(path, f"the study cannot be read: {_why(error)}") from error
        if not isinstance(record, dict):
            raise _damaged(path, "this is no study")
        if record.get("schema") != SCHEMA:
            raise EnvironmentFailure(
                str(path),
                "the study was written by another version",
                got=f"schema {record.get('schema')}",
                allowed=SCHEMA,
                todo=AGAIN,
            )
        for name, right in _PARTS.items():
            if not right(record.get(name)):
                raise _damaged(path, f"the study has no proper {name}")
        return dict(record)

    def rows(self) -> pd.DataFrame:
        """All rows, in the study's order, with what follows from them or stands beside them.

        Raises `EnvironmentFailure` when they cannot be read or are not this study's.
        """
        study = self.study()
        rows = self._read(study)
        if "tokens_per_s" in rows:
            # The mean, not the median: run-ahead's median token knows nothing of its divergences.
            rows = rows.assign(token_ms=1e3 / rows["tokens_per_s"])
        if study["measure"] == "codec":
            # Read off the clock, so it is beside the rows and not in them.
            rows = rows.assign(encode_us=[self._clock(key) for key in study["cells"]])
        return rows

    def _read(self, study: Mapping[str, Any]) -> pd.DataFrame:
        import pandas as pd
        from pyarrow import ArrowException

        path = self.folder / "results.parquet"
        try:
            raw = path.read_bytes()
            rows = pd.read_parquet(io.BytesIO(raw))
        except (OSError, ValueError, ArrowException) as error:
            raise _damaged(path, f"the rows cannot be read: {_why(error)}") from error
        # Studies of earlier versions do not say which rows are theirs, only how many.
        if study.get("results", _digest(raw)) != _digest(raw) or len(rows) != len(study["cells"]):
            raise _damaged(path, "these are not the rows of study.json beside it")
        # A column of nothing has no kind of its own; as numbers it can be reckoned with.
        return rows.astype({name: float for name in rows if rows[name].isna().all()})

    def _clock(self, key: str) -> float:
        try:
            return float(self.get(key)["clock"]["encode_us"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self._cell(key), "this result has no time to encode", ANEW) from error

    def _cell(self, key: str) -> Path:
        return self.folder / "cells" / f"{key}.json"


_PARTS: Mapping[str, Callable[[Any], bool]] = {
    "name": lambda value: isinstance(value, str),
    "about": lambda value: isinstance(value, str),
    "measure": lambda value: value in get_args(Measure),
    "varied": lambda value: _texts(value),
    "cells": lambda value: _texts(value) and bool(value),
}
"""What a study's file holds, and how to tell that it does."""


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _damaged(path: Path, what: str, todo: str = AGAIN) -> EnvironmentFailure:
    return EnvironmentFailure(str(path), what, todo=todo)


def _why(error: Exception) -> str:
    """The error without the path, which the line begins with."""
    return (isinstance(error, OSError) and error.strerror) or str(error).rstrip(".")


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


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
