"""Many sessions at once, and clients that misbehave: nobody else is to notice."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import resource
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from cloud_sim.live.engine import Batching, Engine, Unfinished
from cloud_sim.live.limits import ServerLimits
from cloud_sim.live.llm import TransformersModel
from cloud_sim.live.load import load
from cloud_sim.live.ragged import ATTENTION
from cloud_sim.live.server import Server, running
from cloud_sim.model import Logprobs, ScoreBatch, ScoreRequest
from cloud_sim.session import session
from edge_runtime import wire
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.connections.patience import Patience
from edge_runtime.connections.websocket import answer
from edge_runtime.device import CloudOnlyDevice
from edge_runtime.errors import ConnectionFailed
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from tests.fakes import FakeCloud, FakeDevice

SESSIONS, TOKENS = 64, 100


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    """Tiny matrices are faster on one thread, by far where others want the cores too."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> TransformersModel:
    """In float64, so that sums in another order do not turn near ties."""
    return TransformersModel(load(str(tiny_model_dir), dtype="float64", attention=ATTENTION))


def request(n: int, tokens: int = TOKENS) -> Request:
    return Request(f"Question {n}: where should we eat?", "", codec("topk:4"), tokens)


async def all_at_once(model: TransformersModel, tokens: int) -> list[list[int]]:
    """The answers of 64 sessions on one server."""
    with running(model, limits=ServerLimits(sessions=SESSIONS)) as server:
        schedules = (lockstep(CloudOnlyDevice(), request(n, tokens)) for n in range(SESSIONS))
        answers = await asyncio.gather(*(answer(s, server.url) for s in schedules))
    return [a.tokens for a in answers]


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def settled_mb() -> float:
    """With nothing kept that nobody uses, be it the collector's or the C library's."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_mb()


async def test_64_sessions_of_100_tokens_each_equal_their_solo_run_and_leave_no_memory_behind(
    model: TransformersModel,
) -> None:
    solo = [
        run_direct(lockstep(CloudOnlyDevice(), request(n)), session(model)).tokens
        for n in range(SESSIONS)
    ]
    tokens = await all_at_once(model, TOKENS)
    assert all(len(t) == TOKENS for t in tokens)
    assert tokens == solo
    assert len({tuple(t) for t in tokens}) > SESSIONS // 2, "answers should differ by question"
    gc.collect()
    assert not model.held, "a session's cache outlived it"
    if sys.platform != "linux":
        pytest.skip("resident memory is read from Linux's /proc")
    # That was the warm-up. The caches alone of a load like the next ones are 8 MB: what leaks grows
    # by that each time, what an allocator keeps for next time does not.
    growth: list[float] = []
    while len(growth) < 4 and min(growth, default=5.0) >= 5:
        before = settled_mb()
        tokens = await all_at_once(model, 30)
        assert tokens == [t[:30] for t in solo]
        growth.append(settled_mb() - before)
    assert min(growth) < 5, f"every load left memory behind: {growth} MB"


def test_whoever_waits_is_served_in_one_pass_and_guesses_wait() -> None:
    """The engine's order, seen through a model that can be held up."""
    gate, order = threading.Event(), []

    class Slow(FakeCloud):
        def score(self, requests):  # type: ignore[no-untyped-def]
            order.append([r.tokens[0] for r in requests])
            gate.wait(10)
            return super().score(requests)

    cloud = Slow(64)
    engine = Engine(cloud, Batching(requests=3, tokens=100, chunk=100))

    def ask(token: int, guess: bool = False, n: int = 1) -> ScoreRequest:
        return ScoreRequest(cloud, cloud.open(), 0, (token,) * n, speculative=guess)

    futures = [engine.submit(ask(1))]
    while not order:
        pass
    futures += [engine.submit(ask(2, guess=True)), engine.submit(ask(3)), engine.submit(ask(4))]
    futures += [engine.submit(ScoreBatch((ask(5), ask(6)))), engine.submit(ask(7))]
    taken_back = engine.submit(ask(8))
    assert taken_back.cancel()
    gate.set()
    results = [future.result(10) for future in futures]
    engine.stop()
    assert order == [[1], [3, 4, 7], [5, 6, 2]]
    assert len(results[4].result) == 2


def test_a_long_prompt_does_not_hold_up_the_others(model: TransformersModel) -> None:
    """It is computed in chunks, and others' steps run in the same passes."""
    engine = Engine(model, Batching(chunk=32))
    prompt = tuple(range(3, 203))
    long, short = model.open(), model.open()
    waiting = engine.submit(ScoreRequest(model, long, 0, prompt))
    steps = []
    for n in range(4):
        step = engine.submit(ScoreRequest(model, short, n, (5,)))
        step.result(10)
        steps.append(waiting.done())
    chunked = waiting.result(10).result
    engine.stop()
    whole = model.score([ScoreRequest(model, long, 0, prompt)])[0]
    assert abs(chunked - whole).max() < 1e-5
    assert not steps[0]
    for sequence in (long, short):
        model.close(sequence)


async def test_a_long_prompt_that_nobody_waits_for_is_not_computed_to_its_end() -> None:
    """Its client leaves during the first chunk: the others' passes do not carry the rest."""
    first, gate, fed = threading.Event(), threading.Event(), []

    class Held(FakeCloud):
        def prompt(self, query: str) -> list[int]:
            return [1] * 200 if query == "long" else super().prompt(query)

        def score(self, requests: Sequence[ScoreRequest]) -> list[Logprobs]:
            fed.append([len(request.tokens) for request in requests])
            first.set()
            gate.wait(10)
            return super().score(requests)

    cloud = Held(64)
    engine = Engine(cloud, Batching(chunk=16))
    future = engine.submit(ScoreRequest(cloud, cloud.open(), 0, (1,) * 200))
    await asyncio.to_thread(first.wait, 10)
    assert not engine.withdraw(future), "a pass has begun"
    gate.set()
    with pytest.raises(Unfinished):
        await asyncio.to_thread(future.result, 10)
    assert fed == [[16]]
    engine.stop()
    first.clear()
    gate.clear()
    fed.clear()
    with running(cloud) as server:
        server.config.app.state.service.engine._batching.chunk = 16  # type: ignore[union-attr]
        async with connect(server.url) as leaving:
            await leaving.send(wire.encode(Request("long", "", codec("topk:4"), 9).open("step")))
            await asyncio.to_thread(first.wait, 10)
            leaving.transport.abort()
        async with asyncio.timeout(60):
            while not server.config.app.state.service.engine._unwanted:  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        gate.set()
        async with asyncio.timeout(60):
            while (await asyncio.to_thread(health_of, server))["sessions"]:
                await asyncio.sleep(0.02)
        assert fed == [[16]]
    assert len(cloud.open_sequences) == 1, "the engine's own above; the session's was not kept"


# --- clients that misbehave, beside one that does not ---


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    limits = ServerLimits(idle_s=5, send_s=0.5, inbox_frames=32, sessions=200)
    with running(FakeCloud(64, seed=1), limits=limits) as running_server:
        yield running_server


async def good(server: Server, n: int = 0) -> None:
    """An ordinary answer, which must be what it always is."""
    asked = request(n, 20)
    for schedule in (lockstep, runahead):
        device = FakeDevice(64, context=f"{n}", end_ids=[])
        got = await answer(schedule(device, asked), server.url)
        alone = run_direct(
            lockstep(FakeDevice(64, context=f"{n}", end_ids=[]), asked),
            session(FakeCloud(64, seed=1)),
        )
        assert got.tokens == alone.tokens


FRAMES = st.one_of(
    st.binary(max_size=80),
    st.text(max_size=20),
    st.builds(
        wire.Open,
        st.integers(-1, 3),
        st.text(max_size=10),
        st.just(""),
        st.sampled_from(["full", "topk:4", "topk:0", "x"]),
        st.sampled_from(["step", "stream", "score"]),
        st.integers(-5, 60),
        st.integers(-3, 100),
        st.integers(-3, 100),
        st.integers(-3, 100),
    ),
    st.builds(
        wire.Extend,
        st.integers(-1, 5),
        st.integers(-2, 40),
        st.lists(st.integers(-2, 70), max_size=5).map(tuple),
    ),
    st.builds(wire.Credit, st.integers(-1, 5), st.integers(-2, 40)),
    st.builds(wire.Close, st.integers(-1, 40)),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frames=st.lists(FRAMES, min_size=1, max_size=12))
def test_whatever_a_client_sends_it_is_answered_or_refused(
    server: Server, frames: list[bytes | str | wire.Up]
) -> None:
    """Every message down is a frame; a refusal is the last one; the server stays as it was."""

    async def client() -> None:
        async with connect(server.url, max_size=None) as socket:
            with contextlib.suppress(ConnectionClosed):
                for frame in frames:
                    await socket.send(
                        frame if isinstance(frame, bytes | str) else wire.encode(frame)
                    )
                await socket.send(wire.encode(wire.Close()))
                while True:
                    raw = await asyncio.wait_for(socket.recv(decode=False), 10)
                    if isinstance(wire.decode_down(raw), wire.Refusal):
                        await asyncio.wait_for(socket.wait_closed(), 10)
                        assert socket.close_code == 1008
                        return
        assert socket.close_code == 1000

    asyncio.run(client())


def test_after_all_that_nothing_is_held(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(good(server))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


class HeldCloud(FakeCloud):
    """A model whose passes wait for `gate`; `held` tells that one has begun."""

    def __init__(self, vocabulary_size: int, seed: int = 0) -> None:
        super().__init__(vocabulary_size, seed=seed)
        self.held, self.gate = threading.Event(), threading.Event()

    def score(self, requests: Sequence[ScoreRequest]) -> list[Logprobs]:
        self.held.set()
        self.gate.wait(10)
        return super().score(requests)


async def test_a_flood_is_refused_and_the_others_go_on() -> None:
    """Its session waits for another's pass, so what it sends piles up however fast the server is;
    frames that a session has time to look at are no flood."""

    async def flood(server: Server) -> str:
        async with connect(server.url) as socket:
            with contextlib.suppress(ConnectionClosed):
                for _ in range(4000):
                    await socket.send(wire.encode(request(0).open("step")))
            with contextlib.suppress(ConnectionClosed):
                while True:
                    frame = wire.decode_down(await socket.recv(decode=False))
                    if isinstance(frame, wire.Refusal):
                        return frame.code
            return str(socket.close_reason)

    cloud = HeldCloud(64, seed=1)
    limits = ServerLimits(send_s=0.5, inbox_frames=32)
    with running(cloud, limits=limits) as server:
        others = [asyncio.create_task(good(server, n)) for n in range(4)]
        await asyncio.to_thread(cloud.held.wait, 10)
        code = await flood(server)
        cloud.gate.set()
        await asyncio.gather(*others)
    assert code == "flood"


async def test_nonsense_is_named_while_its_sender_s_work_waits_for_a_pass() -> None:
    """Work that no pass has begun is taken back, and the refusal still goes out."""
    cloud = HeldCloud(64)
    with running(cloud) as server:
        async with connect(server.url) as busy, connect(server.url) as waiting:
            await busy.send(wire.encode(request(0).open("step")))
            await asyncio.to_thread(cloud.held.wait, 10)
            await waiting.send(wire.encode(request(1).open("step")))
            opened = wire.decode_down(await waiting.recv(decode=False))
            await waiting.send("nonsense")
            refusal = wire.decode_down(await waiting.recv(decode=False))
            cloud.gate.set()
    assert isinstance(opened, wire.Opened)
    assert isinstance(refusal, wire.Refusal)
    assert refusal.code == "not_a_frame"


async def test_a_server_that_answers_nothing_but_pings_is_given_up() -> None:
    cloud = HeldCloud(64)
    with running(cloud) as server:
        with pytest.raises(ConnectionFailed, match=r"has fallen silent \(got nothing for 0.2 s\)"):
            await answer(
                lockstep(FakeDevice(64), request(0)), server.url, patience=Patience(silence_s=0.2)
            )
        cloud.gate.set()


async def test_one_who_stops_listening_is_dropped_and_the_others_go_on() -> None:
    """It asks for more than the buffers on the way hold; what it finds when it listens again."""
    vocabulary = 8192
    cloud = FakeCloud(vocabulary, seed=1)
    with running(cloud, limits=ServerLimits(send_s=0.3)) as server:
        # Connections take both sizes over as they come to be, and keep them.
        server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((server.host, server.port))
        async with connect(server.url, sock=deaf, max_size=None, max_queue=1) as listener:
            opening = Request("q", "", codec("full"), 2000).open("stream", window=64)
            await listener.send(wire.encode(opening))
            listener.transport.pause_reading()
            device = FakeDevice(vocabulary, end_ids=[])
            got = await answer(lockstep(device, Request("q", "", codec("topk:4"), 20)), server.url)
            assert len(got.tokens) == 20
            async with asyncio.timeout(60):
                while (health := await asyncio.to_thread(health_of, server))["sessions"]:
                    await asyncio.sleep(0.02)
            assert health["dropped"] == {"stalled": 1}
            assert len(cloud.open_sequences) <= 1, "more than a cache to come back for"
            listener.transport.resume_reading()
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await listener.recv()
            assert (listener.close_code, listener.close_reason) == (1008, "stalled")


def health_of(server: Server) -> dict[str, Any]:
    """What the server says of itself."""
    with urlopen(f"http://{server.host}:{server.port}/health") as reply:
        return dict(json.load(reply))


async def test_one_who_vanishes_leaves_at_most_a_cache_on_the_shelf() -> None:
    cloud = FakeCloud(64, seed=1)
    with running(cloud) as server:
        for _ in range(30):
            socket = await connect(server.url)
            await socket.send(wire.encode(request(0).open("stream", window=16)))
            await socket.recv()
            socket.transport.abort()
        await good(server)
        async with asyncio.timeout(60):
            while len(cloud.open_sequences) > 16:
                await asyncio.sleep(0.02)
    assert not cloud.open_sequences, "stopping the server clears the shelf"
