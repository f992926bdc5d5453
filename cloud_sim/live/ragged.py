"""Several sequences of different lengths in one forward pass, without padding.

All new tokens stand behind each other in one row [1, N]; every linear layer sees N tokens at once
and reads the weights once. Attention alone is done sequence by sequence, each against its own
cache. transformers lets a caller name the attention function, so this works for every model family
that goes through its attention interface.

A cache is one tensor per layer for keys and one for values, [1, kv_heads, capacity, head_dim];
rolling back is lowering a length, and nothing is copied until the capacity is used up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

ATTENTION = "costeer_ragged"
"""What `attn_implementation` must be for `Ragged` to be looked at."""

GROWTH = 128
"""Capacity in tokens is a multiple of this, and at least doubles."""


class KeyValues:
    """One sequence's keys and values in all layers, and how many tokens of them count."""

    __slots__ = ("keys", "length", "values")

    def __init__(self) -> None:
        self.length = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    @property
    def capacity(self) -> int:
        """Tokens that fit without growing."""
        return self.keys[0].shape[2] if self.keys else 0

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def clear(self) -> None:
        """Give the memory back."""
        self.length = 0
        self.keys.clear()
        self.values.clear()

    def fork(self, keep: int) -> KeyValues:
        """A copy of the first `keep` tokens."""
        new = KeyValues()
        new.length = keep
        room = -(-(keep + 1) // GROWTH) * GROWTH
        new.keys = [_resized(t, keep, room) for t in self.keys]
        new.values = [_resized(t, keep, room) for t in self.values]
        return new

    def write(
        self, layer: int, past: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put `key` and `value` [1, kv_heads, n, d] at `past`; returns views of all past + n."""
        end = past + key.shape[2]
        if layer == len(self.keys):
            self.keys.append(key.new_empty(*key.shape[:2], 0, key.shape[3]))
            self.values.append(value.new_empty(*value.shape[:2], 0, value.shape[3]))
        if end > self.keys[layer].shape[2]:
            room = max(-(-end // GROWTH) * GROWTH, 2 * self.keys[layer].shape[2])
            self.keys[layer] = _resized(self.keys[layer], past, room)
            self.values[layer] = _resized(self.values[layer], past, room)
        self.keys[layer][:, :, past:end] = key
        self.values[layer][:, :, past:end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def _resized(tensor: torch.Tensor, keep: int, room: int) -> torch.Tensor:
    new = tensor.new_empty(*tensor.shape[:2], room, tensor.shape[3])
    new[:, :, :keep] = tensor[:, :, :keep]
    return new


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `stop` of the row belong to `cache`, which holds `past` tokens already."""

    start: int
    stop: int
    cache: KeyValues
    past: int


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    ragged: tuple[Span, ...] = (),
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer: `query` [1, heads, N, d], `key` and `value` [1, kv_heads, N, d].

    Returns [1, N, heads, d], as transformers wants it.
    """
    if not ragged:
        raise ValueError("this attention runs inside TransformersModel.score only")
    if softcap is not None:
        raise ValueError("attention with soft-capped logits is not supported")
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    for span in ragged:
        here = slice(span.start, span.stop)
        keys, values = span.cache.write(
            module.layer_idx, span.past, key[:, :, here], value[:, :, here]
        )
        out[:, here] = _one(query[:, :, here], keys, values, scaling, sliding_window, span.past)
    return out, None


def _one(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    window: int | None,
    past: int,
) -> torch.Tensor:
    """`query` [1, heads, n, d] over [1, kv_heads, past + n, d]; returns [1, n, heads, d]."""
    heads, new = query.shape[1:3]
    kv_heads = keys.shape[1]
    if new == 1:
        if window is not None:
            keys, values = keys[:, :, -window:], values[:, :, -window:]
        # The heads that share keys take the place of query positions: no key is repeated.
        grouped = query.view(1, kv_heads, heads // kv_heads, -1)
        out = F.scaled_dot_product_attention(grouped, keys, values, scale=scaling)
        return out.reshape(1, 1, heads, -1)
    mask = None
    if past or window is not None:
        at = torch.arange(past, past + new, device=query.device)[:, None]
        seen = torch.arange(past + new, device=query.device)[None]
        mask = seen <= at
        if window is not None:
            mask &= seen > at - window
    if kv_heads != heads:
        keys = keys.repeat_interleave(heads // kv_heads, dim=1)
        values = values.repeat_interleave(heads // kv_heads, dim=1)
    out = F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling
    )
    return out.transpose(1, 2)


AttentionInterface.register(ATTENTION, attention)
