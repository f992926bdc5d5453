"""Connections that break: nothing is lost, nothing comes twice, or the end is clear."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from cloud_sim.live.server import Server, running
from cloud_sim.session import session
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.connections.websocket import Patience, answer
from edge_runtime.errors import ConnectionFailed
from edge_runtime.schedules.actions import Schedule
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from tests.fakes import FakeCloud, FakeDevice
from tests.lines import Cutter

QUICK = Patience(connect_s=5, reconnect_s=10, first_pause_s=0.01, longest_pause_s=0.05)
TOKENS = 12


def device() -> FakeDevice:
    return FakeDevice(64, gain=0.8, end_ids=[])


def request() -> Request:
    return Request("what?", "", codec("topk:8"), TOKENS)


def undisturbed() -> list[int]:
    return run_direct(lockstep(device(), request()), session(FakeCloud(64, seed=1))).tokens


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(FakeCloud(64, seed=1)) as running_server:
        yield running_server


@pytest.mark.parametrize("schedule", [lockstep, runahead])
@pytest.mark.parametrize("cut", range(1, TOKENS + 3))
async def test_a_cut_at_every_frame_in_turn(
    server: Server, schedule: Callable[..., Schedule], cut: int
) -> None:
    async with Cutter(server.port, [cut]).serving() as line:
        got = await answer(schedule(device(), request()), line.url, patience=QUICK)
    assert got.tokens == undisturbed()
    assert len(got.records) == TOKENS


async def test_cut_again_and_again(server: Server) -> None:
    async with Cutter(server.port, [2, 0, 3, 1, 2, 0, 0, 2]).serving() as line:
        got = await answer(runahead(device(), request()), line.url, patience=QUICK)
        assert line.connections >= 5
    assert got.tokens == undisturbed()


async def test_a_half_open_connection_is_noticed() -> None:
    patience = Patience(5, 10, 0.01, 0.05, keepalive_s=0.2)
    with running(FakeCloud(64, seed=1)) as server:
        async with Cutter(server.port, [4], half_open=True).serving() as line:
            got = await answer(lockstep(device(), request()), line.url, patience=patience)
            assert line.connections == 2
    assert got.tokens == undisturbed()
    assert got.counters["reconnections"] == 1


async def test_a_server_that_is_killed_and_started_again() -> None:
    """Another server, another memory: the answer goes on as if nothing had been."""
    seen: list[int] = []
    stop = asyncio.Event()

    def on_token(record: object) -> None:
        seen.append(1)
        if len(seen) == 5:
            stop.set()

    with running(FakeCloud(64, seed=1)) as first:
        port = first.port
        running_answer = asyncio.create_task(
            answer(lockstep(device(), request()), first.url, on_token=on_token, patience=QUICK)
        )
        await stop.wait()
    with running(FakeCloud(64, seed=1), port=port):
        got = await running_answer
    assert got.tokens == undisturbed()


async def test_a_server_that_stays_away_ends_clearly_and_what_was_said_stays() -> None:
    said: list[int] = []
    patience = Patience(connect_s=1, reconnect_s=0.2, first_pause_s=0.01)
    with running(FakeCloud(64, seed=1)) as server:
        async with Cutter(server.port, [5]).serving() as line:
            port = line.url
            task = asyncio.create_task(
                answer(
                    lockstep(device(), request()),
                    port,
                    on_token=lambda record: said.append(record.token),
                    patience=patience,
                )
            )
            while not line.connections or len(said) < 2:
                await asyncio.sleep(0.001)
            line.port = 1
            with pytest.raises((ConnectionFailed, OSError)):
                await task
    assert said == undisturbed()[: len(said)]


async def test_a_server_with_another_model_is_not_believed() -> None:
    stop = asyncio.Event()
    with running(FakeCloud(64, seed=1)) as first:
        port = first.port
        going = asyncio.create_task(
            answer(
                lockstep(device(), Request("q", "", codec("topk:8"), 2000)),
                first.url,
                on_token=lambda _: stop.set(),
                patience=QUICK,
            )
        )
        await stop.wait()
    with (
        running(FakeCloud(64, seed=2), port=port),
        pytest.raises(ConnectionFailed, match="came back with another model"),
    ):
        await going
