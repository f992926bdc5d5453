"""Connections that break: nothing is lost, nothing comes twice, or the end is clear."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from websockets.asyncio.server import ServerConnection, serve

from cloud_sim.live.limits import ServerLimits
from cloud_sim.live.server import Server, running
from cloud_sim.session import session
from edge_runtime import wire
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.connections.patience import Patience
from edge_runtime.connections.websocket import answer
from edge_runtime.errors import ConnectionFailed, Refused
from edge_runtime.schedules.actions import Finish, Schedule, Send
from edge_runtime.schedules.deadlines import Deadline
from edge_runtime.schedules.draft import draft
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.transcript import TokenRecord
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


@pytest.mark.parametrize("schedule", [lockstep, runahead])
async def test_a_broken_line_makes_tokens_late_and_is_mended_meanwhile(
    server: Server, schedule: Callable[..., Schedule]
) -> None:
    """Nobody is there after the first tokens: the device goes on alone, and not for ever."""
    sources: list[str] = []
    asked = Request("what?", "", codec("topk:8"), 1500)
    alone = Deadline(5, "device")
    async with Cutter(server.port, []).serving() as line:

        def on_token(record: TokenRecord) -> None:
            assert record.decision is not None
            sources.append(record.decision.source)
            if len(sources) == 2:
                line.port = 1  # before the cut, so that no attempt finds the server
                line.cut_now()
            if sources.count("device") == 5:
                line.port = server.port

        made = schedule(FakeDevice(64, gain=0.8, end_ids=[]), asked, deadline=alone)
        got = await answer(made, line.url, on_token=on_token, patience=QUICK)
    assert len(got.tokens) == 1500
    assert got.counters["reconnections"] == 1
    assert "steered" in sources[sources.index("device") :], "the cloud was heard from again"


@pytest.mark.parametrize("schedule", [lockstep, runahead])
async def test_who_can_do_without_the_cloud_ends_the_answer_without_it(
    server: Server, schedule: Callable[..., Schedule]
) -> None:
    """The server never comes back: with `on_late=device` that is no reason to break off."""
    patience = Patience(connect_s=5, reconnect_s=0.2, first_pause_s=0.01, longest_pause_s=0.05)
    asked = Request("what?", "", codec("topk:8"), 300)
    made = schedule(FakeDevice(64, gain=0.8, end_ids=[]), asked, deadline=Deadline(5, "device"))
    async with Cutter(server.port, []).serving() as line:

        def on_token(record: TokenRecord) -> None:
            if line.port != 1:
                line.port = 1
                line.cut_now()

        got = await answer(made, line.url, on_token=on_token, patience=patience)
    assert len(got.tokens) == 300
    assert got.counters["late"] > 200
    (note,) = got.notes
    assert note.startswith("the rest of the answer is without the cloud: cloud: ")


@pytest.mark.parametrize("schedule", [lockstep, runahead])
async def test_a_server_that_goes_after_the_last_token_is_not_missed(
    server: Server, schedule: Callable[..., Schedule]
) -> None:
    """Nobody hears the goodbye, and nobody tells what was computed: the answer is complete."""
    async with Cutter(server.port, []).serving() as line:
        seen: list[int] = []

        def on_token(record: TokenRecord) -> None:
            seen.append(record.token)
            if len(seen) == TOKENS:
                line.port = 1
                line.cut_now()

        got = await answer(
            schedule(device(), request()), line.url, on_token=on_token, patience=QUICK
        )
        assert line.connections == 1
    assert got.tokens == seen == undisturbed()
    assert "wasted_cloud_tokens" not in got.counters


async def test_a_server_that_dies_of_the_question_is_not_asked_for_ever(server: Server) -> None:
    """Each connection stands, and is gone before a prediction comes."""
    patience = Patience(connect_s=5, reconnect_s=0.3, first_pause_s=0.01, longest_pause_s=0.05)
    async with Cutter(server.port, [5] + [2] * 10_000).serving() as line:
        with pytest.raises(ConnectionFailed, match="closed the connection"):
            await answer(lockstep(device(), request()), line.url, patience=patience)
        assert line.connections < 20


async def test_who_was_being_served_waits_for_room(server: Server) -> None:
    """The server that it comes back to is full, until it is not."""
    with running(FakeCloud(64, seed=1), limits=ServerLimits(sessions=0)) as full:
        async with Cutter(server.port, [5]).serving() as line:
            seen: list[int] = []

            def on_token(record: TokenRecord) -> None:
                seen.append(record.token)
                line.port = full.port

            going = asyncio.create_task(
                answer(lockstep(device(), request()), line.url, on_token=on_token, patience=QUICK)
            )
            while line.connections < 4 and not going.done():
                await asyncio.sleep(0.001)
            line.port = server.port
            got = await going
        assert got.tokens == undisturbed()
        with pytest.raises(Refused, match="as many sessions as it allows"):
            await answer(lockstep(device(), request()), full.url, patience=QUICK)


async def test_a_long_note_outlasts_the_servers_patience_and_the_answer_goes_on() -> None:
    """The server ends a session that is silent for too long; the device, still at its prompt, asks
    again when it is done."""

    class Slow(FakeDevice):
        def prefill(self) -> None:
            while not service.dropped:
                time.sleep(0.01)
            super().prefill()

    with running(FakeCloud(64, seed=1), limits=ServerLimits(idle_s=1.0)) as server:
        service = server.config.app.state.service  # type: ignore[union-attr]
        slow = Slow(64, gain=0.8, end_ids=[])
        got = await answer(lockstep(slow, request()), server.url, patience=QUICK)
        assert service.dropped["idle"] >= 1
    assert got.tokens == undisturbed()
    assert got.counters["reconnections"] >= 1


@pytest.mark.parametrize(
    ("reason", "again"), [("stalled", True), ("idle", True), ("", False), ("flood", False)]
)
async def test_who_is_sent_away_for_good_does_not_come_back(reason: str, again: bool) -> None:
    came = 0

    async def refuse(socket: ServerConnection) -> None:
        nonlocal came
        came += 1
        await socket.recv()
        await socket.close(1008, reason)

    patience = Patience(connect_s=5, reconnect_s=0.5, first_pause_s=0.01, longest_pause_s=0.05)
    async with serve(refuse, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(ConnectionFailed, match=f"got 1008 ?{reason}"):
            await answer(lockstep(device(), request()), f"ws://127.0.0.1:{port}", patience=patience)
    assert (came > 2) if again else (came == 1)


async def test_one_session_on_several_connections_at_once(server: Server) -> None:
    """As when a connection is half-open: each is served rightly, whoever finds the cache."""

    def renamed(schedule: Schedule) -> Schedule:
        event = None
        while True:
            try:
                action = schedule.send(event)
            except StopIteration as stop:
                finish: Finish = stop.value
                return finish
            if isinstance(action, Send) and isinstance(action.frame, wire.Open):
                action = Send(msgspec.structs.replace(action.frame, session="the same"))
            event = yield action

    makes: list[Callable[..., Schedule]] = [lockstep, runahead, draft] * 3
    async with Cutter(server.port, [4, 7, 5, 9, 6, 3, 8]).serving() as line:
        runs = await asyncio.gather(
            *(
                answer(renamed(make(device(), request())), line.url, patience=QUICK)
                for make in makes
            )
        )
    for got in runs:
        assert got.tokens == undisturbed()


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
