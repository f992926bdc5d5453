"""An answer's token times as a trace that Perfetto (or chrome://tracing) opens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scenarios.pages.timeline import PARTS

Answer = tuple[str, Sequence[Mapping[str, Any]]]
"""A name and its tokens (`scenarios.answers.token_row`)."""


def trace(answers: Iterable[Answer]) -> str:
    """Trace Event Format (JSON): a process for each answer, a slice for each part of each token.

    Parts are laid end to end in the order in which they mostly happen; where device and cloud
    overlap, only what the user waited for is there.
    """
    events: list[dict[str, Any]] = []
    for process, (name, tokens) in enumerate(answers, 1):
        events += [
            _named("process_name", process, 0, name),
            _named("thread_name", process, 1, "tokens"),
        ]
        events.append(_named("thread_name", process, 2, "parts"))
        for token in tokens:
            spent = sum(token["parts"].values())
            start = token["at_ms"] - spent
            events.append(_slice(process, 1, repr(token["text"]), start, spent, _told(token)))
            for part in ("uplink", "queue", "cloud", "downlink", "device", "steer", "wait", "host"):
                ms = token["parts"].get(part, 0.0)
                if ms > 0:
                    events.append(_slice(process, 2, PARTS[part][1], start, ms, {}))
                    start += ms
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _told(token: Mapping[str, Any]) -> dict[str, Any]:
    return {name: token[name] for name in ("token", "moved", "instead", "source")}


def _slice(
    process: int, thread: int, name: str, start_ms: float, ms: float, told: dict[str, Any]
) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": process,
        "tid": thread,
        "name": name,
        "ts": round(start_ms * 1e3, 1),
        "dur": round(ms * 1e3, 1),
        "args": told,
    }


def _named(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": thread, "name": what, "args": {"name": name}}
