"""What both models say at every position of a reference answer, kept on disk.

Four predictions a position: the cloud without the note (`CLOUD`) and with it (`UPLOAD`), the small
model with it (`AWARE`) and without (`AGNOSTIC`). A new rule needs nothing else, so once a case is
on disk a method costs no model pass. Kept per position: the union of each model's best tokens, the
note's tokens and the reference's own, with exact log-probabilities, and one entry more (id -1)
that stands for all the rest, so that every row sums to one. Measured against whole vectors
(Qwen2.5-Coder 0.5B on 1.5B): see docs/quality.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.files import write_whole

CLOUD, UPLOAD, AWARE, AGNOSTIC = range(4)
KEEP = {CLOUD: 1024, UPLOAD: 256, AWARE: 256, AGNOSTIC: 256}
"""Best tokens of each prediction that are kept."""
FORM = 1
"""Part of every key: raised when the files change."""

Table = npt.NDArray[np.float32]
LogTable = npt.NDArray[np.floating]
"""Log-probabilities [n, V]."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """One case: `tokens` [n] of the reference, and for each a slice of the flat arrays."""

    tokens: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    """[n + 1]: position p is entries starts[p] to starts[p+1] of the rest."""
    ids: npt.NDArray[np.int32]
    """Ascending within a position, then -1 for all other tokens together."""
    logprobs: Table
    """[4, entries]: CLOUD, UPLOAD, AWARE, AGNOSTIC, natural logarithms."""
    names: tuple[int, ...] = ()
    """Tokens of the note's names (`edge_runtime.names`); not in the file."""

    def __len__(self) -> int:
        return len(self.tokens)

    def position(self, at: int) -> tuple[npt.NDArray[np.int32], Table]:
        """Ids [C] and log-probabilities [4, C] of position `at`; the last is the rest."""
        part = slice(int(self.starts[at]), int(self.starts[at + 1]))
        return self.ids[part], self.logprobs[:, part]

    def target(self, at: int) -> int:
        """Where the reference's token is among the position's ids."""
        ids, _ = self.position(at)
        return int(np.searchsorted(ids[:-1], self.tokens[at]))

    def nll(self, row: int) -> float:
        """Summed negative log-likelihood of the reference under prediction `row`, nats."""
        at = [int(self.starts[p]) + self.target(p) for p in range(len(self))]
        return -float(self.logprobs[row, at].astype(np.float64).sum())


def gather(
    tables: Sequence[npt.NDArray[np.floating]],
    tokens: Sequence[int],
    note: Sequence[int] = (),
    keep: Mapping[int, int] = KEEP,
) -> Predictions:
    """Keep of four whole tables [n, V] of log-probabilities what a rule can need."""
    always = np.unique(np.asarray(note, np.int64))
    size = tables[0].shape[1]
    always = always[always < size]
    ids: list[npt.NDArray[np.int64]] = []
    columns: list[npt.NDArray[np.float64]] = []
    for at, token in enumerate(tokens):
        best = [_best(tables[row][at], count) for row, count in keep.items()]
        kept = np.unique(np.concatenate([*best, always, [token]]))
        part = np.stack([table[at][kept] for table in tables]).astype(np.float64)
        ids.append(np.append(kept, -1))
        columns.append(with_rest(part))
    starts = np.cumsum([0, *(len(one) for one in ids)])
    return Predictions(
        np.asarray(tokens, np.int64),
        starts.astype(np.int64),
        np.concatenate(ids).astype(np.int32),
        np.concatenate(columns, axis=1).astype(np.float32),
    )


def with_rest(logprobs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log-probabilities [rows, C + 1]: those given [rows, C], and what they leave to the rest."""
    rest = np.maximum(1.0 - np.exp(logprobs).sum(axis=1), 1e-12)
    return np.column_stack([logprobs, np.log(rest)])


def _best(logprobs: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    if count >= len(logprobs):
        return np.arange(len(logprobs))
    return np.argpartition(logprobs, len(logprobs) - count)[len(logprobs) - count :]


class Store:
    """Results in a folder, each under the hash of all that determines it; written whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(**parts: Any) -> str:
        """A name for what `parts` (JSON values) determine."""
        text = json.dumps({"form": FORM, **parts}, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def predictions(self, key: str) -> Predictions | None:
        """What was kept under `key`; None if nothing, or nothing readable."""
        try:
            with np.load(self.folder / f"{key}.npz") as file:
                return Predictions(*(file[n] for n in ("tokens", "starts", "ids", "logprobs")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def keep_predictions(self, key: str, kept: Predictions) -> None:
        """Write `kept` under `key`."""
        buffer = io.BytesIO()
        np.savez(
            buffer, tokens=kept.tokens, starts=kept.starts, ids=kept.ids, logprobs=kept.logprobs
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{key}.npz", buffer.getvalue(), private=True)

    def record(self, key: str) -> dict[str, Any] | None:
        """The JSON object under `key`, if any."""
        try:
            found = json.loads((self.folder / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def keep_record(self, key: str, record: Mapping[str, Any]) -> None:
        """Write a JSON object under `key`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            self.folder / f"{key}.json", json.dumps(record, ensure_ascii=False), private=True
        )
