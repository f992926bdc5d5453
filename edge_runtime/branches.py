"""Two branches of one small model in one call: the aware row (0) and the agnostic row (1).

    step            one token through both rows: the weights are read once (`graphs.decoder`)
    rollback        lowers a length; what lies beyond it is overwritten later
    hidden states   of all answer positions are kept, so that after a rollback the prediction is
                    there without computing anything; the head runs on them when it is asked for

A prompt is prefilled row by row in chunks. What is not covered: sampling and steering
(`edge_runtime.device`), the choice of lengths (`edge_runtime.budget`), NPU bundles
(`edge_runtime.npu.branches`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import WEIGHTS
from edge_runtime.errors import BundleError, UsageError
from edge_runtime.graphs.decoder import ROWS, Decoder, chunks
from edge_runtime.graphs.engine import check_threads, raise_if_out_of_memory
from edge_runtime.graphs.growing import GrowingDecoder, grows
from edge_runtime.graphs.head import Head
from edge_runtime.graphs.memory import (
    MappedPages,
    give_back_code,
    give_back_heap,
    join_pages,
    keep_heap_warm,
)
from edge_runtime.policy import Scores
from edge_runtime.steering import AGNOSTIC, AWARE

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle
    from edge_runtime.device import Branches
    from edge_runtime.snapshot import Shelf

_UNSIGNED = np.dtype(np.uint64)
PAGES_EVERY = 4
"""Heads between two times that mapped pages are given back: each maps 4 MB, a quarter of a
megabyte of which it needs; bringing that back takes 0.1 ms."""


def open_branches(
    bundle: Bundle,
    *,
    max_length: int | None = None,
    threads: int = 1,
    notes: Shelf | None = None,
) -> Branches:
    """The branches of `bundle`, on the CPU or, for an NPU bundle, on what it was made for.

    `max_length`: prompt and answer together, in tokens (None: all that the model can take).
    `notes`: where a private note may be kept already (CPU only).
    """
    length = bundle.manifest.architecture.max_context if max_length is None else max_length
    if bundle.manifest.npu is not None:
        from edge_runtime.npu.branches import NpuBranches

        npu: Branches = NpuBranches.open(bundle, max_length=length, threads=threads)
        return npu
    branches = TwoBranches.open(bundle, max_length=length, threads=threads)
    branches.notes = notes
    return branches


class TwoBranches:
    """The CPU implementation of `edge_runtime.device.Branches`."""

    def __init__(self, bundle: Bundle, max_length: int, threads: int) -> None:
        shape = bundle.manifest.architecture
        if not 1 <= max_length <= shape.max_context:
            raise UsageError(
                "context length",
                "the model of this bundle does not go that far",
                got=f"{max_length} tokens",
                allowed=f"1 to {shape.max_context}",
            )
        self.bundle = bundle
        self.max_length = max_length
        self.vocabulary_size = shape.vocabulary_size
        self.threads = check_threads(threads)
        self._hidden_size = shape.hidden
        self._together = bundle.manifest.branches == "together"
        kind = GrowingDecoder if grows(bundle) else Decoder
        self._decoder: Decoder | GrowingDecoder = kind(bundle, max_length, threads)
        self._heads: dict[str, Head] = {}
        self._heads_run = 0
        self._pages = MappedPages(bundle.path / WEIGHTS)
        self.notes: Shelf | None = None
        """Where a note's keys and values may be found, so that they need no prefill."""
        self._prompt = [0, 0]
        self._length = 0
        self._ready = False
        self._hidden = np.zeros((0, 2, self._hidden_size), np.float32)
        """Row p: what predicts the answer's token p, both branches. Made when a prompt is in: then
        it is known how long the answer can be."""
        give_back_heap()
        give_back_code()
        join_pages()
        keep_heap_warm()

    @classmethod
    def open(cls, bundle: Bundle, *, max_length: int, threads: int = 1) -> TwoBranches:
        """Load the decoder and take the memory for `max_length` tokens in both rows.

        The heads are loaded when they are first needed. Raises `UsageError` for a length that the
        model cannot take, `BundleError` for a graph that onnxruntime cannot run, `BudgetExceeded`
        when the system refuses the memory.
        """
        try:
            return cls(bundle, max_length, threads)
        except MemoryError as error:
            raise_if_out_of_memory(error)
            raise

    @property
    def length(self) -> int:
        """Answer tokens in both rows."""
        return self._length

    @property
    def past(self) -> int:
        """Tokens in the longer row, prompt included."""
        return max(self._prompt) + self._length

    def prefill(self, aware: Sequence[int], agnostic: Sequence[int], *, note: int = 0) -> None:
        """Begin an answer: both prompts, nothing after them.

        `note`: leading tokens of `aware` that are the private note. The prompt is cut there, so
        that a note whose keys and values come from a snapshot gives the same numbers, to the bit,
        as one that was prefilled.
        """
        for where, ids in (("the prompt with the note", aware), ("the query", agnostic)):
            if not ids:
                raise UsageError("prompt", f"{where} is empty")
            self._fits(where, len(ids))
        self._ready = False
        self._length = 0
        self._prompt = [len(aware), len(agnostic)]
        kept = self._recall(aware[:note]) if self.notes is not None and note < len(aware) else 0
        self._hidden = self._hidden[:0].copy()
        last = np.zeros((2, self._hidden_size), np.float32)
        for row, ids, past in ((AWARE, aware, kept), (AGNOSTIC, agnostic, 0)):
            cut = note if row == AWARE and past < note < len(ids) else len(ids)
            for start, end in ((past, cut), (cut, len(ids))):
                for begin, part in chunks(ids[start:end], start):
                    last[row] = self._decoder.one(row, part, begin)[-1]
                    self._pages.give_back()
        give_back_heap()
        room = self.max_length - max(self._prompt)
        self._hidden = np.full((room + 1, 2, self._hidden_size), 0, np.float32)
        self._hidden[0] = last
        self._ready = True

    def note_blocks(self, note: int) -> Iterator[npt.NDArray[np.float32]]:
        """The aware row's first `note` tokens: keys and values by layer, for a snapshot."""
        self._check_ready()
        for buffer in self._decoder.kv.values():
            yield buffer[AWARE, :, :note]

    def _recall(self, note: Sequence[int]) -> int:
        """Put a kept note into the aware row; how many tokens of it are there now."""
        kept = self.notes.find(self.bundle, note) if self.notes is not None and note else None
        if kept is None:
            return 0
        for buffer, block in zip(self._decoder.kv.values(), kept, strict=True):
            buffer[AWARE, :, : len(note)] = block
        return len(note)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens to both rows; one token is one call for both rows."""
        self._check_ready()
        self._fits("the answer", self.past + len(tokens))
        before = self._length
        if len(tokens) == 1 and self._together:
            lengths = (self._prompt[AWARE] + before, self._prompt[AGNOSTIC] + before)
            self._decoder.both(tokens[0], lengths, self._hidden[before + 1])
        else:
            for row in ROWS:
                for begin, part in chunks(tokens, before):
                    done = slice(begin + 1, begin + 1 + len(part))
                    past = self._prompt[row] + begin
                    self._hidden[done, row] = self._decoder.one(row, part, past)
        self._length = before + len(tokens)

    def rollback(self, length: int) -> None:
        """Forget the answer's tokens from `length` on: nothing is computed or copied."""
        if not 0 <= length <= self._length:
            raise UsageError(
                "rollback", "no such length", got=length, allowed=f"0 to {self._length}"
            )
        self._length = length

    def logits(
        self, ids: npt.NDArray[np.int64] | None = None, position: int | None = None
    ) -> Scores:
        """Raw logits [2, C] over `ids` (None: the whole vocabulary), alike to the bit.

        For the answer's `position`, at most `length` (None: the next one): its hidden state is
        still here, so an earlier one costs no pass either.
        """
        self._check_ready()
        at = self._length if position is None else position
        if not 0 <= at <= self._length:
            raise UsageError("head", "no such position", got=at, allowed=f"0 to {self._length}")
        if ids is not None:
            ids = np.asarray(ids, np.int64)
            # Seen without a sign, a negative id is a huge one.
            if not len(ids) or np.maximum.reduce(ids.view(_UNSIGNED)) >= self.vocabulary_size:
                raise UsageError(
                    "candidates",
                    "ids outside the small model's vocabulary, or none at all",
                    got=f"{len(ids)} ids" + (f" up to {ids.max()}" if len(ids) else ""),
                    allowed=f"0 to {self.vocabulary_size - 1}",
                )
        out = self._head("head" if ids is None else "candidates").scores(self._hidden[at], ids)
        self._heads_run += 1
        if self._heads_run % PAGES_EVERY == 0:
            self._pages.give_back()
        return out

    def delta(self, ids: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float32]:
        """Aware minus agnostic logits [C] for the next position; constants do not matter."""
        scores = self.logits(ids)
        return scores[AWARE] - scores[AGNOSTIC]

    def _head(self, which: str) -> Head:
        if which not in self._heads:
            path = self.bundle.head if which == "head" else self.bundle.candidates
            self._heads[which] = Head(path, self.threads, self._hidden_size, self.vocabulary_size)
            self._pages.find()
        return self._heads[which]

    def _fits(self, what: str, tokens: int) -> None:
        if tokens > self.max_length:
            limit = self.bundle.manifest.architecture.max_context
            raise UsageError(
                "context length",
                f"{what} does not fit",
                got=f"{tokens} tokens",
                allowed=f"{self.max_length}",
                todo="Ask for a longer context or shorten the text"
                if self.max_length < limit
                else "Shorten the note or the query",
            )

    def _check_ready(self) -> None:
        if not self._ready:
            raise BundleError("branches", "there is no prompt yet", todo="Call prefill first")
