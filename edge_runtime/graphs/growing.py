"""Decoder graphs whose keys and values grow: what goes in is the past, what comes out is longer.

That is the form of graphs without GroupQueryAttention (target `portable`): past_key_values
[rows, kv_heads, past, head_dim] in, present [.., past + new, ..] out, positions as an input. The
caches here are the same fixed buffers [rows, kv_heads, max_length, head_dim] that the fused graphs
bind, so a rollback is still a smaller number; a call reads their first slots and writes new ones.

Rows of different length share a call where the graph takes positions: the past is as long as the
longer row's, the mask hides the gap behind the shorter one, and each row has its own positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_runtime.graphs.engine import open_session

if TYPE_CHECKING:
    import onnxruntime as ort

    from edge_runtime.bundle import Bundle

Floats = npt.NDArray[np.float32]
Kv = Mapping[str, Floats]
"""Buffers [rows, kv_heads, max_length, head_dim] by the name of their graph input."""

POSITIONS = "position_ids"
"""Where a graph has no such input (Gemma), it counts positions by slots."""


def grows(bundle: Bundle) -> bool:
    """Whether the bundle's decoder is of this form."""
    return bundle.manifest.recipe.get("graph") == "portable"


def run_growing(
    session: ort.InferenceSession,
    rows: Sequence[Sequence[int]],
    kv: Kv,
    past: Sequence[int],
) -> Floats:
    """Append `rows[r]` to row r, which has `past[r]` tokens; hidden states [rows, longest, hidden].

    `kv` gets the new keys and values, each row's behind its own past. States behind a row's last
    token mean nothing.
    """
    positional = any(value.name == POSITIONS for value in session.get_inputs())
    if not positional and len(set(past)) > 1:
        return _one_by_one(session, rows, kv, past)
    slots, longest = max(past), max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), slots + longest), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : past[index]] = 1
        mask[index, slots : slots + len(row)] = 1
    feed: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if positional:
        feed[POSITIONS] = np.asarray(past, np.int64)[:, None] + np.arange(longest, dtype=np.int64)
    feed |= {name: np.ascontiguousarray(buffer[:, :, :slots]) for name, buffer in kv.items()}
    presents = [name.replace("past_key_values", "present") for name in kv]
    states, *grown = call(session, ["hidden", *presents], feed)
    for buffer, present in zip(kv.values(), grown, strict=True):
        for index, row in enumerate(rows):
            start = past[index]
            new = present[index, :, slots : slots + len(row)]
            buffer[index, :, start : start + len(row)] = new
    out: Floats = states
    return out


def call(session: ort.InferenceSession, outputs: list[str], feed: Mapping[str, Any]) -> list[Any]:
    """The one call into onnxruntime here; a profile puts its own clock around it."""
    found: list[Any] = session.run(outputs, feed)
    return found


def _one_by_one(
    session: ort.InferenceSession, rows: Sequence[Sequence[int]], kv: Kv, past: Sequence[int]
) -> Floats:
    states = []
    for index, row in enumerate(rows):
        alone = {name: buffer[index : index + 1] for name, buffer in kv.items()}
        states.append(run_growing(session, [row], alone, past[index : index + 1])[0])
    longest = max(len(each) for each in states)
    return np.stack([np.pad(each, ((0, longest - len(each)), (0, 0))) for each in states])


class GrowingDecoder:
    """The verbs of `edge_runtime.graphs.decoder.Decoder` over a graph of this form.

    Each call copies the past in and out, so a step is slower the longer the prompt is.
    """

    def __init__(self, bundle: Bundle, max_length: int, threads: int) -> None:
        shape = bundle.manifest.architecture
        self.session = open_session(bundle.decoder, threads=threads)
        self.kv: dict[str, Floats] = {
            f"{layer}.{what}": np.zeros((2, shape.kv_heads, max_length, shape.head_dim), "f4")
            for layer in range(shape.layers)
            for what in ("key", "value")
        }

    def one(self, row: int, ids: Sequence[int], past: int) -> Floats:
        """Tokens of one row, after its first `past`; their hidden states [n, hidden]."""
        kv = {f"past_key_values.{name}": buffer[row : row + 1] for name, buffer in self.kv.items()}
        states: Floats = run_growing(self.session, [ids], kv, [past])[0]
        return states

    def both(self, token: int, lengths: tuple[int, int], hidden: Floats) -> None:
        """`token` in both rows, which have `lengths` tokens; hidden states [2, hidden] into
        `hidden`."""
        kv = {f"past_key_values.{name}": buffer for name, buffer in self.kv.items()}
        hidden[:] = run_growing(self.session, [[token], [token]], kv, lengths)[:, 0]
