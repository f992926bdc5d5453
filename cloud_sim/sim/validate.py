"""The simulator against real sockets: the same scenarios, schedules, sessions, links and answers.

Real: `answer` over a WebSocket through the shaper to the real server, on loopback; the models are
a tape on both sides, and where a model would compute, the real side sleeps for what the cost model
says. Simulated: `simulate` (or one cloud for many, `Serving`). So what differs is what the
simulator leaves out: operating system, event loops, threads, and the server's own work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cloud_sim.live.server import running
from cloud_sim.model import ScoreRequest
from cloud_sim.net.impairments import random_loss
from cloud_sim.net.links import ConstantDelay, Link
from cloud_sim.net.rates import ConstantRate, Rate
from cloud_sim.net.shaper import shaped
from cloud_sim.net.streams import stream
from cloud_sim.net.traces import Trace
from cloud_sim.net.transport import TCP
from cloud_sim.sim.costs import DeviceCosts
from cloud_sim.sim.exchange import NO_HOST, Exchange, Host
from cloud_sim.sim.fleet import made_up
from cloud_sim.sim.replay import Replay, TapeCloud
from cloud_sim.sim.roofline import Roofline
from cloud_sim.sim.serving import Batching, Serving
from cloud_sim.sim.waiting import Clock
from edge_runtime.connections.websocket import answer
from edge_runtime.schedules.actions import Compute, Finish, Schedule
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.transcript import Transcript

DEVICE = DeviceCosts(step_ms=12, head_ms=2, steer_ms=0.5, prefill_ms_per_token=0.2)
CLOUD = Roofline(floor_ms=9, ms_per_row=0.8, ms_per_context_token=0, prefill_ms_per_token=0.1)
TRANSPORT = TCP.plain().with_setup(((0, 0), (270, 230)))
"""TCP without TLS, and the bytes of the upgrade that the real client and server exchange."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Links for the n-th session, and how many sessions there are at a time."""

    name: str
    links: Callable[[int], tuple[Link, Link]]
    sessions: int = 1
    tokens: int = 100


def scenarios(trace: tuple[Trace, Trace], seed: int = 0) -> list[Scenario]:
    """The five scenarios; `trace` is a mahimahi uplink and downlink."""

    def constant(mbps: float, rtt_ms: float, loss: float = 0.0) -> tuple[Link, Link]:
        return tuple(  # type: ignore[return-value]
            Link(
                ConstantRate(mbps * 1e6),
                ConstantDelay(rtt_ms / 2),
                loss=random_loss(loss, stream(seed, name, "loss")) if loss else None,
            )
            for name in ("uplink", "downlink")
        )

    def traced(_: int) -> tuple[Link, Link]:
        rates: list[Rate] = [t.as_rate(offset_ms=10_000) for t in trace]
        return Link(rates[0], ConstantDelay(25)), Link(rates[1], ConstantDelay(25))

    return [
        Scenario("40 ms constant", lambda _: constant(20, 40)),
        Scenario("lte profile", lambda _: constant(12, 35)),
        Scenario("mahimahi LTE trace + 50 ms", traced),
        Scenario("40 ms, 1 % loss", lambda _: constant(20, 40, 0.01), tokens=200),
        # Round trips of their own, or all sessions would keep step and share every pass.
        Scenario("8 sessions", lambda n: constant(20, 40 + 3 * n), sessions=8),
    ]


def replay(tokens: int, seed: int = 0) -> Replay:
    """The answers that both sides give."""
    tape, rule = made_up(tokens, 0.15, seed)
    return Replay(tape, rule)


def simulated(scenario: Scenario, host: Host = NO_HOST) -> list[Transcript]:
    """All sessions of a scenario in virtual time."""
    clock = Clock()
    engine = Serving(clock, CLOUD, Batching())
    exchanges = []
    source = replay(scenario.tokens)
    for number in range(scenario.sessions):
        uplink, downlink = scenario.links(number)
        exchange = Exchange(
            clock,
            lockstep(source.device(), source.request(scenario.tokens)),
            source.session(),
            uplink=uplink,
            downlink=downlink,
            device_costs=DEVICE,
            engine=engine,
            transport=TRANSPORT,
            connect=True,
            host=host,
        )
        exchange.start()
        exchanges.append(exchange)
    clock.run()
    return [exchange.result() for exchange in exchanges]


async def measured(scenario: Scenario) -> list[Transcript]:
    """All sessions of a scenario over real sockets, each through a shaper of its own."""
    source = replay(scenario.tokens)

    async def one(number: int, target: tuple[str, int]) -> Transcript:
        links = partial(_links_of, scenario, number)
        async with shaped(links, TRANSPORT, target) as (_, (host, port)):
            device = paced(lockstep(source.device(), source.request(scenario.tokens)), DEVICE)
            return await answer(device, f"ws://{host}:{port}")

    with running(PacedCloud(source, CLOUD)) as server:
        target = (server.host, server.port)
        return list(await asyncio.gather(*(one(n, target) for n in range(scenario.sessions))))


def _links_of(scenario: Scenario, number: int, _: int) -> tuple[Link, Link]:
    return scenario.links(number)


class PacedCloud(TapeCloud):
    """A tape that takes as long as a GPU would: one pass sleeps for the whole batch."""

    def __init__(self, source: Replay, roofline: Roofline) -> None:
        super().__init__(source)
        self._roofline = roofline

    def score(self, requests: Sequence[ScoreRequest]) -> list[Any]:
        """As `TapeCloud`, after the modelled time."""
        began = time.monotonic()
        results = super().score(requests)
        rows = len(requests)
        cached = sum(request.keep for request in requests)
        extra = max(0, sum(len(request.tokens) for request in requests) - rows)
        _sleep(began, self._roofline.step_ms(rows, cached, extra))
        return results


def paced(schedule: Schedule, costs: DeviceCosts) -> Schedule:
    """`schedule` whose work takes as long as `costs` says."""
    return _paced(schedule, costs)


def _paced(schedule: Schedule, costs: DeviceCosts) -> Generator[Any, Any, Finish]:
    reply: Any = None
    while True:
        try:
            action = schedule.send(reply)
        except StopIteration as stop:
            finish: Finish = stop.value
            return finish
        if isinstance(action, Compute):
            ms = costs.ms(action.kind, action.load)
            action = Compute(action.kind, partial(_slowly, action.work, ms), action.load)
        reply = yield action


def _slowly(work: Callable[[], Any], ms: float) -> Any:
    began = time.monotonic()
    result = work()
    _sleep(began, ms)
    return result


def _sleep(began: float, ms: float) -> None:
    left = began + ms / 1e3 - time.monotonic()
    if left > 0:
        time.sleep(left)


FIGURES = ("ttft_ms", "token_ms_p50", "token_ms_p95")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One scenario, both ways. Times in ms, over all sessions."""

    scenario: str
    real: dict[str, float]
    simulated: dict[str, float]
    bare: dict[str, float]
    """Simulated without the host's own time."""
    bytes_error: int
    same_tokens: bool

    def row(self) -> dict[str, Any]:
        """As `--json` prints it; errors are relative, (simulated - real) / real."""
        return {
            "scenario": self.scenario,
            **{f"{name}_error": self._error(self.simulated, name) for name in FIGURES},
            "bytes_error": self.bytes_error,
            "same_tokens": self.same_tokens,
            "without_host": {f"{name}_error": self._error(self.bare, name) for name in FIGURES},
            "real": self.real | {"origin": "measured"},
            "simulated": self.simulated | {"origin": "modelled"},
        }

    def _error(self, ours: dict[str, float], name: str) -> float:
        return (ours[name] - self.real[name]) / self.real[name]


def figures(transcripts: Sequence[Transcript]) -> dict[str, float]:
    """Over the sessions of one scenario: median time to first token, percentiles of all tokens."""
    times = np.concatenate([t.token_ms for t in transcripts])
    return {
        "ttft_ms": float(np.median([t.ttft_ms for t in transcripts])),
        "token_ms_p50": float(np.percentile(times, 50)),
        "token_ms_p95": float(np.percentile(times, 95)),
        "uplink_bytes": sum(t.uplink_bytes for t in transcripts),
        "downlink_bytes": sum(t.downlink_bytes for t in transcripts),
    }


def host(rounds: int = 3) -> Host:
    """What threads, event loops, sockets and server take, measured where no link is: the same
    stack and the same sleeps behind a shaper that holds nothing back."""
    bare = Scenario(
        "no link",
        lambda _: (
            Link(ConstantRate(1e11), ConstantDelay(0.0)),
            Link(ConstantRate(1e11), ConstantDelay(0.0)),
        ),
    )
    runs = [figures(asyncio.run(measured(bare))) for _ in range(rounds)]
    ideal = figures(simulated(bare))

    def extra(name: str) -> float:
        return max(0.0, float(np.median([run[name] for run in runs])) - ideal[name])

    token_ms = extra("token_ms_p50")
    with_token = figures(simulated(bare, Host(token_ms)))["ttft_ms"] - ideal["ttft_ms"]
    return Host(token_ms, connect_ms=max(0.0, extra("ttft_ms") - with_token))


def compare(scenario: Scenario, host: Host, rounds: int = 3) -> Comparison:
    """The median of `rounds` real runs against the simulated one with the measured `host`."""
    virtual = simulated(scenario, host)
    runs = [asyncio.run(measured(scenario)) for _ in range(rounds)]
    every = [figures(run) for run in runs]
    real = {name: float(np.median([run[name] for run in every])) for name in every[0]}
    ours = figures(virtual)
    directions = ("uplink_bytes", "downlink_bytes")
    return Comparison(
        scenario.name,
        real,
        ours,
        figures(simulated(scenario)),
        int(max(abs(run[name] - ours[name]) for run in every for name in directions)),
        all(t.tokens == v.tokens for run in runs for t, v in zip(run, virtual, strict=True)),
    )
