"""The part of a static NPU graph that the host does: embedding, rotation, mask, feeding.

Pure functions of lengths and tokens, shared by the runtime, by calibration and by verification,
so that what was calibrated is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def row_type(hidden: int, block: int) -> np.dtype[Any]:
    """One token's row in the embedding file: `hidden` int8 levels, then their fp16 scales."""
    return np.dtype(
        [("levels", "i1", (hidden // block, block)), ("scales", "<f2", hidden // block)]
    )


class Embedding:
    """Rows of the input embedding, mapped from their file and dequantized as they are read."""

    def __init__(self, path: Path, hidden: int, block: int) -> None:
        self._rows = np.memmap(path, dtype=row_type(hidden, block), mode="r")
        self._hidden = hidden

    def __call__(self, ids: Array) -> npt.NDArray[np.float32]:
        """Token ids [...] -> float32 [..., hidden]."""
        rows = self._rows[ids]
        scales = rows["scales"].astype(np.float32)[..., None]
        return (rows["levels"] * scales).reshape(*ids.shape, self._hidden)


@dataclass(frozen=True, slots=True)
class Frame:
    """What a graph's inputs are made of: fixed sizes, frequencies, and the mask's depth."""

    past: int
    group: int
    inv_freq: npt.NDArray[np.float32]
    rope_scale: float = 1.0
    mask_floor: float = -100.0

    def rotation(self, starts: Sequence[int], sequence: int) -> tuple[Array, Array]:
        """cos and sin [rows, 1, sequence, d] for positions that begin at `starts`.

        The rotation is x cos + swap(x) sin, so the first half of sin carries the minus sign.
        """
        positions = np.asarray(starts)[:, None] + np.arange(sequence)
        angles = positions[:, :, None] * self.inv_freq.astype(np.float64)
        cos, sin = np.cos(angles), np.sin(angles)
        scale = np.float32(self.rope_scale)
        return (
            np.concatenate([cos, cos], -1)[:, None].astype(np.float32) * scale,
            np.concatenate([-sin, sin], -1)[:, None].astype(np.float32) * scale,
        )

    def mask(
        self, lengths: Sequence[int], counts: Sequence[int], sequence: int
    ) -> npt.NDArray[np.float32]:
        """Additive mask [rows, 1, group * sequence, past + sequence].

        Row r sees its first `lengths[r]` slots of the past, and of the new tokens those that come
        no later than the one asking and are among its `counts[r]` real ones.
        """
        rows = len(lengths)
        seen = np.zeros((rows, sequence, self.past + sequence), bool)
        causal = np.tri(sequence, dtype=bool)
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            seen[row, :, :length] = True
            seen[row, :, self.past :] = causal & (np.arange(sequence) < count)
        mask = np.where(seen, np.float32(0), np.float32(self.mask_floor))
        return np.tile(mask, (1, self.group, 1))[:, None]

    def inputs(
        self,
        embed: Callable[[Array], Array],
        tokens: Sequence[Sequence[int]],
        lengths: Sequence[int],
        sequence: int,
    ) -> dict[str, Array]:
        """Everything but keys and values for one call with `tokens[r]` appended to row r.

        A row with fewer than `sequence` tokens is filled with token 0, which nothing attends to.
        """
        ids = np.zeros((len(tokens), sequence), np.int64)
        for row, new in enumerate(tokens):
            ids[row, : len(new)] = new
        cos, sin = self.rotation(lengths, sequence)
        counts = [len(new) for new in tokens]
        return {
            "x": embed(ids),
            "cos": cos,
            "sin": sin,
            "mask": self.mask(lengths, counts, sequence),
        }
