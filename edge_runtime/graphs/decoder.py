"""The decoder graph over a cache of two rows: one row alone, or both in one call.

    keys, values    one buffer a layer [2, kv_heads, max_length, head_dim], bound both as past and
                    as present, so a step writes one slot and copies nothing
    rows            of different lengths, right-padded: a row of n tokens writes its next to slot n

It knows no prompts and no answers: whoever calls says how many tokens each row has. Everything is
bound once, by address; from one step to the next only words that change are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge_runtime.graphs.engine import Binding, open_session
from edge_runtime.graphs.memory import keep_heap_small
from edge_runtime.steering import AGNOSTIC, AWARE

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle

CHUNK = 64
"""Tokens of a prefill call: 128 are as fast and hold twice the memory, 32 are 10 % slower."""

ROWS = (AWARE, AGNOSTIC)
_F32 = np.dtype(np.float32).itemsize

Hidden = npt.NDArray[np.float32]


def chunks(ids: Sequence[int], past: int) -> Iterator[tuple[int, Sequence[int]]]:
    """`ids` in pieces that one call takes, each with the tokens before it."""
    for start in range(0, len(ids), CHUNK):
        yield past + start, ids[start : start + CHUNK]


class Decoder:
    """One onnxruntime session and the two rows' keys and values.

    The memory for `max_length` tokens is taken here, whole: it does not grow while an answer does.
    Raises `BundleError` for a graph that cannot run, `MemoryError` when there is no room.
    """

    def __init__(self, bundle: Bundle, max_length: int, threads: int) -> None:
        shape = bundle.manifest.architecture
        self._size = shape.hidden
        keep_heap_small()
        self.session = open_session(bundle.decoder, threads=threads, arena=True)
        names = [f"{layer}.{what}" for layer in range(shape.layers) for what in ("key", "value")]
        # Written, not only reserved: pages that are first touched later would be growth. And as
        # one block, which numpy asks large pages for.
        kv = np.full((len(names), 2, shape.kv_heads, max_length, shape.head_dim), 0, "f4")
        self.kv: dict[str, npt.NDArray[np.float32]] = dict(zip(names, kv, strict=True))
        self._chunk_hidden = np.zeros((CHUNK, self._size), np.float32)
        self._ids = np.zeros(CHUNK, np.int64)
        self._pair = np.zeros((2, 1), np.int64)
        self._mask = np.zeros((2, max_length), np.int64)
        self._marked = [0, 0]
        row_shape = (1, shape.kv_heads, max_length, shape.head_dim)
        row_bytes = int(np.prod(row_shape)) * _F32
        self._both = Binding(self.session)
        self._one = (Binding(self.session), Binding(self.session))
        for name, buffer in self.kv.items():
            self._both.input(f"past_key_values.{name}", buffer)
            self._both.output(f"present.{name}", buffer)
            for row in ROWS:
                self._one[row].input(f"past_key_values.{name}", buffer, row_shape, row * row_bytes)
                self._one[row].output(f"present.{name}", buffer, row_shape, row * row_bytes)
        # As wide as the cache in every call: bound once (anew it takes 65 us), and calls differ in
        # few shapes, for each of which onnxruntime plans its memory.
        self._both.input("attention_mask", self._mask)
        for row in ROWS:
            start = row * self._mask[0].nbytes
            self._one[row].input("attention_mask", self._mask, (1, max_length), start)
        self._both.input("input_ids", self._pair)
        self._pair_hidden = np.zeros((2, self._size), np.float32)
        self._both.output("hidden", self._pair_hidden, (2, 1, self._size))

    def one(self, row: int, ids: Sequence[int], past: int) -> Hidden:
        """At most `CHUNK` tokens of one row, after its first `past`.

        Returns their hidden states [n, hidden]; valid until the next call.
        """
        binding, count = self._one[row], len(ids)
        self._ids[:count] = ids
        binding.input("input_ids", self._ids, (1, count))
        self._mark(row, past + count)
        binding.output("hidden", self._chunk_hidden, (1, count, self._size))
        binding.run()
        return self._chunk_hidden[:count]

    def both(self, token: int, lengths: tuple[int, int], hidden: Hidden) -> None:
        """`token` in both rows, which have `lengths` tokens; hidden states [2, hidden] into
        `hidden`."""
        self._pair[:] = token
        for row in ROWS:
            self._mark(row, lengths[row] + 1)
        self._both.run()
        np.copyto(hidden, self._pair_hidden)

    def _mark(self, row: int, length: int) -> None:
        """The row's mask: ones up to its `length`, which as a rule is one more than before."""
        had = self._marked[row]
        if had < length:
            self._mask[row, had:length] = 1
        else:
            self._mask[row, length:had] = 0
        self._marked[row] = length
