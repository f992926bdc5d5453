"""The figures of one method's answers over all cases, each with its interval (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scenarios.metrics import Estimate, mean, ratio
from scenarios.models.written import Answer


def answers_row(answers: Sequence[Answer], level: float) -> dict[str, Any]:
    """As `costeer evaluate --json` prints them; `answers` are one a case, in the cases' order.

    A figure that no case can have (ROUGE without references, facts where there are none) is no
    number: NaN with an interval of NaN.
    """
    tokens = [float(a.tokens) for a in answers]

    def of_tokens(sums: Sequence[float]) -> dict[str, float]:
        return ratio(sums, tokens, level=level).dict()

    def of_cases(values: Sequence[float | None]) -> dict[str, float]:
        there = [value for value in values if value is not None]
        return (mean(there, level=level) if there else _NONE).dict()

    guessed = [a for a in answers if a.guessed_logp is not None]
    return {
        "upload_logp": of_tokens([a.upload_logp for a in answers]),
        "cloud_logp": of_tokens([a.cloud_logp for a in answers]),
        "evidence": of_tokens([a.upload_logp - a.cloud_logp for a in answers]),
        "facts": ratio(
            [float(a.facts) for a in answers], [float(a.of_facts) for a in answers], level=level
        ).dict(),
        "note_facts": of_cases([float(a.note_facts) for a in answers]),
        "rouge1": of_cases([a.rouge1 for a in answers]),
        "rougeL": of_cases([a.rougeL for a in answers]),
        "distinct2": of_cases([a.distinct2 for a in answers]),
        "length": of_cases(tokens),
        "downlink_bytes_per_token": of_tokens([float(a.downlink_bytes) for a in answers]),
        "answers": len(answers),
        **({"guessed_logp": _guessed(guessed, level)} if guessed else {}),
    }


_NONE = Estimate(float("nan"), float("nan"), float("nan"), 0)


def _guessed(answers: Sequence[Answer], level: float) -> dict[str, float]:
    sums = [a.guessed_logp or 0.0 for a in answers]
    return ratio(sums, [float(a.tokens) for a in answers], level=level).dict()
