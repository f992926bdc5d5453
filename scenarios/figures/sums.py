"""Every figure that a study's rows can show as a table, each as a ratio of sums over its samples.

Symbols are in docs/metrics.md. What a row holds is a sum over the case's tokens, so that a ratio
over cases weighs tokens alike; times are means over samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Values = npt.NDArray[np.float64]
Column = Callable[["pd.DataFrame"], Values]
"""A study's rows to one number each."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One figure: the sum of `above` over the sum of `below`."""

    title: str
    above: Column
    below: Column
    needs: str
    """The column without which rows do not have it."""
    percent: bool = False


def _of(name: str) -> Column:
    return lambda rows: rows[name].to_numpy(np.float64)


def _less(first: str, second: str) -> Column:
    return lambda rows: _of(first)(rows) - _of(second)(rows)


def _and(first: str, second: str) -> Column:
    return lambda rows: _of(first)(rows) + _of(second)(rows)


def _ones(rows: pd.DataFrame) -> Values:
    return np.ones(len(rows))


def answer(rows: pd.DataFrame) -> Values:
    """Tokens of each answer, which a row holds as a list of ids."""
    return rows["tokens"].map(lambda ids: max(1, str(ids).count(",") + 1)).to_numpy(np.float64)


def reference(rows: pd.DataFrame) -> Values:
    """Positions of each reference: `tokens`, unless that is an answer's."""
    return _of("reference_tokens" if "reference_tokens" in rows else "tokens")(rows)


def _payload(rows: pd.DataFrame) -> Values:
    return _of("payload_bytes")(rows) * reference(rows)


def _whole(rows: pd.DataFrame) -> Values:
    return _of("full_bytes")(rows) * reference(rows)


def _mean(title: str, name: str) -> Shown:
    return Shown(title, _of(name), _ones, name)


def _per_position(title: str, name: str, *, percent: bool = False) -> Shown:
    return Shown(title, _of(name), reference, name, percent)


def _per_token(title: str, name: str) -> Shown:
    return Shown(title, _of(name), answer, name)


_WHOLE_GAP = _less("cloud_nll", "upload_nll")

FIGURES: dict[str, Shown] = {
    # On a reference.
    "gap": Shown("gap captured", _less("cloud_nll", "nll"), _WHOLE_GAP, "nll", percent=True),
    "nll": _per_position("nats", "nll"),
    "cloud_nll": _per_position("nats, cloud alone", "cloud_nll"),
    "upload_nll": _per_position("nats, upload", "upload_nll"),
    "kl": _per_position("KL to upload", "kl_upload"),
    "top1": _per_position("upload's best token", "top1_upload", percent=True),
    "diverged": _per_position("differs", "diverged", percent=True),
    # Of an answer.
    "token_ms": _mean("ms per token", "token_ms"),
    "tokens_per_s": _mean("tokens per second", "tokens_per_s"),
    "ttft_ms": _mean("ms to the first token", "ttft_ms"),
    "p50": _mean("p50, ms per token", "token_ms_p50"),
    "p95": _mean("p95, ms per token", "token_ms_p95"),
    "gated": _mean("tokens gated", "gated"),
    "round_trips": _per_token("round trips a token", "round_trips"),
    "divergences": _per_token("divergences a token", "divergences"),
    "bytes": Shown("bytes a token", _and("uplink_bytes", "downlink_bytes"), answer, "uplink_bytes"),
    "up": _per_token("bytes up a token", "uplink_bytes"),
    "down": _per_token("bytes down a token", "downlink_bytes"),
    "told": Shown(
        "bits sent up about the note, a token",
        _and("evidence_bits", "context_bits"),
        answer,
        "evidence_bits",
    ),
    "upload_logp": _per_token("log p with note", "upload_logp"),
    "evidence": Shown(
        "personal evidence", _less("upload_logp", "cloud_logp"), answer, "upload_logp"
    ),
    "facts": Shown("facts told", _of("facts"), _of("of_facts"), "facts", percent=True),
    "note_facts": _mean("names of the note, an answer", "note_facts"),
    # Of a codec.
    "payload": Shown("bytes a prediction", _payload, reference, "payload_bytes"),
    "of_full": Shown("of full", _payload, _whole, "full_bytes", percent=True),
    "same": _per_position("same token", "same", percent=True),
    "sent": _per_position("sent", "sent", percent=True),
    "gap_lost": Shown("gap lost", _less("nll", "full_nll"), _WHOLE_GAP, "full_nll", percent=True),
    "encode_us": _mean("encode, µs", "encode_us"),
}
"""By the names that `costeer table --show` takes."""
