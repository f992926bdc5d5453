"""Several private notes at once: each has its own delta, and the deltas are added with weights.

    D = sum_i w_i (log p(. | note_i, query, y<t) - log p(. | query, y<t))

A calendar and a diary can so be weighed against each other, and a note that is switched off costs
nothing but its own branch. To a rule the sum looks like one aware branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_runtime.device import Branches
from edge_runtime.errors import UsageError
from edge_runtime.policy import Scores
from edge_runtime.steering import AGNOSTIC, AWARE
from edge_runtime.text import Prompts, Text


class ManyNotes:
    """`edge_runtime.device.Branches` over one pair of branches a note."""

    def __init__(
        self,
        branches: Sequence[Branches],
        prompts: Sequence[Prompts],
        weights: Sequence[float] = (),
    ) -> None:
        self._weights = list(weights) or [1.0] * len(prompts)
        if not len(branches) == len(prompts) == len(self._weights) >= 1:
            raise UsageError(
                "notes",
                "every note needs one pair of branches, one prompt and one weight",
                got=f"{len(branches)}, {len(prompts)} and {len(self._weights)}",
            )
        self._branches = list(branches)
        self._prompts = list(prompts)
        self.vocabulary_size = branches[0].vocabulary_size

    @property
    def length(self) -> int:
        """Answer tokens in all rows."""
        return self._branches[0].length

    @property
    def past(self) -> int:
        """Tokens in the longest row, prompt included."""
        return max(one.past for one in self._branches)

    def prefill(self, aware: Sequence[int], agnostic: Sequence[int], *, note: int = 0) -> None:
        """Begin an answer with each note's own prompt (`aware` is not read)."""
        for one, prompts in zip(self._branches, self._prompts, strict=True):
            one.prefill(prompts.aware, agnostic, note=prompts.note)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens to all rows."""
        for one in self._branches:
            one.extend(tokens)

    def rollback(self, length: int) -> None:
        """Forget the answer's tokens from `length` on."""
        for one in self._branches:
            one.rollback(length)

    def logits(self, ids: np.ndarray | None = None, position: int | None = None) -> Scores:
        """[2, C]: the agnostic row with the weighted deltas added, and the agnostic row."""
        rows = [one.logits(ids, position) for one in self._branches]
        agnostic = np.array(rows[0][AGNOSTIC])
        deltas = [
            np.float32(weight) * (row[AWARE] - row[AGNOSTIC])
            for weight, row in zip(self._weights, rows, strict=True)
        ]
        return np.stack([agnostic + np.sum(deltas, axis=0), agnostic])


def prompts_of(text: Text, query: str, notes: Sequence[str]) -> list[Prompts]:
    """One pair of prompts a note, all for the same `query`."""
    return [text.prompts(query, note) for note in notes]
