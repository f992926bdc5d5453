"""Auto: the fastest of the predicted schedules, the reason in one line, the tokens of lockstep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloud_sim.net.catalogue import network
from cloud_sim.session import session
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.simulate import simulate
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import Faults, run_direct
from edge_runtime.schedules.auto import Choice, Conditions, auto, choices
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from tests.fakes import FakeCloud, FakeDevice
from tests.schedules.test_runahead import faults


def best(**change: float) -> Any:
    usual = {"round_trip_ms": 60.0, "cloud_ms": 12.0, "device_ms": 20.0, "agreement": 0.9}
    return choices(Conditions(**{**usual, **change}))[0]


def test_the_choice_follows_the_conditions() -> None:
    assert best().name == "runahead"
    assert best(price_ms=0.0).number == 8
    assert best(price_ms=5.0).number < best(price_ms=0.0).number
    assert best(agreement=0.99).number <= 4
    assert best(round_trip_ms=1.0, agreement=0.3, price_ms=10.0).name == "lockstep"
    assert best(agreement=0.0, round_trip_ms=400.0, device_ms=1.0, price_ms=5.0).name == "draft"


@example(
    seed=29,
    gain=0.3,
    temperature=0.0,
    end_ids=None,
    n=28,
    price=0.0,
    line=Faults(seed=1, delay_ticks=60, reorder=True, shuffle=True),
    chosen=None,
)
@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    gain=st.sampled_from([0.0, 0.3, 1.8]),
    temperature=st.sampled_from([0.0, 1.0]),
    end_ids=st.sampled_from([None, []]),
    n=st.integers(1, 60),
    price=st.sampled_from([0.0, 1.0, 1000.0]),
    line=faults,
    chosen=st.sampled_from(
        [None, Choice("lockstep", 0, 1), Choice("runahead", 1, 1), Choice("runahead", 8, 1)]
    ),
)
def test_auto_is_lockstep(
    seed: int,
    gain: float,
    temperature: float,
    end_ids: list[int] | None,
    n: int,
    price: float,
    line: Any,
    chosen: Choice | None,
) -> None:
    """In whatever mode it goes on; only drafts draw other random numbers."""
    if chosen is not None:
        line = replace(line, shuffle=True)
    cloud = FakeCloud(32, seed)
    request = Request("a query", "", codec("topk:8"), n)

    def device() -> FakeDevice:
        return FakeDevice(32, gain=gain, temperature=temperature, end_ids=end_ids)

    plain = run_direct(lockstep(device(), request), session(cloud))
    with patch("edge_runtime.schedules.auto.choices", lambda at: [chosen or choices(at)[0]]):
        transcript = run_direct(
            auto(device(), request, price_ms=price),
            lambda: session(cloud),
            faults=line,
            max_actions=200_000,
        )
    assert len(transcript.notes) == 1
    assert not cloud.open_sequences
    if temperature and "auto: draft" in transcript.notes[0]:
        return
    assert transcript.tokens == plain.tokens


def test_the_note_says_what_was_chosen_and_why() -> None:
    cloud = FakeCloud(32)
    device = FakeDevice(32, gain=0.3, end_ids=[])
    transcript = run_direct(
        auto(device, Request("q", "", codec("full"), 60), price_ms=1e6), session(cloud)
    )
    (note,) = transcript.notes
    assert note.startswith("auto: lockstep")
    for part in ("instead of", "round trip", "agreement", "over 24 tokens", "a wasted cloud token"):
        assert part in note


@pytest.mark.parametrize("branches", [1, 8])
def test_what_was_still_on_its_way_from_the_other_mode_is_not_taken_up(branches: int) -> None:
    """Over a line with real delays and a cloud that needs time, the mode switches in mid-stream."""
    cloud, request = FakeCloud(32, 3), Request("a query", "", codec("topk:8"), 60)
    up, down = network("lte").with_rtt(60).links(0)
    with patch("edge_runtime.schedules.auto.choices", lambda at: [Choice("runahead", branches, 1)]):
        transcript = simulate(
            auto(FakeDevice(32, gain=0.2, end_ids=[]), request),
            session(cloud),
            uplink=up,
            downlink=down,
            device_costs=DeviceCosts(step_ms=10.0),
            cloud_costs=CloudCosts(step_ms=12.0),
        )
    plain = run_direct(lockstep(FakeDevice(32, gain=0.2, end_ids=[]), request), session(cloud))
    assert transcript.tokens == plain.tokens
