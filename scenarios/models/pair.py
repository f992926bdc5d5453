"""The two models of a study, asked without a network: what each says along a given answer.

The cloud is a `CloudModel`; the small model is a bundle's two branches, or, as the unquantized
yardstick, any `CloudModel` made to look like them (`scenarios.models.branches`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from cloud_sim.model import CloudModel, ScoreRequest
from cloud_sim.remembered import RememberedPrompts
from edge_runtime.device import Branches, SteeredDevice
from edge_runtime.errors import UsageError
from edge_runtime.names import name_ids
from edge_runtime.notes import ManyNotes, prompts_of
from edge_runtime.policy import Device
from edge_runtime.sampling import GREEDY
from edge_runtime.steering import Method, log_softmax
from edge_runtime.text import Prompts, Text
from edge_runtime.translated import TranslatedDevice
from edge_runtime.tuned import TunedRows, reads_notes
from scenarios.datasets import Case
from scenarios.identity import content_of
from scenarios.models.branches import ModelBranches
from scenarios.models.predictions import LogTable

Align = Literal["none", "map", "byte"]
"""How a small model with another tokenizer is steered with (`edge_runtime.translated`)."""
NotesHow = Literal["together", "apart"]
"""A case's several notes: as one text, or each with its own delta (`edge_runtime.notes`)."""


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
    align: Align = "none"
    theirs: Text | None = None
    """Of the cloud, where it is another: needed to align."""
    our_ends: tuple[int, ...] = ()
    """The small model's end tokens, likewise."""
    notes: NotesHow = "together"
    weights: tuple[float, ...] = ()
    """Of the notes, in their order; none: 1 each."""
    another: Callable[[], Branches] | None = None
    """Opens further branches of the small model."""
    tuned: Branches | None = None
    """A tuned small model: then the delta is between it and the other, and no note is read."""

    def __post_init__(self) -> None:
        ours = self.text.fingerprint
        if self.align == "none" and self.cloud.vocabulary and self.cloud.vocabulary != ours:
            raise UsageError(
                "evaluate",
                "the two models have different vocabularies",
                got=f"{ours[:12]} on the device, {self.cloud.vocabulary[:12]} in the cloud",
                todo="Name two models of one family, or say how to align them: --align map",
            )

    @property
    def spoken(self) -> Text:
        """The tokens of answers: the cloud's."""
        return self.theirs or self.text

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
        ids = self.spoken.encode(case.reference)
        if len(ids) > lengths.reference_tokens:
            return ids[: lengths.reference_tokens]
        return [*ids, *self.cloud.end_ids[:1]]

    def prompts(self, case: Case) -> Prompts:
        """The small model's two prompts, with the message that the set's authors build."""
        aware = self.text.prompts(case.aware).agnostic
        return Prompts(aware, self.text.prompts(case.query).agnostic, names=self.names(case))

    def names(self, case: Case) -> tuple[int, ...]:
        """The answer's tokens for names and numbers that only the case's note holds."""
        return name_ids(self.spoken.encode, case.context, case.query)

    @property
    def several(self) -> bool:
        """Whether the small models take several answers at once."""
        own = [self.branches] if self.tuned is None else [self.branches, self.tuned]
        return all(isinstance(one, ModelBranches) for one in own)

    def takes(self, rule: Method) -> None:
        """Raises `UsageError` for a rule whose aware row is not what this pair's is."""
        if self.tuned is None:
            reads_notes(rule)
        elif rule.steers and not rule.tuned:
            raise UsageError(
                f"method {rule.name}",
                "with --tuned the small models read no note",
                allowed="proxy, cloud-only, upload",
            )

    def rows(self, case: Case, keep: int | None = None) -> tuple[Branches, list[ModelBranches]]:
        """Branches for one answer to `case`, and what of them is to be closed after it.

        `keep`: of a floating-point model's predictions, the last so many (None: all).
        """
        if self.tuned is not None:
            both = (self.tuned, self.branches)
            found = [one.sibling(keep) if isinstance(one, ModelBranches) else one for one in both]
            return TunedRows(*found), [one for one in found if isinstance(one, ModelBranches)]
        apart = self.notes == "apart" and len(case.notes) > 1
        count = len(case.notes) if apart else 1
        mine: list[Branches]
        if isinstance(self.branches, ModelBranches):
            own = [self.branches.sibling(keep) for _ in range(count)]
            mine = list(own)
        else:
            own, mine = [], [self.branches]
            while len(mine) < count:
                assert self.another is not None
                mine.append(self.another())
        if not apart:
            return mine[0], own
        weights = (*self.weights, *[1.0] * count)[:count]
        return ManyNotes(mine, prompts_of(self.text, case.query, case.notes), weights), own

    def device(self, case: Case, rule: Method, branches: Branches) -> Device:
        """A greedy device over `branches` that answers `case` under `rule`."""
        ends = self.cloud.end_ids
        if self.align == "none":
            return SteeredDevice(branches, self.prompts(case), rule, GREEDY, ends)
        return self.translated(case, rule, branches)

    def translated(self, case: Case, rule: Method, branches: Branches) -> TranslatedDevice:
        """The same, where the small model has other tokens than the cloud."""
        prompts = self.prompts(case)
        return TranslatedDevice(
            branches,
            prompts,
            self.text,
            self.spoken,
            rule,
            GREEDY,
            our_ends=self.our_ends,
            end_ids=self.cloud.end_ids,
            how="byte" if self.align == "byte" else "map",
            names=prompts.names,
        )


_last: deque[tuple[CloudModel, str, tuple[int, ...], LogTable]] = deque(maxlen=2)
"""A study asks several small models about one answer in a row: without the note, and with it."""


def along(model: CloudModel, message: str, answer: Sequence[int]) -> LogTable:
    """What `model` predicts for each token of `answer` [n, V] after the user's `message`."""
    for known, *asked, table in _last:
        if known is model and asked == [message, tuple(answer)]:
            return table
    prompt = tuple(model.prompt(message))
    sequence = model.open()
    try:
        tables = model.score([ScoreRequest(model, sequence, 0, prompt)])
        if len(answer) > 1:
            more = tuple(answer[:-1])
            tables += model.score([ScoreRequest(model, sequence, len(prompt), more, every=True)])
    finally:
        model.close(sequence)
    table = np.concatenate(tables)
    table.flags.writeable = False
    _last.append((model, message, tuple(answer), table))
    return table


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


def open_cloud(cloud: str, dtype: str = "bfloat16") -> tuple[CloudModel, Text]:
    """The cloud's model and its text, for one pair or for several in turn."""
    from cloud_sim.live.llm import TransformersModel
    from cloud_sim.live.load import load
    from cloud_sim.live.ragged import ATTENTION

    whole = load(cloud, dtype=dtype, attention=ATTENTION)
    return RememberedPrompts(TransformersModel(whole)), whole.text


def _threads() -> int:
    """As many as torch takes: several workers on one machine are told how few by this variable."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else 2


def open_pair(
    device: str,
    cloud: str,
    *,
    cloud_dtype: str = "bfloat16",
    max_length: int = 2048,
    align: Align = "none",
    notes: NotesHow = "together",
    weights: Sequence[float] = (),
    shared: tuple[CloudModel, Text] | None = None,
    tuned: str = "",
) -> Pair:
    """The pair that `costeer evaluate` names.

    `device`: a bundle's folder, or ``float:MODEL`` for the unquantized model in float32. `cloud`:
    as `cloud_sim.live.load` takes it; `shared`: what `open_cloud` made of it, if it is open.
    `tuned`: a tuned form of the device's model, for `proxy`. Raises the errors of both.
    """
    if tuned and (align != "none" or notes != "together"):
        raise UsageError("--tuned", "it goes with one vocabulary and without notes apart")
    big, speaks = shared if shared else open_cloud(cloud, cloud_dtype)
    branches, text, name, ends, another = _open_small(device, max_length)
    identity = {"device": name, "cloud": f"{content_of(cloud)} {cloud_dtype}"}
    # Only what is out of the ordinary is in the keys, so that what is kept stays known.
    identity |= {"align": align} if align != "none" else {}
    identity |= {"notes": f"{notes} {list(weights)}"} if notes != "together" else {}
    other: Branches | None = None
    if tuned:
        other, spoken, identity["tuned"], *_ = _open_small(tuned, max_length)
        if spoken.fingerprint != text.fingerprint:
            raise UsageError("--tuned", "it has another vocabulary than the device's model")
    theirs = None if align == "none" else speaks
    return Pair(
        *(big, branches, text, identity, align, theirs, ends, notes, tuple(weights)),
        another,
        other,
    )


def _open_small(
    device: str, max_length: int
) -> tuple[Branches, Text, str, tuple[int, ...], Callable[[], Branches] | None]:
    """Branches, text, what tells its weights from others, end tokens, and how to open more."""
    from cloud_sim.live.llm import TransformersModel
    from cloud_sim.live.load import load
    from cloud_sim.live.ragged import ATTENTION

    if device.startswith("float:"):
        loaded = load(device.removeprefix("float:"), dtype="float32", attention=ATTENTION)
        branches = ModelBranches(RememberedPrompts(TransformersModel(loaded)))
        return branches, loaded.text, content_of(device), loaded.end_ids, None
    from edge_runtime.branches import open_branches
    from edge_runtime.bundle import open_bundle

    bundle = open_bundle(Path(device))
    longest = min(max_length, bundle.manifest.architecture.max_context)
    another = partial(open_branches, bundle, max_length=longest, threads=_threads())
    name = "+".join(sorted(file.sha256[:16] for file in bundle.manifest.files.values()))
    ends = tuple(bundle.manifest.tokens.end_ids)
    return another(), Text.open(bundle), name, ends, another
