"""Proxy tuning (arXiv 2401.08565): the delta between a tuned small model and the untuned one.

    D = log p_tuned(. | query, y<t) - log p_untuned(. | query, y<t)

What is personal is in the tuned model's weights and not in its prompt. To a rule the tuned model
looks like the aware row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_runtime.device import Branches
from edge_runtime.errors import UsageError
from edge_runtime.policy import Scores
from edge_runtime.steering import AGNOSTIC, Method


class TunedRows:
    """`edge_runtime.device.Branches` over a tuned and an untuned small model of one vocabulary.

    Both read the query alone, so each computes its two rows alike and one of them is used: a
    yardstick, not a device that should be quick.
    """

    def __init__(self, tuned: Branches, untuned: Branches) -> None:
        if tuned.vocabulary_size != untuned.vocabulary_size:
            raise UsageError(
                "tuned model",
                "it has another vocabulary than the untuned one",
                got=tuned.vocabulary_size,
                allowed=untuned.vocabulary_size,
            )
        self._both = (tuned, untuned)
        self.vocabulary_size = untuned.vocabulary_size

    @property
    def length(self) -> int:
        """Answer tokens in all rows."""
        return self._both[0].length

    @property
    def past(self) -> int:
        """Tokens in the longest row, prompt included."""
        return max(one.past for one in self._both)

    def prefill(self, aware: Sequence[int], agnostic: Sequence[int], *, note: int = 0) -> None:
        """Begin an answer with the query's prompt (`aware` is not read: there is no note)."""
        for one in self._both:
            one.prefill(agnostic, agnostic)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens to all rows."""
        for one in self._both:
            one.extend(tokens)

    def rollback(self, length: int) -> None:
        """Forget the answer's tokens from `length` on."""
        for one in self._both:
            one.rollback(length)

    def logits(self, ids: np.ndarray | None = None, position: int | None = None) -> Scores:
        """[2, C]: the tuned model's row and the untuned model's."""
        return np.stack([one.logits(ids, position)[AGNOSTIC] for one in self._both])


def reads_notes(rule: Method) -> Method:
    """`rule`, if its aware row is a small model with the note. Raises `UsageError` for `proxy`."""
    if rule.tuned:
        raise UsageError(
            f"method {rule.name}",
            "it steers with a small model that was tuned, and there is none here",
            todo="Measure it with one: costeer evaluate --tuned MODEL",
        )
    return rule
