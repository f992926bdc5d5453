"""Faults through the real shaper, on real sockets: the same answer, nothing lost, nothing twice.

driver ──▶ [ cutter ] ──▶ shaper (delays, loss, outages of the link models) ──▶ server
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial

import numpy as np
import pytest

from cloud_sim.live.server import Server, running
from cloud_sim.net.impairments import Outages, random_loss
from cloud_sim.net.links import ConstantDelay, Link
from cloud_sim.net.rates import ConstantRate
from cloud_sim.net.shaper import Shaper, shaped
from cloud_sim.net.streams import stream
from cloud_sim.net.transport import TCP
from cloud_sim.session import session
from edge_runtime import timing
from edge_runtime.candidates import codec
from edge_runtime.connections import patience, realtime, websocket
from edge_runtime.connections.direct import run_direct
from edge_runtime.connections.patience import Patience
from edge_runtime.connections.websocket import answer
from edge_runtime.policy import Device
from edge_runtime.schedules.actions import Schedule
from edge_runtime.schedules.deadlines import Deadline
from edge_runtime.schedules.draft import draft
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.transcript import Transcript
from tests.fakes import FakeCloud, FakeDevice
from tests.lines import Cutter

QUICK = Patience(connect_s=5, reconnect_s=20, first_pause_s=0.01, longest_pause_s=0.05)
SCHEDULES: dict[str, Callable[[Device, Request], Schedule]] = {
    "lockstep": lockstep,
    "runahead": runahead,
    "branches": partial(runahead, branches=3),
    "draft": partial(draft, draft_tokens=2),
}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def made(name: str, tokens: int) -> Schedule:
    device = FakeDevice(64, gain=0.8, end_ids=[])
    return SCHEDULES[name](device, Request("what?", "", codec("topk:8"), tokens))


def undisturbed(tokens: int) -> list[int]:
    return run_direct(made("lockstep", tokens), session(FakeCloud(64, seed=1))).tokens


def link(rtt_ms: float, loss: float = 0.0, outages: Outages | None = None, name: str = "") -> Link:
    losses = random_loss(loss, stream(3, name, "loss")) if loss else None
    return Link(ConstantRate(20e6), ConstantDelay(rtt_ms / 2), loss=losses, outages=outages)


@asynccontextmanager
async def line(
    port: int, make: Callable[[int], tuple[Link, Link]]
) -> AsyncIterator[tuple[Shaper, int]]:
    """A shaper in front of the server at `port`, and its own port."""
    async with shaped(make, TCP.plain(), ("127.0.0.1", port)) as (shaper, address):
        yield shaper, address[1]


def plain(_: int) -> tuple[Link, Link]:
    return link(4), link(4)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(FakeCloud(64, seed=1)) as running_server:
        yield running_server


@every_schedule
async def test_a_cut_at_every_frame_boundary_in_turn(server: Server, name: str) -> None:
    """After the server's n-th frame, for every n that a whole answer has; all n at a time."""
    tokens = 5 if name == "branches" else 10  # branches have ten frames a token
    async with line(server.port, plain) as (_, port):

        async def cut_after(frames: int | None) -> tuple[Transcript, int, int]:
            cuts = [] if frames is None else [frames]
            async with Cutter(port, cuts).serving() as cutter:
                got = await answer(made(name, tokens), cutter.url, patience=QUICK)
                return got, cutter.passed, cutter.connections

        whole, frames, _ = await cut_after(None)
        assert whole.tokens == undisturbed(tokens)
        assert frames >= 4
        cuts = range(1, frames)
        few = asyncio.Semaphore(16)  # the server allows 64 sessions, broken ones included

        async def one_of(cut: int) -> tuple[Transcript, int, int]:
            async with few:
                return await cut_after(cut)

        runs = await asyncio.gather(*(one_of(cut) for cut in cuts))
    for cut, (got, _, connections) in zip(cuts, runs, strict=True):
        assert got.tokens == whole.tokens, f"cut after frame {cut}"
        assert len(got.records) == tokens
        # What comes after the last token may be cut off without anybody resuming.
        assert got.counters["reconnections"] <= connections - 1 <= 1
    assert sum(got.counters["reconnections"] for got, *_ in runs) >= min(len(cuts) - 2, 8)


async def test_a_server_killed_and_started_again_mid_answer() -> None:
    """Each schedule is at its sixth token or beyond; the new server remembers nothing."""
    tokens, seen, all_under_way = 40, dict.fromkeys(SCHEDULES, 0), asyncio.Event()

    def on_token(name: str, _: object) -> None:
        seen[name] += 1
        if min(seen.values()) >= 5:
            all_under_way.set()

    async def ask(name: str, url: str) -> Transcript:
        watch = partial(on_token, name)
        return await answer(made(name, tokens), url, on_token=watch, patience=QUICK)

    first = ExitStack()
    server = first.enter_context(running(FakeCloud(64, seed=1)))
    # The new server has another port, since the old one may be gone to somebody else by then.
    async with (
        Cutter(server.port, []).serving() as door,
        line(door.listens_on, lambda _: (link(40), link(40))) as (_, port),
    ):
        url = f"ws://127.0.0.1:{port}"
        going = asyncio.gather(*(ask(name, url) for name in SCHEDULES))
        await all_under_way.wait()
        await asyncio.to_thread(first.close)
        with running(FakeCloud(64, seed=1)) as second:
            door.port = second.port
            runs = await going
    for name, got in zip(SCHEDULES, runs, strict=True):
        assert got.tokens == undisturbed(tokens)
        assert seen[name] == tokens
    assert sum(got.counters["reconnections"] >= 1 for got in runs) >= 2


class OneOutage(Outages):
    """Nothing passes for `lasting_ms` once `after` packets have, of both directions together: on a
    busy machine too the answer has begun by then."""

    def __init__(self, after: int, lasting_ms: float) -> None:
        super().__init__(1e12, lasting_ms, np.random.default_rng(0), fixed=True, drops=True)
        self._left = after
        self._start = self._end = math.inf

    def until(self, now_ms: float) -> float:
        self._left -= 1
        if not self._left:
            self._start, self._end = now_ms, now_ms + self._lasting
        return self._end if self._start <= now_ms < self._end else now_ms


async def test_five_seconds_without_a_network(server: Server) -> None:
    """Real seconds: the packets of that time are lost, and sent again as TCP would."""
    tokens = 40

    def make(_: int) -> tuple[Link, Link]:
        outage = OneOutage(20, 5000)
        return link(10, outages=outage), link(10, outages=outage)

    async with line(server.port, make) as (_, port):
        url = f"ws://127.0.0.1:{port}"
        runs = await asyncio.gather(
            *(answer(made(name, tokens), url, patience=QUICK) for name in SCHEDULES)
        )
    for got in runs:
        assert got.tokens == undisturbed(tokens)
        assert max(got.token_ms) >= 4500
        assert got.counters["reconnections"] == 0


async def test_an_outage_that_is_taken_for_a_dead_connection(server: Server) -> None:
    """A ping goes unanswered, the driver connects anew, and the frames of the old connection,
    which the shaper still holds, reach nobody."""
    tokens = 40
    keeping = Patience(5, 20, 0.01, 0.05, keepalive_s=0.5)

    def make(number: int) -> tuple[Link, Link]:
        outage = OneOutage(20, 1500) if number < len(SCHEDULES) else None
        return link(10, outages=outage), link(10, outages=outage)

    async with line(server.port, make) as (_, port):
        url = f"ws://127.0.0.1:{port}"
        runs = await asyncio.gather(
            *(answer(made(name, tokens), url, patience=keeping) for name in SCHEDULES)
        )
    for got in runs:
        assert got.tokens == undisturbed(tokens)
        assert got.counters["reconnections"] == 1


async def test_two_percent_loss(server: Server) -> None:
    tokens = 60

    def make(number: int) -> tuple[Link, Link]:
        up, down = (link(6, 0.02, name=f"{number}{way}") for way in ("up", "down"))
        return up, down

    async with line(server.port, make) as (shaper, port):
        url = f"ws://127.0.0.1:{port}"
        runs = await asyncio.gather(
            *(answer(made(name, tokens), url, patience=QUICK) for name in SCHEDULES)
        )
    assert shaper.retransmissions >= 4
    for got in runs:
        assert got.tokens == undisturbed(tokens)


async def test_a_half_open_connection(server: Server) -> None:
    """The server's side goes silent after six frames; nothing is closed."""
    keeping = Patience(5, 20, 0.01, 0.05, keepalive_s=0.2)

    async def ask(name: str, port: int) -> Transcript:
        async with Cutter(port, [6], half_open=True).serving() as cutter:
            got = await answer(made(name, 24), cutter.url, patience=keeping)
            assert cutter.connections == 2
            return got

    async with line(server.port, plain) as (_, port):
        runs = await asyncio.gather(*(ask(name, port) for name in SCHEDULES))
    for got in runs:
        assert got.tokens == undisturbed(24)
        assert got.counters["reconnections"] == 1


@pytest.mark.parametrize("jump_ms", [3.6e6, -3.6e6])
@pytest.mark.parametrize("late", ["wait", "device"])
async def test_a_clock_that_jumps(
    server: Server, monkeypatch: pytest.MonkeyPatch, jump_ms: float, late: str
) -> None:
    """By an hour, at the eighth token, as after a laptop's sleep: a token may count as late, but
    the answer goes on, and is the undisturbed one where nobody minds."""
    real, skew, seen = timing.now_ms, [0.0], [0]

    def now_ms() -> float:
        return real() + skew[0]

    def on_token(_: object) -> None:
        seen[0] += 1
        if seen[0] == 8:
            skew[0] = jump_ms

    for module in (patience, realtime, websocket):
        monkeypatch.setattr(module, "now_ms", now_ms)
    deadline = Deadline(500, "device") if late == "device" else Deadline()
    asked = Request("what?", "", codec("topk:8"), 24)
    schedule = runahead(FakeDevice(64, gain=0.8, end_ids=[]), asked, deadline=deadline)
    async with line(server.port, plain) as (_, port):
        url = f"ws://127.0.0.1:{port}"
        got = await answer(schedule, url, on_token=on_token, patience=QUICK)
    assert len(got.tokens) == seen[0] == 24
    assert got.counters["late"] <= (1 if late == "device" else 0)
    if not got.counters["late"]:
        assert got.tokens == undisturbed(24)
