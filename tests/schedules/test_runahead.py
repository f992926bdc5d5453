"""Run-ahead emits lockstep's tokens, whatever the line, the window and the branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_sim.model import Logprobs, ScoreRequest
from cloud_sim.session import Shelf, session
from cloud_sim.session.pace import FIRST_BYTES, FIRST_PACES, QUEUE_MS, Flow, Receipt, Window
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import Faults, Wiretap, run_direct
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.transcript import Transcript
from tests.fakes import FakeCloud, FakeDevice

faults = st.builds(
    Faults,
    seed=st.integers(0, 10**6),
    delay_ticks=st.sampled_from([0, 5, 60]),
    reorder=st.booleans(),
    duplicate=st.sampled_from([0.0, 0.2]),
    cut=st.sampled_from([0.0, 0.0, 0.03]),
    shuffle=st.booleans(),
)
devices: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "gain": st.sampled_from([0.0, 0.3, 1.0, 1.8]),
        "temperature": st.sampled_from([0.0, 0.0, 1.0]),
        "seed": st.integers(0, 10**6),
        "end_ids": st.sampled_from([None, []]),
    }
)


@settings(max_examples=250, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.sampled_from([2, 5, 32]),
    name=st.sampled_from(["full", "topk:1", "topk:4"]),
    device=devices,
    n=st.integers(1, 40),
    window=st.sampled_from([0, 1, 2, 5, 16]),
    branches=st.sampled_from([1, 2, 3, 8]),
    depth=st.sampled_from([0, 1, 3]),
    line=faults,
    shelf=st.booleans(),
)
def test_runahead_is_lockstep(
    seed: int,
    vocabulary: int,
    name: str,
    device: dict[str, Any],
    n: int,
    window: int,
    branches: int,
    depth: int,
    line: Faults,
    shelf: bool,
) -> None:
    cloud = FakeCloud(vocabulary, seed)
    request = Request("a query", "", codec(name), n)
    kept = Shelf(4) if shelf else None
    plain = run_direct(lockstep(FakeDevice(vocabulary, **device), request), session(cloud))
    ahead = run_direct(
        runahead(
            FakeDevice(vocabulary, **device),
            request,
            window=window,
            branches=branches,
            depth=depth,
        ),
        lambda: session(cloud, shelf=kept),
        faults=line,
        max_actions=200_000,
    )
    assert ahead.tokens == plain.tokens
    assert ahead.finish == plain.finish
    assert len(cloud.open_sequences) == (len(kept) if kept else 0), "a cache leaked"


def answer(branches: int, window: int = 12, **device: float) -> Transcript:
    made = FakeDevice(32, end_ids=[], **device)  # type: ignore[arg-type]
    schedule = runahead(
        made, Request("q", "", codec("full"), 200), window=window, branches=branches
    )
    cloud = FakeCloud(32)
    cloud.end_ids = ()
    return run_direct(schedule, session(cloud), faults=Faults(delay_ticks=40))


def test_who_always_agrees_waits_once() -> None:
    transcript = answer(1, gain=0.0)
    assert transcript.round_trips == 1
    assert transcript.counters["divergences"] == 0
    assert transcript.uplink_frames == 2 + 200 // 4 - 1


def test_branches_save_round_trips_and_cost_cloud_tokens() -> None:
    one, eight = answer(1, gain=0.3), answer(8, gain=0.3)
    assert one.tokens == eight.tokens
    assert one.counters["divergences"] == eight.counters["divergences"] > 10
    assert eight.round_trips < 0.7 * one.round_trips
    assert eight.counters["wasted_cloud_tokens"] > one.counters["wasted_cloud_tokens"]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    forced=st.lists(st.integers(0, 30), min_size=1, max_size=30),
    contexts=st.tuples(st.text(max_size=50), st.text(max_size=50)),
    window=st.sampled_from([0, 1, 4, 16]),
    branches=st.sampled_from([1, 4]),
)
def test_uplink_bytes_do_not_depend_on_the_private_context(
    seed: int, forced: list[int], contexts: tuple[str, str], window: int, branches: int
) -> None:
    """Nor on the line: with the tokens forced equal, every byte that goes up is the same."""
    taps = []
    for context, delay in zip(contexts, (0, 30), strict=True):
        tap = Wiretap()
        device = FakeDevice(32, context=context, gain=1.8, forced=forced)
        request = Request("the public query", "", codec("topk:5"), len(forced))
        run_direct(
            runahead(device, request, window=window, branches=branches),
            session(FakeCloud(32, seed), new_id=lambda: "id"),
            faults=Faults(seed=seed, delay_ticks=delay, shuffle=bool(delay)),
            tap=tap,
        )
        taps.append(tap.up)
    assert taps[0] == taps[1]


def test_only_what_the_device_waits_for_is_not_speculative() -> None:
    """After each frame from the device one pass at most is urgent: the answer's own next token."""
    urgent = []

    class Watching(FakeCloud):
        def score(self, requests: Sequence[ScoreRequest]) -> list[Logprobs]:
            urgent.append([not request.speculative for request in requests])
            return super().score(requests)

    cloud = Watching(32)
    cloud.end_ids = ()
    device = FakeDevice(32, gain=0.3, end_ids=[])
    schedule = runahead(device, Request("q", "", codec("full"), 100), branches=4)
    transcript = run_direct(schedule, session(cloud), faults=Faults(delay_ticks=40))
    assert all(sum(rows) <= 1 for rows in urgent)
    divergences = transcript.counters["divergences"]
    assert 1 <= sum(map(sum, urgent)) <= 1 + divergences
    assert sum(len(rows) for rows in urgent) > 3 * (1 + divergences)


def test_an_adapted_window_fits_what_is_in_flight() -> None:
    """100 ms there and back at a token every 10 ms: at least 10, and not much more."""
    window = Window(0, 64)
    for position in range(60):
        window.sent(position, position * 10.0)
        if position >= 10:
            window.confirmed(position - 9, position * 10.0)
    assert 10 <= window.size <= 24
    assert Window(5, 64).size == 5
    assert Window(100, 64).size == 64


def test_twice_what_fits_in_flight_may_be_on_its_way() -> None:
    """100 ms there and back, 1,000 bytes every 10 ms: 10 frames fit. Then the link takes a tenth,
    and the first news of it comes with frames that were sent when it was fast."""
    flow = Flow()
    flow.read(flow.sent(1000, 0.0), 5000.0)  # the device was at its prompt
    frames: list[Receipt] = []
    for at in range(30):
        if at >= 10:
            flow.read(frames[at - 10], at * 10.0)
        frames.append(flow.sent(1000, at * 10.0))
    assert flow.room == 10
    frames += [flow.sent(1000, 300.0) for _ in range(10)]
    assert flow.room == 0
    for at in range(20, 40):
        flow.read(frames[at], 300 + (at - 19) * 100.0)
    assert flow.room > 2  # of the last 16 paces, the best counts
    for at in range(24, 40):
        flow.read(flow.sent(1000, at * 100.0), at * 100.0 + 100)
    assert flow.room == 2


def test_before_the_pace_is_known_a_first_window_may_be_on_its_way() -> None:
    flow = Flow()
    assert flow.room > 16
    half = FIRST_BYTES // 2
    first = flow.sent(half, 0.0)
    assert flow.room == 1
    second = flow.sent(half, 10.0)
    assert flow.room == 0
    flow.read(first, 4000.0)  # the first word: the link had all the time
    assert flow.room == 2
    flow.read(second, 4010.0)
    for at in range(FIRST_PACES):
        assert flow.room == 2
        flow.read(flow.sent(half, 5e3 + at * 1e3), 6e3 + at * 1e3)
    assert flow.room == 2  # twice what fits in flight, now
    flow.sent(half, 5e4)
    assert flow.room == 1


def test_near_the_device_what_is_through_soon_may_be_on_its_way() -> None:
    """1,000 bytes every 10 ms, read within 10: twice that would be two frames."""
    flow = Flow()
    for at in range(2 * FIRST_PACES):
        flow.read(flow.sent(1000, at * 10.0), at * 10.0 + 10)
    assert flow.room == QUEUE_MS / 10
