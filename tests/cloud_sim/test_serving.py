"""Continuous batching against closed forms, and fleets: nobody lost, seeds apart."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_sim.net.catalogue import network
from cloud_sim.net.links import ConstantDelay, Link
from cloud_sim.net.rates import ConstantRate
from cloud_sim.net.streams import stream
from cloud_sim.sim.arrivals import poisson, recorded
from cloud_sim.sim.costs import DeviceCosts
from cloud_sim.sim.exchange import Exchange
from cloud_sim.sim.fleet import FleetResult, capacity, fleet, made_up_replays
from cloud_sim.sim.roofline import Roofline
from cloud_sim.sim.serving import Batching, Serving
from cloud_sim.sim.waiting import Clock, Process
from edge_runtime.errors import SpecError
from edge_runtime.schedules.actions import Load
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead

LINE = Roofline(floor_ms=10.0, ms_per_row=0.0, ms_per_context_token=0.0, prefill_ms_per_token=0.0)


def waits(service: Callable[[int], float], load: float, jobs: int, seed: int) -> np.ndarray:
    """Waiting times in front of a link whose packets take `service(i)` ms, Poisson arrivals."""
    mean = 10.0
    gaps = stream(seed, "gaps").exponential(mean / load, jobs)
    link = Link(ConstantRate(8e3), ConstantDelay(0.0))  # one byte a millisecond, so any ms fits
    times, now = [], 0.0
    for i, gap in enumerate(gaps):
        now += gap
        size = service(i)
        times.append(link.send(now, size) - now - size)  # type: ignore[arg-type]
    return np.array(times)


def asked(clock: Clock, engine: Serving, session: object, load: Load) -> Generator[Any, Any, Any]:
    """One pass, for an ordinary SimPy process: queueing and computing time, ms."""
    done = clock.event()
    engine.score(session, load, done.succeed)
    return (yield done)


def interval(batches: np.ndarray) -> tuple[float, float]:
    """Mean and 99.9 % half width from 50 batch means (Student's t with 49 degrees: 3.5)."""
    means = batches[: len(batches) // 50 * 50].reshape(50, -1).mean(axis=1)
    return float(means.mean()), 3.5 * float(means.std(ddof=1)) / math.sqrt(50)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_link_waits_as_m_d_1_and_m_m_1_say(load: float) -> None:
    jobs = 200_000
    fixed, half = interval(waits(lambda i: 10.0, load, jobs, 1))
    assert fixed == pytest.approx(10 * load / (2 * (1 - load)), abs=half)
    sizes = stream(2, "sizes").exponential(10.0, jobs)
    random, half = interval(waits(lambda i: float(sizes[i]), load, jobs, 3))
    assert random == pytest.approx(10 * load / (1 - load), abs=half)


def test_a_gpu_of_one_row_waits_as_m_d_1_says() -> None:
    env, load, jobs = Clock(), 0.6, 30_000
    engine = Serving(env, LINE, Batching(rows=1))
    queued: list[float] = []

    def session(at_ms: float) -> Generator[Any, Any, None]:
        yield env.timeout(at_ms)
        queue, computed = yield from asked(env, engine, object(), Load(tokens=1))
        assert computed == pytest.approx(10.0)
        queued.append(queue)

    now = 0.0
    for gap in stream(5, "gaps").exponential(10.0 / load, jobs):
        now += gap
        env.process(session(now))
    env.run()
    mean, half = interval(np.array(queued))
    assert mean == pytest.approx(10 * load / (2 * (1 - load)), abs=half)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.integers(1, 60), st.integers(1, 4), st.booleans()),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 8),
    st.sampled_from([None, 8, 32]),
    st.sampled_from([None, 40, 150]),
)
def test_every_request_is_served_once_whatever_the_limits(
    arrivals: list[tuple[float, int, int, bool]],
    rows: int,
    chunk: int | None,
    kv: int | None,
) -> None:
    env = Clock()
    line = Roofline(5.0, 0.5, 0.0, 0.1)
    engine = Serving(env, line, Batching(rows=rows, chunk_tokens=chunk, kv_tokens=kv))
    served: list[int] = []

    def session(
        number: int, at_ms: float, prompt: int, steps: int, guess: bool
    ) -> Generator[Any, Any, None]:
        key = object()
        yield env.timeout(at_ms)
        past = 0
        for step in range(steps):
            new = prompt if step == 0 else 1
            began = env.now
            load = Load(tokens=new, past=past, speculative=guess)
            queue, computed = yield from asked(env, engine, key, load)
            assert queue >= -1e-9
            assert queue + computed == pytest.approx(env.now - began)
            past += new
            yield env.timeout(3.0)
        engine.leave(key)
        served.append(number)

    for number, arrival in enumerate(arrivals):
        env.process(session(number, *arrival))
    env.run()
    assert sorted(served) == list(range(len(arrivals)))
    assert engine._kv == 0
    assert not engine._held


def test_a_long_prompt_goes_in_between_the_others_steps() -> None:
    """1,000 tokens of prompt in chunks of 100: a session that decodes is in every pass."""
    env = Clock()
    engine = Serving(env, Roofline(1.0, 0.0, 0.0, 0.01), Batching(rows=8, chunk_tokens=100))
    steps: list[float] = []
    prompt: list[float] = []

    def decodes() -> Generator[Any, Any, None]:
        for past in range(12):
            queued, computed = yield from asked(env, engine, "steps", Load(tokens=1, past=past))
            steps.append(queued + computed)

    def asks() -> Generator[Any, Any, None]:
        yield env.timeout(0.5)
        yield from asked(env, engine, "prompt", Load(tokens=1000))
        prompt.append(env.now)

    env.process(decodes())
    env.process(asks())
    env.run()
    # A pass of 1 ms and 98 tokens beyond the first of each; a step may have to wait for one more.
    assert max(steps) < 2 * (1 + 0.98) + 1e-9
    assert engine.totals.rows > 20, "both were in the passes together"
    # After the pass that was under way, ten with 99 tokens of the prompt and one with the last ten.
    assert prompt[0] == pytest.approx(1 + 10 * 1.98 + 1.09)


def test_an_evicted_session_pays_for_its_cache_again() -> None:
    def busy_ms(kv: int | None) -> tuple[float, int]:
        env = Clock()
        line = Roofline(1.0, 0.0, 0.0, 1.0)
        engine = Serving(env, line, Batching(kv_tokens=kv))

        def session(at_ms: float) -> Generator[Any, Any, None]:
            key = object()
            yield env.timeout(at_ms)
            yield from asked(env, engine, key, Load(tokens=100))
            yield env.timeout(1000)
            yield from asked(env, engine, key, Load(tokens=1, past=100))
            engine.leave(key)

        for at in (0.0, 300.0):
            env.process(session(at))
        env.run()
        return engine.totals.busy_ms, engine.totals.evictions

    assert busy_ms(None) == (202.0, 0)
    spent, evictions = busy_ms(150)
    assert evictions == 2  # the second pushes the first out, whose return pushes the second out
    assert spent == pytest.approx(202 + 200)


def small_fleet(devices: int, seed: int = 0, schedule: Callable = lockstep) -> FleetResult:
    return fleet(
        poisson(devices, 5.0, seed),
        made_up_replays(3, 24, 0.15, codec="topk:8"),
        network=network("wifi-campus"),
        device_costs=DeviceCosts(step_ms=8, head_ms=1),
        roofline=Roofline(10.0, 0.5, 0.0, 0.05),
        schedule=schedule,
        max_tokens=24,
        seed=seed,
    )


@pytest.mark.parametrize("schedule", [lockstep, runahead])
def test_a_fleet_answers_everyone_the_same_way_twice(schedule: Callable) -> None:
    first, again = small_fleet(12, schedule=schedule), small_fleet(12, schedule=schedule)
    assert first.answers == 12
    assert len(first.token_ms) == 12 * 23
    assert first.parts.total == pytest.approx(first.token_ms.mean())
    assert first.row() == again.row()
    assert small_fleet(12, seed=1, schedule=schedule).row() != first.row()


def test_adding_a_device_leaves_the_others_draws_as_they_were() -> None:
    """A last arrival far behind the others changes nothing for them."""
    ten = poisson(10, 5.0, 4)
    assert poisson(11, 5.0, 4)[:10] == ten
    few, more = small_fleet(10, 4), small_fleet(11, 4)
    # The eleventh answers last; a device that ended before it came saw nothing of it.
    assert more.ttft_ms[0] == few.ttft_ms[0]


def test_arrivals_are_read_from_a_log(tmp_path: Path) -> None:
    log = tmp_path / "arrivals.txt"
    log.write_text("100.5\n100.5\n\n102\n")
    assert recorded(log) == [0.0, 0.0, 1500.0]
    for text, said in (
        ("1\nx\n", r"arrivals\.txt, line 2: not a number of seconds \(got 'x'\)"),
        ("2\n1\n", r"arrivals\.txt, line 2: a time before the one above it \(got 1 s\)"),
        ("nan\n", r"arrivals\.txt, line 1: a time that cannot be"),
        ("\n", r"arrivals\.txt: there are no arrivals in it"),
    ):
        log.write_text(text)
        with pytest.raises(SpecError, match=said):
            recorded(log)
    with pytest.raises(SpecError, match="the arrivals cannot be read"):
        recorded(tmp_path / "none")


def test_capacity_finds_the_knee() -> None:
    def run(phones: int) -> FleetResult:
        result = small_fleet(1)
        result.token_ms = np.full(10, 20.0 + phones)
        return result

    found = capacity(run, 57.0, most=1000)
    assert 35 <= found.phones <= 37
    assert found.token_ms_p95 <= 57 < found.tried[-1][1] + 20
    assert capacity(run, 5.0).phones == 0


@pytest.mark.parametrize("schedule", [lockstep, runahead])
def test_devices_that_have_answered_are_freed_without_the_collector(schedule: Callable) -> None:
    """A fleet runs with the garbage collector off: a cycle would stay for all of its time."""
    gc.collect()
    gc.disable()
    try:
        small_fleet(12, schedule=schedule)
        left = [o for o in gc.get_objects() if isinstance(o, Exchange | Process | Link)]
    finally:
        gc.enable()
    assert left == []
