"""Two branches of one small model in one call: the aware row (0) and the agnostic row (1).

    keys, values    one buffer a layer [2, kv_heads, max_length, head_dim], bound both as past and
                    as present, so a step writes one slot and copies nothing
    rows            of different lengths, right-padded: row r's next token goes to slot n_r
    rollback        lowers n_r; slots beyond it are overwritten later
    hidden states   of all answer positions are kept, so that after a rollback the prediction is
                    there without computing anything; the head runs on them when it is asked for

A prompt is prefilled row by row in chunks of 128 tokens, which bounds the memory that attention
and the products take. What is not covered: sampling and steering (`edge_runtime.device`), the
choice of lengths (`edge_runtime.budget`), NPU bundles (`edge_runtime.npu_branches`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import WEIGHTS
from edge_runtime.engine import Binding, check_threads, open_session, raise_if_out_of_memory
from edge_runtime.errors import BundleError, UsageError
from edge_runtime.memory import (
    give_back_heap,
    give_back_pages,
    keep_heap_small,
    map_sparsely,
    mapped_tables,
)
from edge_runtime.policy import Scores
from edge_runtime.steering import AGNOSTIC, AWARE

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle
    from edge_runtime.device import Branches
    from edge_runtime.snapshot import Shelf

CHUNK = 128
"""Tokens of a prefill call: measured 10 % faster than 512 at once, and a third of its memory."""

PAGES_EVERY = 4
"""Heads between two times that mapped pages are given back: each maps 4 MB, a quarter of a
megabyte of which it needs; bringing that back takes 0.1 ms."""

ROWS = (AWARE, AGNOSTIC)
_F32 = np.dtype(np.float32).itemsize


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
        from edge_runtime.npu_branches import NpuBranches

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
        keep_heap_small()
        self._decoder = open_session(bundle.decoder, threads=threads)
        self._heads: dict[str, Binding] = {}

        self.notes: Shelf | None = None
        """Where a note's keys and values may be found, so that they need no prefill."""
        self._prompt = [0, 0]
        self._length = 0
        self._ready = False
        # Written once here, so that the memory of the whole context is taken now or refused now:
        # it does not grow while an answer does.
        self._kv = {
            f"{layer}.{what}": np.full((2, shape.kv_heads, max_length, shape.head_dim), 0, "f4")
            for layer in range(shape.layers)
            for what in ("key", "value")
        }
        self._hidden = np.zeros((0, 2, self._hidden_size), np.float32)
        """Row p: what predicts the answer's token p, both branches. Made when a prompt is in: then
        it is known how long the answer can be."""
        self._chunk_hidden = np.zeros((CHUNK, self._hidden_size), np.float32)
        self._ids = np.zeros(CHUNK, np.int64)
        self._pair = np.zeros((2, 1), np.int64)
        self._ones = np.ones(max_length, np.int64)
        self._mask = np.zeros(2 * max_length, np.int64)
        self._mask_of = (0, 0)
        self._row_bytes = shape.kv_heads * max_length * shape.head_dim * _F32
        row_shape = (1, shape.kv_heads, max_length, shape.head_dim)
        self._both = Binding(self._decoder)
        self._one = (Binding(self._decoder), Binding(self._decoder))
        for name, buffer in self._kv.items():
            self._both.input(f"past_key_values.{name}", buffer)
            self._both.output(f"present.{name}", buffer)
            for row in ROWS:
                offset = row * self._row_bytes
                self._one[row].input(f"past_key_values.{name}", buffer, row_shape, offset)
                self._one[row].output(f"present.{name}", buffer, row_shape, offset)
        self._both.input("input_ids", self._pair)
        self._tables = self._find_tables()
        self._heads_run = 0
        give_back_heap()

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
        start = self._recall(aware[:note]) if self.notes is not None and note < len(aware) else 0
        self._hidden = self._hidden[:0].copy()
        last = np.zeros((2, self._hidden_size), np.float32)
        for row, ids, past in ((AWARE, aware, start), (AGNOSTIC, agnostic, 0)):
            cut = note if row == AWARE and past < note < len(ids) else len(ids)
            self._run_row(row, ids[past:cut], past)
            if cut < len(ids):
                self._run_row(row, ids[cut:], cut)
            last[row] = self._chunk_hidden[self._last]
        give_back_pages(self._tables)
        room = self.max_length - max(self._prompt)
        self._hidden = np.full((room + 1, 2, self._hidden_size), 0, np.float32)
        self._hidden[0] = last
        self._ready = True

    def note_blocks(self, note: int) -> Iterator[npt.NDArray[np.float32]]:
        """The aware row's first `note` tokens: keys and values by layer, for a snapshot."""
        self._check_ready()
        for buffer in self._kv.values():
            yield buffer[AWARE, :, :note]

    def _recall(self, note: Sequence[int]) -> int:
        """Put a kept note into the aware row; how many tokens of it are there now."""
        kept = self.notes.find(self.bundle, note) if self.notes is not None and note else None
        if kept is None:
            return 0
        for buffer, block in zip(self._kv.values(), kept, strict=True):
            buffer[AWARE, :, : len(note)] = block
        return len(note)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens to both rows; one token is one call for both rows."""
        self._check_ready()
        self._fits("the answer", self.past + len(tokens))
        if len(tokens) == 1 and self._together:
            self._step(tokens[0])
            return
        before = self._length
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            for row in ROWS:
                self._run_row(row, part, self._prompt[row] + before + start)
                done = before + start + 1
                self._hidden[done : done + len(part), row] = self._chunk_hidden[: len(part)]
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
        if ids is None:
            binding = self._head("head")
            out = np.empty((2, self.vocabulary_size), np.float32)
        else:
            binding = self._head("candidates")
            ids = np.ascontiguousarray(ids, np.int64)
            if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary_size:
                raise UsageError(
                    "candidates",
                    "ids outside the small model's vocabulary, or none at all",
                    got=f"{len(ids)} ids" + (f" up to {ids.max()}" if len(ids) else ""),
                    allowed=f"0 to {self.vocabulary_size - 1}",
                )
            binding.input("candidate_ids", ids)
            out = np.empty((2, len(ids)), np.float32)
        size = self._hidden_size
        binding.input("hidden", self._hidden, (2, size), at * 2 * size * _F32)
        binding.output("logits", out)
        binding.run()
        self._heads_run += 1
        if self._heads_run % PAGES_EVERY == 0:
            give_back_pages(self._tables)
        return out

    def delta(self, ids: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float32]:
        """Aware minus agnostic logits [C] for the next position; constants do not matter."""
        scores = self.logits(ids)
        return scores[AWARE] - scores[AGNOSTIC]

    def _step(self, token: int) -> None:
        aware, agnostic = (prompt + self._length + 1 for prompt in self._prompt)
        total = max(aware, agnostic)
        self._write_mask(aware, agnostic)
        self._pair[:] = token
        self._length += 1
        both, size = self._both, self._hidden_size
        both.input("attention_mask", self._mask, (2, total))
        both.output("hidden", self._hidden, (2, 1, size), self._length * 2 * size * _F32)
        both.run()

    def _write_mask(self, aware: int, agnostic: int) -> None:
        """Ones up to each row's length in a [2, longer] view of the flat mask.

        The aware row is the longer one as a rule, and then the flat mask is ones without a gap:
        from one step to the next two words change.
        """
        total = max(aware, agnostic)
        if aware < agnostic:
            self._mask[: 2 * total] = 1
            self._mask[aware:total] = 0
            self._mask_of = (0, 0)
            return
        ones = total + agnostic
        had = sum(self._mask_of)
        if had == 0:
            self._mask[:] = 0
        if ones < had:
            self._mask[ones:had] = 0
        self._mask[min(had, ones) : ones] = 1
        self._mask_of = (total, agnostic)

    def _run_row(self, row: int, ids: Sequence[int], past: int) -> None:
        """One row alone, from slot `past` on; leaves the last chunk's hidden states."""
        binding, size = self._one[row], self._hidden_size
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            count = len(part)
            self._ids[:count] = part
            binding.input("input_ids", self._ids, (1, count))
            binding.input("attention_mask", self._ones, (1, past + start + count))
            binding.output("hidden", self._chunk_hidden, (1, count, size))
            binding.run()
            self._last = count - 1
            if count == CHUNK:
                give_back_pages(self._tables)

    def _head(self, which: str) -> Binding:
        if which not in self._heads:
            path = self.bundle.head if which == "head" else self.bundle.candidates
            self._heads[which] = Binding(open_session(path, threads=self.threads))
            self._tables = self._find_tables()
        return self._heads[which]

    def _find_tables(self) -> list[tuple[int, int]]:
        tables = mapped_tables(self.bundle.path / WEIGHTS)
        map_sparsely(tables)
        return tables

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
