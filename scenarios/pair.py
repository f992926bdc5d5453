"""The two models of a study, asked without a network: what each says along a given answer.

The cloud is a `CloudModel`; the small model is a bundle's two branches, or, as the unquantized
yardstick, any `CloudModel` made to look like them (`ModelBranches`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cloud_sim.model import CloudModel, ScoreRequest
from cloud_sim.remembered import RememberedPrompts
from edge_runtime.device import Branches
from edge_runtime.errors import UsageError
from edge_runtime.names import name_ids
from edge_runtime.policy import Scores
from edge_runtime.steering import log_softmax
from edge_runtime.text import Prompts, Text
from scenarios.datasets import Case

LogTable = npt.NDArray[np.floating]
"""Log-probabilities [n, V]."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How much of a case is used, in tokens; part of every key in the store."""

    note_tokens: int = 1000
    """A longer note is cut at its end."""
    reference_tokens: int = 150
    """A longer reference is cut; a whole one is followed by the end token."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A cloud model, a small model, and what tells them from others in the store's keys."""

    cloud: CloudModel
    branches: Branches
    text: Text
    """Of the small model."""
    identity: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ours = self.text.fingerprint
        if self.cloud.vocabulary and self.cloud.vocabulary != ours:
            raise UsageError(
                "evaluate",
                "the two models have different vocabularies",
                got=f"{ours[:12]} on the device, {self.cloud.vocabulary[:12]} in the cloud",
                todo="Name two models of one family",
            )

    def cut(self, case: Case, lengths: Lengths) -> Case:
        """`case` with its note no longer than it may be."""
        ids = self.text.encode(case.context)
        if len(ids) <= lengths.note_tokens or case.context not in case.aware:
            return case
        context = self.text.decode(ids[: lengths.note_tokens]).rstrip("\ufffd")
        return replace(
            case, context=context, aware=case.aware.replace(case.context, context, 1), notes=()
        )

    def reference(self, case: Case, lengths: Lengths) -> list[int]:
        """Token ids of the reference, cut, or with the end token behind it."""
        ids = self.text.encode(case.reference)
        if len(ids) > lengths.reference_tokens:
            return ids[: lengths.reference_tokens]
        return [*ids, *self.cloud.end_ids[:1]]

    def prompts(self, case: Case) -> Prompts:
        """The small model's two prompts, with the message that the set's authors build."""
        aware = self.text.prompts(case.aware).agnostic
        return Prompts(aware, self.text.prompts(case.query).agnostic, names=self.names(case))

    def names(self, case: Case) -> tuple[int, ...]:
        """Tokens of names and numbers that only the case's note holds."""
        return name_ids(self.text.encode, case.context, case.query)


def along(model: CloudModel, message: str, answer: Sequence[int]) -> LogTable:
    """What `model` predicts for each token of `answer` [n, V] after the user's `message`."""
    prompt = tuple(model.prompt(message))
    sequence = model.open()
    try:
        tables = model.score([ScoreRequest(model, sequence, 0, prompt)])
        if len(answer) > 1:
            more = tuple(answer[:-1])
            tables += model.score([ScoreRequest(model, sequence, len(prompt), more, every=True)])
    finally:
        model.close(sequence)
    return np.concatenate(tables)


def both_along(branches: Branches, prompts: Prompts, answer: Sequence[int]) -> list[LogTable]:
    """The aware and the agnostic row's log-probabilities [n, V] along `answer`.

    All tokens go in at once; the branches keep what predicts each position.
    """
    branches.prefill(prompts.aware, prompts.agnostic)
    if len(answer) > 1:
        branches.extend(answer[:-1])
    tables: tuple[list[LogTable], list[LogTable]] = ([], [])
    for position in range(len(answer)):
        for row, logits in enumerate(branches.logits(position=position)):
            tables[row].append(_log_softmax(logits))
    return [np.stack(rows) for rows in tables]


def _log_softmax(logits: LogTable) -> LogTable:
    wide = logits.astype(np.float64)
    return log_softmax(wide).astype(np.float32)


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

    def sibling(self) -> ModelBranches:
        """Other branches over the same model, for another answer at the same time.

        Of its predictions only the last two are kept. Close it when its answer is complete.
        """
        other = ModelBranches(self.model)
        other._keep = 2
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


def open_pair(
    device: str, cloud: str, *, cloud_dtype: str = "bfloat16", max_length: int = 2048
) -> Pair:
    """The pair that `costeer evaluate` names.

    `device`: a bundle's folder, or ``float:MODEL`` for the unquantized model in float32. `cloud`:
    as `cloud_sim.live.load` takes it. Raises the errors of both.
    """
    from cloud_sim.live.llm import TransformersModel
    from cloud_sim.live.load import load
    from cloud_sim.live.ragged import ATTENTION

    big = RememberedPrompts(TransformersModel.open_source(cloud, dtype=cloud_dtype))
    branches: Branches
    if device.startswith("float:"):
        loaded = load(device.removeprefix("float:"), dtype="float32", attention=ATTENTION)
        small = RememberedPrompts(TransformersModel(loaded))
        branches, text, name = ModelBranches(small), loaded.text, device
    else:
        from edge_runtime.branches import open_branches
        from edge_runtime.bundle import open_bundle

        bundle = open_bundle(Path(device))
        longest = min(max_length, bundle.manifest.architecture.max_context)
        branches = open_branches(bundle, max_length=longest, threads=2)
        text = Text.open(bundle)
        files = bundle.manifest.files
        name = "+".join(sorted(file.sha256[:16] for file in files.values()))
    identity = {"device": name, "cloud": f"{cloud} {cloud_dtype}"}
    return Pair(big, branches, text, identity)
