"""Auto: the fastest of the predicted schedules, the reason in one line, the tokens of lockstep."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_sim.session import session
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.schedules.auto import Conditions, auto, choices
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from tests.fakes import FakeCloud, FakeDevice
from tests.test_runahead import faults


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


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    gain=st.sampled_from([0.0, 0.3, 1.8]),
    temperature=st.sampled_from([0.0, 1.0]),
    end_ids=st.sampled_from([None, []]),
    n=st.integers(1, 60),
    price=st.sampled_from([0.0, 1.0, 1000.0]),
    line=faults,
)
def test_auto_is_lockstep(
    seed: int,
    gain: float,
    temperature: float,
    end_ids: list[int] | None,
    n: int,
    price: float,
    line: Any,
) -> None:
    """In whatever mode it goes on; only drafts draw other random numbers."""
    cloud = FakeCloud(32, seed)
    request = Request("a query", "", codec("topk:8"), n)

    def device() -> FakeDevice:
        return FakeDevice(32, gain=gain, temperature=temperature, end_ids=end_ids)

    plain = run_direct(lockstep(device(), request), session(cloud))
    chosen = run_direct(
        auto(device(), request, price_ms=price),
        lambda: session(cloud),
        faults=line,
        max_actions=200_000,
    )
    assert len(chosen.notes) == 1
    assert not cloud.open_sequences
    if temperature and "auto: draft" in chosen.notes[0]:
        return
    assert chosen.tokens == plain.tokens


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
