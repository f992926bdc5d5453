"""The text and the steering cases that every verification uses, in a model's tokens.

None of it is read by calibration, which has prompts of its own (`export.npu.calibrate`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from edge_runtime.text import Text


@dataclass(frozen=True, slots=True)
class Case:
    """The two prompts of one case and the answer whose positions are compared, as token ids."""

    aware: tuple[int, ...]
    agnostic: tuple[int, ...]
    answer: tuple[int, ...]


def shipped_cases(text: Text, limit: int) -> list[Case]:
    """The shipped cases in a model's tokens; those longer than `limit` are left out."""
    cases = []
    for line in _read("cases.jsonl"):
        entry = json.loads(line)
        prompts = text.prompts(entry["query"], entry["context"])
        answer = tuple(text.encode(entry["answer"]))
        if len(prompts.aware) + len(answer) <= limit:
            cases.append(Case(prompts.aware, prompts.agnostic, answer))
    return cases


def shipped_texts(text: Text, limit: int) -> list[tuple[int, ...]]:
    """The shipped texts, each after the token that opens every prompt, cut at `limit` tokens."""
    first = text.prompts("", "").agnostic[:1]
    return [(*first, *text.encode(line))[:limit] for line in _read("texts.txt")]


def _read(name: str) -> list[str]:
    raw = resources.files("export.data").joinpath(name).read_text(encoding="utf-8")
    return raw.splitlines()
