"""Gates: tokens for which the cloud is so sure that steering would hardly change them.

    top probability   .95 .97 .93 | .96 .99 .42 .95 ...
    latch                          off off off off ...   for good, as in the authors' release
    reopen                         off off ON  on  ...   steered again as soon as the cloud wavers

A gated token is the cloud's own; the device runs no pass for it. When a gate opens again, the
tokens that the small model has missed go through it as one chunk: a prefill, cheaper than steps.
Source: AdaCoSteer in the authors' release (USTC-StarTeam/CoSteer): above 1 - 0.1 for 3 tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edge_runtime.candidates import CandidateSet
from edge_runtime.errors import UsageError, did_you_mean

GateName = Literal["none", "latch", "reopen"]


@dataclass(slots=True)
class Gate:
    """Decides position by position; `name` is one of `none`, `latch`, `reopen`."""

    name: GateName = "none"
    sure: float = 0.9
    """The cloud is confident where its top probability exceeds this."""
    patience: int = 3
    """Confident positions in a row, before the gate closes."""
    closed: bool = False
    """Whether the last position was gated: the device need not keep up."""
    _in_a_row: int = 0

    def steers(self, base: CandidateSet) -> bool:
        """Whether the position that `base` predicts is to be steered; ask once a position."""
        if self.name == "none":
            return True
        confident = float(base.logprobs.max()) > math.log(self.sure)
        if self.name == "latch":
            self.closed = self.closed or self._in_a_row >= self.patience
        else:
            self.closed = confident and self._in_a_row >= self.patience
        self._in_a_row = self._in_a_row + 1 if confident else 0
        return not self.closed


def gate(name: str, sure: float = 0.9, patience: int = 3) -> Gate:
    """The gate called `name`. Raises `UsageError` for a name that is none."""
    if name not in ("none", "latch", "reopen"):
        raise UsageError(
            "gate",
            "no such gate",
            got=name,
            allowed="none, latch, reopen",
            todo=did_you_mean(name, ["none", "latch", "reopen"]),
        )
    return Gate(name, sure, patience)  # type: ignore[arg-type]  # checked above
