"""One answer as plain values, token by token: what tables, pages and figures are made of.

From a `Transcript`; nothing here computes anything that the transcript does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edge_runtime.policy import Decision
from edge_runtime.transcript import TokenRecord, Transcript

Decode = Callable[[Iterable[int]], str]


def token_row(record: TokenRecord, text: str, decode: Decode) -> dict[str, Any]:
    """One emitted token: its text, where its time went, and what steering did to it.

    `moved` is log policy - log base of the token, in nats: how much likelier steering made it;
    0 where the cloud had no say, so that there is nothing to compare with.
    `instead` is what the cloud alone would have said here; empty when that is the same token.
    """
    row: dict[str, Any] = {
        "token": record.token,
        "text": text,
        "at_ms": round(record.at_ms, 3),
        "parts": {name: round(ms, 3) for name, ms in record.parts.as_dict().items()},
        "moved": 0.0,
        "instead": "",
        "source": "",
    }
    decision: Decision | None = record.decision
    if decision is not None:
        row["source"] = decision.source
        moved = decision.policy_logprob - decision.base_logprob
        row["moved"] = round(moved, 4) if math.isfinite(moved) else 0.0
        row["instead"] = decode([decision.base_token]) if decision.diverged else ""
    return row


def answer_row(transcript: Transcript, text: str, **more: Any) -> dict[str, Any]:
    """The figures of one answer, as every verb prints them; `more` comes first."""
    return {**more, "text": text, **transcript.row()}


def diverged(tokens: Sequence[dict[str, Any]]) -> int:
    """How many tokens are not what the cloud alone would have said."""
    return sum(bool(token["instead"]) for token in tokens)
