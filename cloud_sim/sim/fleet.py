"""Many phones on one cloud: arrivals, a link each, one GPU, and what a token costs then.

Every device runs the real schedule against the real session over links of its own; what the models
say comes from tapes, recorded or made up from token statistics (`made_up`). Devices draw their
weather, their place in a trace and their tape from streams named by their number: adding one leaves
the others as they were. A transcript is folded into arrays when its answer ends, so memory goes
with the devices that are answering, not with those that have.
"""

from __future__ import annotations

import gc
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from cloud_sim.net.catalogue import Network
from cloud_sim.net.streams import stream
from cloud_sim.sim.costs import DeviceCosts
from cloud_sim.sim.exchange import Exchange
from cloud_sim.sim.replay import Replay
from cloud_sim.sim.roofline import Roofline
from cloud_sim.sim.serving import STANDARD, Batching, Serving, Totals
from cloud_sim.sim.tape import Tape, child
from cloud_sim.sim.waiting import Clock
from edge_runtime.policy import Device
from edge_runtime.rules import method
from edge_runtime.sampling import GREEDY
from edge_runtime.schedules.actions import Schedule
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.steering import Method
from edge_runtime.timing import Parts

MakeSchedule = Callable[[Device, Request], Schedule]


@dataclass(slots=True)
class FleetResult:
    """What all devices together saw. Times in ms."""

    ttft_ms: np.ndarray
    """Per answer."""
    token_ms: np.ndarray
    """Per token after the first, all answers."""
    parts: Parts
    """Mean of those tokens."""
    ended_ms: float
    uplink_bytes: int
    downlink_bytes: int
    retransmissions: int
    totals: Totals

    @property
    def answers(self) -> int:
        """Answers completed."""
        return len(self.ttft_ms)

    def percentile(self, q: float) -> float:
        """Of the time per token."""
        return float(np.percentile(self.token_ms, q)) if len(self.token_ms) else math.nan

    def row(self) -> dict[str, Any]:
        """As JSON; all times are modelled."""
        return {
            "answers": self.answers,
            "ttft_ms_p50": float(np.percentile(self.ttft_ms, 50)),
            "ttft_ms_p95": float(np.percentile(self.ttft_ms, 95)),
            "token_ms_p50": self.percentile(50),
            "token_ms_p95": self.percentile(95),
            "token_ms_p99": self.percentile(99),
            "parts": self.parts.as_dict(),
            "uplink_bytes": self.uplink_bytes,
            "downlink_bytes": self.downlink_bytes,
            "retransmissions": self.retransmissions,
            "gpu_busy": self.totals.busy_ms / self.ended_ms if self.ended_ms else 0.0,
            "rows_per_pass": self.totals.rows / max(1, self.totals.passes),
            "evictions": self.totals.evictions,
            "origin": "modelled",
        }


@dataclass(slots=True)
class _Fold:
    """Collects finished answers."""

    ttft: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)
    parts: Parts = field(default_factory=Parts)
    uplink: int = 0
    downlink: int = 0
    resent: int = 0

    def add(self, exchange: Exchange) -> None:
        transcript = exchange.result()
        self.ttft.append(transcript.ttft_ms)
        for record in transcript.records[1:]:
            self.token.append(record.parts.total)
            self.parts.add(record.parts)
        self.uplink += transcript.uplink_bytes
        self.downlink += transcript.downlink_bytes
        self.resent += int(transcript.counters["retransmissions"])


def fleet(
    arrivals_ms: Iterable[float],
    replays: Sequence[Replay],
    *,
    network: Network,
    device_costs: DeviceCosts,
    roofline: Roofline,
    batching: Batching = STANDARD,
    schedule: MakeSchedule = lockstep,
    max_tokens: int = 128,
    seed: int = 0,
    connect: bool = False,
) -> FleetResult:
    """One answer for each arrival, all on one cloud. Raises what any schedule raises."""
    clock = Clock()
    engine = Serving(clock, roofline, batching)
    fold = _Fold()
    failed: list[Exception] = []

    def begin(number: int) -> None:
        replay = replays[int(stream(seed, "tape", number).integers(len(replays)))]
        up, down = network.links(seed, "device", number, elsewhere=True)
        exchange = Exchange(
            clock,
            schedule(replay.device(), replay.request(max_tokens)),
            replay.session(),
            uplink=up,
            downlink=down,
            device_costs=device_costs,
            engine=engine,
            transport=network.transport,
            connect=connect,
        )
        arrive()
        exchange.start(lambda: ended(exchange))

    def ended(exchange: Exchange) -> None:
        try:
            fold.add(exchange)
        except Exception as error:
            failed.append(error)

    def arrive() -> None:
        """Wait for the next device: only those that are answering are in memory."""
        number, at_ms = next(to_come, (-1, 0.0))
        if number >= 0:
            clock.at(at_ms, partial(begin, number))

    to_come = iter(sorted(enumerate(arrivals_ms), key=lambda arrival: arrival[1]))
    arrive()
    with _uncollected():
        clock.run()
    if failed:
        raise failed[0]
    count = len(fold.token)
    return FleetResult(
        np.array(fold.ttft),
        np.array(fold.token),
        fold.parts.scaled(1 / count) if count else Parts(),
        float(clock.now),
        fold.uplink,
        fold.downlink,
        fold.resent,
        engine.totals,
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: it would walk all live devices again and again (a quarter of the
    time of a thousand), and finished ones are freed by their reference counts."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many phones one GPU serves."""

    phones: int
    """The most whose p95 time per token stayed within the target."""
    token_ms_p95: float
    target_ms: float
    tried: tuple[tuple[int, float], ...]
    """(phones, p95) of every run, in the order of trying."""


def capacity(run: Callable[[int], FleetResult], target_ms: float, *, most: int = 4096) -> Capacity:
    """The most phones at once with a p95 time per token within `target_ms`.

    `run(n)` simulates n phones that answer at the same time. Doubles until the target is missed,
    then halves the gap; takes p95 to grow with n.
    """
    tried: list[tuple[int, float]] = []

    def p95(phones: int) -> float:
        value = run(phones).percentile(95)
        tried.append((phones, value))
        return value

    good, good_p95, bad = 0, math.nan, 1
    while bad <= most:
        value = p95(bad)
        if not value <= target_ms:
            break
        good, good_p95, bad = bad, value, bad * 2
    while bad - good > max(1, good // 16):
        middle = (good + bad) // 2
        if middle > most:
            break
        value = p95(middle)
        if value <= target_ms:
            good, good_p95 = middle, value
        else:
            bad = middle
    return Capacity(good, good_p95, target_ms, tuple(tried))


def made_up(
    tokens: int,
    divergence: float,
    seed: int,
    *,
    codec: str = "topk:64",
    prompt_tokens: int = 40,
    private_tokens: int = 120,
    sure: float = 0.8,
) -> tuple[Tape, Method]:
    """A tape with the statistics of recorded runs, and the rule to replay it under.

    At each position the cloud gives its best token the chance `sure`, and with probability
    `divergence` the small model prefers the second best so clearly that steering takes it. Frames
    have the real sizes. `codec` must be `topk:K` with K >= 2.
    """
    kept = int(codec.partition(":")[2])
    draws = stream(seed, "made-up").random(tokens)
    tape = Tape(
        f"made up {seed}", "made-up", "", 50_000, (), codec, tuple(range(prompt_tokens)),
        (prompt_tokens + private_tokens, prompt_tokens),
    )  # fmt: skip
    ids = np.arange(kept, dtype="<u4").tobytes()
    rest = (1 - sure) * np.exp(-np.arange(kept - 1) / 2)
    chances = np.concatenate([[sure], rest / rest.sum() * (1 - sure) * 0.95])
    logprobs = np.log(chances).astype("<f2").tobytes()
    agrees = np.zeros((2, kept), np.float32)
    differs = agrees.copy()
    differs[0, 1] = 40.0
    node = tape.root
    for position, draw in enumerate(draws):
        # The mass left out carries the position, so that no two payloads are the same bytes.
        node.payload = ids + logprobs + struct.pack("<f", 0.01 + 1e-5 * position)
        node.scores = (differs if draw < divergence else agrees).copy()
        node = child(node, 1 if draw < divergence else 0)
    return tape, method("light")


def made_up_replays(
    count: int, tokens: int, divergence: float, seed: int = 0, codec: str = "topk:64"
) -> list[Replay]:
    """`count` replays of made-up tapes, each from a seed of its own."""
    pairs = (made_up(tokens, divergence, seed + 1000 * i, codec=codec) for i in range(count))
    return [Replay(tape, rule, GREEDY) for tape, rule in pairs]
