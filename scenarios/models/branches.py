"""A floating-point model made to look like a bundle's two branches: the yardstick for one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cloud_sim.model import CloudModel, ScoreRequest
from edge_runtime.policy import Scores
from scenarios.models.predictions import LogTable


class ModelBranches:
    """`Branches` over a floating-point model: the yardstick for a quantized bundle.

    Tokens are taken in when a prediction is asked for, those of all siblings in one pass.
    """

    def __init__(self, model: CloudModel) -> None:
        self.model = model
        self.vocabulary_size = model.vocabulary_size
        self._siblings: list[ModelBranches] = [self]
        self._sequences: list[Any] = []
        self._prompt = [0, 0]
        self._read = 0
        """Answer tokens that both rows have taken in."""
        self._waiting: list[int] = []
        """Those that come after them."""
        self._rows: dict[int, Scores] = {}
        """Entry p: what predicts the answer's token p, both branches [2, V]."""
        self._keep: int | None = None

    def sibling(self, keep: int | None = None) -> ModelBranches:
        """Other branches over the same model, for another answer at the same time.

        Of its predictions only the last `keep` are kept. Close it when its answer is complete.
        """
        other = ModelBranches(self.model)
        other._keep = keep
        other._siblings = self._siblings
        self._siblings.append(other)
        return other

    def close(self) -> None:
        """Free both rows."""
        self._free()
        self._siblings.remove(self)

    @property
    def length(self) -> int:
        """Answer tokens in both rows."""
        return self._read + len(self._waiting)

    @property
    def past(self) -> int:
        """Tokens in the longer row, prompt included."""
        return max(self._prompt) + self.length

    def prefill(self, aware: Sequence[int], agnostic: Sequence[int], *, note: int = 0) -> None:
        """Begin an answer: both prompts, nothing after them (`note`: no snapshot is kept)."""
        self._free()
        self._sequences = [self.model.open(), self.model.open()]
        self._prompt = [len(aware), len(agnostic)]
        rows = self.model.score(
            [
                ScoreRequest(self.model, sequence, 0, tuple(prompt))
                for sequence, prompt in zip(self._sequences, (aware, agnostic), strict=True)
            ]
        )
        self._rows = {0: _both(row[-1] for row in rows)}

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens to both rows."""
        self._waiting += tokens

    def rollback(self, length: int) -> None:
        """Forget the answer's tokens from `length` on."""
        del self._waiting[max(0, length - self._read) :]
        for position in range(length + 1, self._read + 1):
            self._rows.pop(position, None)
        self._read = min(self._read, length)

    def logits(self, ids: np.ndarray | None = None, position: int | None = None) -> Scores:
        """Log-probabilities [2, C] (logits up to a constant) for `position` (None: the next)."""
        if self._waiting:
            self._take_in()
        row = self._rows[self.length if position is None else position]
        return row if ids is None else row[:, ids]

    def _take_in(self) -> None:
        """What all siblings wait for, in one pass."""
        waiting = [one for one in self._siblings if one._waiting]
        found = iter(self.model.score([request for one in waiting for request in one._requests()]))
        for one in waiting:
            one._taken(next(found), next(found))

    def _requests(self) -> list[ScoreRequest]:
        new = tuple(self._waiting)
        return [
            ScoreRequest(self.model, sequence, prompt + self._read, new, every=True)
            for sequence, prompt in zip(self._sequences, self._prompt, strict=True)
        ]

    def _taken(self, aware: LogTable, agnostic: LogTable) -> None:
        for rows in zip(aware, agnostic, strict=True):
            self._read += 1
            self._rows[self._read] = _both(rows)
        self._waiting = []
        if self._keep is not None:
            self._rows = {p: row for p, row in self._rows.items() if p > self._read - self._keep}

    def _free(self) -> None:
        for sequence in self._sequences:
            self.model.close(sequence)
        self._sequences, self._waiting, self._rows, self._read = [], [], {}, 0


def _both(rows: Iterable[LogTable]) -> Scores:
    return np.stack(list(rows)).astype(np.float32, copy=False)
