"""The language-model head over kept hidden states: all of the vocabulary, or some of its rows.

Buffers are bound once for each number of candidates: binding takes ten times as long as copying two
hidden states and 64 ids.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_runtime.graphs.engine import Binding, open_session
from edge_runtime.policy import Scores


class Head:
    """One of a bundle's two head graphs, bound to memory of its own."""

    def __init__(self, path: Path, threads: int, hidden: int, vocabulary: int) -> None:
        self._binding = Binding(open_session(path, threads=threads))
        self._vocabulary = vocabulary
        self._hidden = np.zeros((2, hidden), np.float32)
        self._ids = np.zeros(0, np.int64)
        self._out = np.zeros((2, 0), np.float32)
        self._binding.input("hidden", self._hidden)

    def scores(self, hidden: npt.NDArray[np.float32], ids: npt.NDArray[np.int64] | None) -> Scores:
        """Logits [2, C] of both branches' `hidden` [2, hidden]; `ids` only for the graph that takes
        candidates."""
        count = self._vocabulary if ids is None else len(ids)
        if count != self._out.shape[1]:
            self._out = np.zeros((2, count), np.float32)
            self._binding.output("logits", self._out)
            if ids is not None:
                self._ids = np.zeros(count, np.int64)
                self._binding.input("candidate_ids", self._ids)
        np.copyto(self._hidden, hidden)
        if ids is not None:
            np.copyto(self._ids, ids)
        self._binding.run()
        return self._out.copy()
