"""SimPy's clock with calls on it: everything in SimPy's order, whatever the short cuts."""

from __future__ import annotations

from typing import Any

import simpy
from hypothesis import given
from hypothesis import strategies as st

from cloud_sim.sim.waiting import Clock, Inbox, Moves, Process

TIMES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


@given(TIMES)
def test_calls_and_simpys_own_events_happen_in_simpys_order(waits: list[float]) -> None:
    plain, ours = simpy.Environment(), Clock()
    wanted: list[tuple[float, int]] = []
    seen: list[tuple[float, int]] = []

    def sleeper(env: simpy.Environment, ms: float, n: int, log: list[Any]) -> Any:
        yield env.timeout(ms)
        log.append((env.now, n))

    for n, ms in enumerate(waits):
        plain.process(sleeper(plain, ms, n, wanted))
    plain.run()
    # Half of them as calls; a process starts with an event of its own, a call does not.
    for n, ms in enumerate(waits):
        if n % 2:
            ours.after(ms, lambda n=n: seen.append((ours.now, n)))  # type: ignore[misc]
        else:
            event = ours.timeout(ms)
            event.callbacks.append(lambda _, n=n: seen.append((ours.now, n)))
    ours.run()
    assert seen == wanted


@given(TIMES, st.integers(0, 6).map(float))
def test_the_clock_skips_only_where_nothing_is_to_happen(dues: list[float], ms: float) -> None:
    clock = Clock()
    for due in dues:
        clock.at(due, lambda: None)
    skipped = clock.skip(ms)
    assert skipped == (min(dues) > ms)
    assert clock.now == (ms if skipped else 0.0)


def test_a_call_for_an_instant_that_is_over_comes_after_what_is_due_now() -> None:
    clock = Clock()
    order: list[str] = []

    def first() -> None:
        clock.at(1.0, lambda: order.append("late"))
        order.append("first")

    clock.at(5.0, first)
    clock.at(5.0, lambda: order.append("second"))
    clock.run()
    assert order == ["first", "second", "late"]
    assert clock.now == 5.0


@given(st.lists(st.integers(0, 30), max_size=8), st.lists(st.integers(0, 9), max_size=8))
def test_a_wait_ends_once_at_the_first_frame_or_at_its_deadline(
    arrivals: list[int], deadlines: list[int]
) -> None:
    clock = Clock()
    inbox = Inbox(clock)
    woken: list[tuple[float, int]] = []
    for n, at in enumerate(arrivals):
        clock.at(at + 0.5, lambda n=n: inbox.put(n))  # type: ignore[misc]

    def waits() -> Moves:
        for deadline in deadlines:
            began = clock.now
            if not inbox.frames:
                inbox.wait(process.go_on, float(deadline))
                yield
            assert inbox.frames or clock.now == began + deadline
            woken.append((clock.now, len(inbox.frames)))
            inbox.frames.clear()

    ended: list[Exception | None] = []
    process = Process(waits(), ended.append)
    process.go_on()
    clock.run()
    assert ended == [None]
    assert len(woken) == len(deadlines)


def test_what_a_process_raises_is_told_to_its_owner() -> None:
    ended: list[Exception | None] = []

    def fails() -> Moves:
        yield
        raise ValueError("on purpose")

    process = Process(fails(), ended.append)
    process.go_on()
    process.go_on()
    process.go_on()  # too late: it is told once
    assert [str(error) for error in ended] == ["on purpose"]
