"""The virtual-time driver: the same tokens and bytes as in memory, and times that add up."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_sim.net.catalogue import names, network
from cloud_sim.net.impairments import random_loss
from cloud_sim.net.links import ConstantDelay, Link
from cloud_sim.net.rates import ConstantRate, RateSeries
from cloud_sim.net.streams import stream
from cloud_sim.net.transport import QUIC, TCP, Transport
from cloud_sim.session import session
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.simulate import simulate
from cloud_sim.sim.waiting import Clock
from edge_runtime import wire
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.errors import ConnectionFailed
from edge_runtime.schedules.deadlines import Deadline
from edge_runtime.schedules.draft import draft
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.transcript import Transcript
from tests.fakes import FakeCloud, FakeDevice

DEVICE = DeviceCosts(step_ms=16, head_ms=2, steer_ms=0.5, prefill_ms_per_token=1, prefill_ms=3)
CLOUD = CloudCosts(step_ms=8, ms_per_token=0.5)


def run(
    network_name: str = "lte",
    n: int = 20,
    seed: int = 0,
    device: DeviceCosts = DEVICE,
    cloud: CloudCosts = CLOUD,
    transport: Transport = TCP,
    connect: bool = False,
) -> Transcript:
    up, down = network(network_name).links(seed)
    return simulate(
        lockstep(FakeDevice(), Request("a query", "", codec("topk:8"), n)),
        session(FakeCloud(seed=seed)),
        uplink=up,
        downlink=down,
        device_costs=device,
        cloud_costs=cloud,
        transport=transport,
        connect=connect,
    )


@pytest.mark.parametrize("name", names("networks"))
def test_tokens_and_bytes_are_those_of_the_run_in_memory(name: str) -> None:
    for seed in range(5):
        direct = run_direct(
            lockstep(FakeDevice(), Request("a query", "", codec("topk:8"), 20)),
            session(FakeCloud(seed=seed), new_id=lambda: "0" * 16),
        )
        virtual = run(name, seed=seed)
        assert virtual.virtual
        assert virtual.tokens == direct.tokens
        assert virtual.finish == direct.finish
        assert virtual.uplink_bytes == direct.uplink_bytes


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(names("networks")),
    seed=st.integers(0, 1000),
    step=st.floats(0, 200),
    cloud=st.floats(0, 200),
    connect=st.booleans(),
)
def test_parts_add_up_for_every_token(
    name: str, seed: int, step: float, cloud: float, connect: bool
) -> None:
    transcript = run(
        name, seed=seed, device=DeviceCosts(step_ms=step), cloud=CloudCosts(cloud), connect=connect
    )
    before = 0.0
    for record in transcript.records:
        assert record.parts.total == pytest.approx(record.at_ms - before, abs=1e-6)
        assert min(record.parts.as_dict().values()) > -1e-6
        assert record.parts.host == pytest.approx(0.0, abs=1e-6)
        before = record.at_ms


def test_a_lockstep_token_costs_what_its_parts_say() -> None:
    """40 ms constant: step hidden behind the round trip, then head and steer."""
    rate, delay = 10e6, 20.0

    def link() -> Link:
        return Link(ConstantRate(rate), ConstantDelay(delay))

    transcript = simulate(
        lockstep(FakeDevice(), Request("a query", "", codec("topk:8"), 5)),
        session(FakeCloud(seed=3)),
        uplink=link(),
        downlink=link(),
        device_costs=DEVICE,
        cloud_costs=CLOUD,
        transport=TCP.plain(),
    )
    assert len(transcript.records) == 5
    third = transcript.records[2]
    extend = wire.encode(wire.Extend(epoch=0, position=1, tokens=(transcript.tokens[1],)))
    frame = wire.encode(wire.Candidates(0, 2, bytes(6 * 8 + 4), stamp=bytes(24)))
    ms_per_byte = 8e3 / rate
    up = (len(extend) + 6 + 52) * ms_per_byte + delay  # 2 + 4 WebSocket, 52 TCP/IP
    down = (len(frame) + 2 + 52) * ms_per_byte + delay
    assert third.parts.total == pytest.approx(up + 8 + down + 2 + 0.5, abs=1e-9)
    # What the step ran in parallel with is not waited for: it is charged first, as device time.
    assert third.parts.device == pytest.approx(16 + 2)
    assert third.parts.steer == pytest.approx(0.5)
    assert third.parts.cloud == pytest.approx(8, abs=2e-3)  # stamps are whole microseconds
    assert third.parts.downlink == pytest.approx(down, abs=2e-3)
    assert third.parts.uplink == pytest.approx(up - 16, abs=4e-3)


def test_same_seed_same_transcript_and_another_seed_another() -> None:
    first, again, other = (run("wifi-campus", seed=s).row() for s in (5, 5, 6))
    assert first == again
    assert first["token_ms_p50"] != other["token_ms_p50"]


def test_setting_up_the_connection_costs_its_round_trips() -> None:
    for transport, trips in ((TCP, 3), (TCP.plain(), 2), (QUIC, 2)):
        warm = run("lte", transport=transport)
        cold = run("lte", transport=transport, connect=True)
        extra = cold.ttft_ms - warm.ttft_ms
        assert extra == pytest.approx(cold.counters["connect_ms"])
        assert 35 * trips < extra < 35 * trips + 8  # and a few kilobytes of certificates
        assert cold.tokens == warm.tokens


def test_two_sides_that_wait_for_each_other_are_an_error_not_a_hang() -> None:
    def deaf() -> object:
        if False:
            yield
        return

    up, down = network("lte").links(0)
    with pytest.raises(ConnectionFailed, match="both sides wait for each other after 0 tokens"):
        simulate(
            lockstep(FakeDevice(), Request("a query", "", codec("topk:8"), 5)),
            deaf(),  # type: ignore[arg-type]
            uplink=up,
            downlink=down,
            device_costs=DEVICE,
            cloud_costs=CLOUD,
        )


@settings(max_examples=40, deadline=None)
@given(
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    rate=st.sampled_from([1e5, 20e6]),
    delay=st.sampled_from([0.0, 5.0, 40.0]),
    schedule=st.sampled_from([lockstep, runahead, partial(runahead, branches=4), draft]),
    transport=st.sampled_from([TCP, QUIC]),
    connect=st.booleans(),
    seed=st.integers(0, 100),
)
def test_the_clocks_short_cut_changes_nothing(
    loss: float,
    rate: float,
    delay: float,
    schedule: Callable[..., Any],
    transport: Transport,
    connect: bool,
    seed: int,
) -> None:
    """The same answer with every wait as an event: also where losses free many messages at once."""

    def answer() -> Transcript:
        up, down = (
            Link(
                ConstantRate(rate),
                ConstantDelay(delay),
                loss=random_loss(loss, stream(seed, name)) if loss else None,
            )
            for name in ("up", "down")
        )
        return simulate(
            schedule(FakeDevice(), Request("a query", "", codec("topk:8"), 16)),
            session(FakeCloud(seed=seed), new_id=lambda: "0" * 16),
            uplink=up,
            downlink=down,
            device_costs=DEVICE,
            cloud_costs=CLOUD,
            transport=transport,
            connect=connect,
        )

    short = answer()
    with patch.object(Clock, "skip", lambda clock, ms: False):
        long = answer()
    assert [(r.at_ms, r.parts) for r in short.records] == [(r.at_ms, r.parts) for r in long.records]
    # As text: an answer of one token has no time per token, and NaN equals nothing.
    assert repr(short.row()) == repr(long.row())


@pytest.mark.parametrize("name", ["us-mobile", "5g", "textbook-4g", "3g-slow"])
def test_a_wait_that_rounds_to_nothing_ends(name: str) -> None:
    """What is left of a deadline may be too little to move a clock that is far along."""
    for seed in range(3):
        up, down = network(name).links(seed)
        transcript = simulate(
            lockstep(
                FakeDevice(),
                Request("a query", "", codec("topk:8"), 30),
                deadline=Deadline(30.0, "device"),
            ),
            session(FakeCloud(seed=seed)),
            uplink=up,
            downlink=down,
            device_costs=DEVICE,
            cloud_costs=CLOUD,
            connect=seed > 0,
        )
        assert transcript.finish


@pytest.mark.parametrize("seed", range(3))
def test_side_branches_make_way_where_the_link_nearly_stops(seed: int) -> None:
    """20 Mbit/s for half a second, then a fiftieth of what eight branches would fill. Were they
    sent all the same, the device would wait for minutes behind what it does not need."""

    def took(branches: int) -> Transcript:
        down = Link(RateSeries([0, 500], [20e6, 60e3], 1e6), ConstantDelay(20))
        return simulate(
            runahead(
                FakeDevice(32, gain=0.3, end_ids=[]),
                Request("a query", "", codec("topk:32"), 120),
                branches=branches,
            ),
            session(FakeCloud(32, seed=seed)),
            uplink=Link(ConstantRate(20e6), ConstantDelay(20)),
            downlink=down,
            device_costs=DeviceCosts(step_ms=5),
            cloud_costs=CloudCosts(step_ms=8, ms_per_token=0.1),
        )

    plain, wide = took(1), took(8)
    assert wide.tokens == plain.tokens
    assert wide.records[-1].at_ms < 2.5 * plain.records[-1].at_ms
