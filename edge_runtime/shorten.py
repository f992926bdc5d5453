"""A private note made to fit: its oldest paragraphs go first, before anything is answered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edge_runtime.budget import Budget, admit

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle
    from edge_runtime.device import Branches
    from edge_runtime.text import Text


def admitted(
    bundle: Bundle, text: Text, query: str, note: str, max_tokens: int, budget: Budget
) -> tuple[str, list[str]]:
    """The note, shortened as far as memory and the model ask for it, and what was decided.

    Raises `BudgetExceeded` when even the newest paragraph does not fit.
    """

    def length(kept: str) -> int:
        prompts = text.prompts(query, kept)
        return max(len(prompts.aware), len(prompts.agnostic)) + max_tokens

    wanted, most = length(note), bundle.manifest.architecture.max_context
    room = admit(bundle, min(wanted, most), budget, shorten_to=1)
    if room >= wanted:
        return note, []
    kept, dropped = shorten(text, query, note, max(1, room - max_tokens))
    admit(bundle, length(kept), budget)
    return kept, [f"context: the {dropped} oldest paragraphs were dropped ({room} tokens fit)"]


def in_time(
    branches: Branches, text: Text, query: str, note: str, budget: Budget
) -> tuple[str, list[str]]:
    """The note, shortened so that its prefill keeps `first_token_ms`, and what was decided.

    The speed is measured on the query itself, which costs a few per cent of what it may save.
    """
    allowed = budget.first_token_ms
    if allowed is None:
        return note, []
    ids = text.prompts(query, note).agnostic
    branches.prefill(ids[:1], ids)  # warm-up: the first call allocates
    began = time.perf_counter()
    branches.prefill(ids[:1], ids)
    a_token_ms = (time.perf_counter() - began) * 1e3 / (len(ids) + 1)
    room = int(allowed / a_token_ms) - len(ids)
    kept, dropped = shorten(text, query, note, max(1, room))
    if not dropped:
        return note, []
    return kept, [
        f"context: the {dropped} oldest paragraphs were dropped"
        f" ({a_token_ms:.1f} ms a prompt token, allowed {allowed:g} ms)"
    ]


def shorten(text: Text, query: str, note: str, tokens: int) -> tuple[str, int]:
    """`note` without its oldest (first) paragraphs, so that the aware prompt has at most `tokens`.

    Returns the note and how many paragraphs were dropped; the newest one always stays, even if it
    alone is too long.
    """
    paragraphs = [part for part in note.split("\n\n") if part.strip()]
    for dropped in range(len(paragraphs)):
        left = "\n\n".join(paragraphs[dropped:])
        if len(text.prompts(query, left).aware) <= tokens:
            return left, dropped
    return (paragraphs[-1] if paragraphs else note), max(0, len(paragraphs) - 1)
