"""Drive a schedule that talks to nobody, in real time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge_runtime.schedules.actions import Compute, Emit, Finish, Schedule
from edge_runtime.timing import TokenClock, now_ms
from edge_runtime.transcript import TokenRecord, Transcript


def run_local(
    schedule: Schedule,
    *,
    on_token: Callable[[TokenRecord], None] | None = None,
    into: Transcript | None = None,
) -> Transcript:
    """The answer of `schedule`, which may compute and emit but neither send nor receive; `into` as
    for `edge_runtime.connections.realtime.drive`."""
    transcript = into if into is not None else Transcript("", 0.0, "", "")
    transcript.schedule = getattr(schedule, "__name__", "")
    start = now_ms()
    clock = TokenClock(start)
    event: Any = None
    while True:
        try:
            action = schedule.send(event)
        except StopIteration as stop:
            finish: Finish = stop.value
            transcript.end(finish)
            return transcript
        event = None
        if isinstance(action, Compute):
            began = now_ms()
            event = action.work()
            clock.computed(action.kind, now_ms() - began)
        elif isinstance(action, Emit):
            now = now_ms()
            record = TokenRecord(action.token, now - start, clock.emit(now), action.decision)
            transcript.records.append(record)
            if on_token is not None:
                on_token(record)
        else:
            raise TypeError(f"a schedule without a connection asked for {action!r}")
