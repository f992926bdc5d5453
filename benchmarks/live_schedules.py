"""Each schedule over real sockets through the shaper, against its simulation (docs/validation.md).

    python -m benchmarks.live_schedules RECORDINGS [--rtt 60] [--rounds 3]

Real: driver, WebSocket, shaper, server and session on loopback; both models are a recording
(`benchmarks.record_answers`), and where one would compute, the real side sleeps for what the cost
model charges: a published phone and a published cloud. Simulated: the same generators in SimPy.
What threads, event loops and sockets take is measured where no link is and charged: per token on
the device, per pass and row in the cloud, per frame waited for, per connection.
Frames that run-ahead sends in vain depend on who is first by a millisecond, so bytes may differ
there; tokens may not. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recordings import RecordedCloud, RecordedDevice, Recording
from cloud_sim.live.server import running
from cloud_sim.model import ScoreRequest
from cloud_sim.net.links import ConstantDelay, Link
from cloud_sim.net.rates import ConstantRate
from cloud_sim.net.shaper import shaped
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.engine import OwnGpu
from cloud_sim.sim.machines import cloud, device
from cloud_sim.sim.simulate import NO_HOST, Exchange, Host
from cloud_sim.sim.validate import TRANSPORT, paced
from cloud_sim.sim.waiting import Clock
from edge_runtime.connections.websocket import answer
from edge_runtime.schedules.actions import Load, Schedule
from edge_runtime.schedules.auto import auto
from edge_runtime.schedules.draft import draft
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.transcript import Transcript

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "lockstep": lockstep,
    "runahead": runahead,
    "runahead, 8 branches": partial(runahead, branches=8),
    "draft, 2": partial(draft, draft_tokens=2),
    "auto": auto,
}


class PacedCloud(RecordedCloud):
    """A recording that takes as long as `costs` says."""

    def __init__(self, recording: Recording, costs: CloudCosts) -> None:
        super().__init__(recording)
        self._costs = costs
        self.codec_called = lambda _: recording.codec

    def score(self, requests: Sequence[ScoreRequest]) -> list[Any]:
        """As `RecordedCloud`, after the modelled time of the whole pass."""
        began = time.monotonic()
        results = super().score(requests)
        load = Load(
            rows=len(requests),
            tokens=max(len(request.tokens) for request in requests),
            past=max(request.keep for request in requests),
        )
        left = began + self._costs.ms(load) / 1e3 - time.monotonic()
        if left > 0:
            time.sleep(left)
        return results


MakeLinks = Callable[[int], tuple[Link, Link]]


def links(rtt_ms: float, _: int = 0) -> tuple[Link, Link]:
    """Up and down with the rates of the profile `us-mobile`, and that round trip."""
    up, down = (Link(ConstantRate(mbps * 1e6), ConstantDelay(rtt_ms / 2)) for mbps in (11, 115))
    return up, down


def no_link(_: int) -> tuple[Link, Link]:
    """Nothing is held back."""
    up, down = (Link(ConstantRate(1e11), ConstantDelay(0.0)) for _ in range(2))
    return up, down


@dataclass(frozen=True, slots=True)
class Costs:
    """What is charged on both sides, ms."""

    device: DeviceCosts
    cloud: CloudCosts
    host: Host = NO_HOST

    def with_host(
        self, token_ms: float, pass_ms: float, row_ms: float, wait_ms: float, connect_ms: float
    ) -> Costs:
        """And what the host takes for a token, a pass, each further row of it (a frame to make,
        send and read), a frame waited for, a connection."""
        line = self.cloud
        return Costs(
            replace(self.device, steer_ms=self.device.steer_ms + token_ms),
            replace(line, step_ms=line.step_ms + pass_ms, ms_per_row=line.ms_per_row + row_ms),
            Host(wait_ms, connect_ms),
        )


async def real(
    make: Callable[..., Schedule],
    recording: Recording,
    line: MakeLinks,
    costs: Costs,
    gain: float | None = None,
) -> Transcript:
    """One answer over sockets; with `gain` 0 the device agrees with the cloud throughout."""
    with running(PacedCloud(recording, costs.cloud)) as server:
        async with shaped(line, TRANSPORT, (server.host, server.port)) as (_, (name, port)):
            schedule = make(RecordedDevice(recording, gain), recording.request())
            return await answer(paced(schedule, costs.device), f"ws://{name}:{port}")


def simulated(
    make: Callable[..., Schedule],
    recording: Recording,
    line: MakeLinks,
    costs: Costs,
    gain: float | None = None,
) -> Transcript:
    """The same answer in virtual time."""
    clock = Clock()
    uplink, downlink = line(0)
    exchange = Exchange(
        clock,
        make(RecordedDevice(recording, gain), recording.request()),
        recording.session(),
        uplink=uplink,
        downlink=downlink,
        device_costs=costs.device,
        engine=OwnGpu(clock, costs.cloud),
        transport=TRANSPORT,
        connect=True,
        host=costs.host,
    )
    exchange.start()
    clock.run()
    return exchange.result()


def charged(costs: Costs, recording: Recording) -> Costs:
    """`costs` and the host's own, from runs without a link: one that the device holds up, one that
    the cloud holds up, and one that waits for each frame."""
    quick_cloud, quick_device = CloudCosts(step_ms=2.0), DeviceCosts(step_ms=0.0)

    def extra(make: Callable[..., Schedule], costs: Costs) -> tuple[float, float]:
        took = asyncio.run(real(make, recording, no_link, costs, gain=0.0))
        ideal = simulated(make, recording, no_link, costs, gain=0.0)
        token_ms = float(np.median(took.token_ms) - np.median(ideal.token_ms))
        return max(0.0, token_ms), max(0.0, took.ttft_ms - ideal.ttft_ms)

    ahead = partial(runahead, window=16)
    token_ms, _ = extra(ahead, Costs(costs.device, quick_cloud))
    pass_ms, _ = extra(ahead, Costs(quick_device, costs.cloud))
    broad_ms, _ = extra(partial(ahead, branches=8), Costs(quick_device, costs.cloud))
    row_ms = max(0.0, broad_ms - pass_ms) / 7
    wait_ms, connect_ms = extra(lockstep, costs)
    wait_ms = max(0.0, wait_ms - token_ms - pass_ms)
    print(
        f"host, ms: {token_ms:.2f} a token, {pass_ms:.2f} a pass, {row_ms:.2f} a row, "
        f"{wait_ms:.2f} a frame waited for, {connect_ms:.1f} to connect\n"
    )
    return costs.with_host(token_ms, pass_ms, row_ms, wait_ms, connect_ms)


def figures(transcripts: list[Transcript]) -> tuple[float, float, float]:
    """Tokens/s after the first token; p50 and p95 of the time per token, ms."""
    times = np.concatenate([t.token_ms for t in transcripts])
    p50, p95 = np.percentile(times, [50, 95])
    return 1e3 / float(times.mean()), float(p50), float(p95)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("recordings", type=Path, nargs="+", help="files")
    options.add_argument("--rtt", type=float, default=60.0)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--device", default="snapdragon-8-elite-npu")
    options.add_argument("--weights-mb", type=float, default=494.0)
    options.add_argument("--cloud", default="a100-qwen2.5-7b")
    chosen = options.parse_args()
    found = [Recording.load(path, end_ids=(2, 151645, 151643)) for path in chosen.recordings]
    device_costs = device(chosen.device).costs(weights_mb=chosen.weights_mb, vocabulary=151_936)
    device_costs = replace(device_costs, prefill_ms_per_token=0.2)  # not what is compared here
    costs = Costs(device_costs, cloud(chosen.cloud).costs())
    with_host = charged(costs, found[0])
    line = partial(links, chosen.rtt)
    print(
        "| schedule | tokens/s real | simulated | error | p50 ms real | simulated | error "
        "| p95 ms real | simulated | error | tokens |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    rounds: dict[str, list[list[Transcript]]] = {name: [] for name in SCHEDULES}
    for _ in range(chosen.rounds):  # interleaved, so that a noisy minute hits every schedule
        for name, make in SCHEDULES.items():
            rounds[name].append([asyncio.run(real(make, r, line, costs)) for r in found])
    for name, make in SCHEDULES.items():
        virtual = [simulated(make, r, line, with_host) for r in found]
        measured = np.median([figures(runs) for runs in rounds[name]], axis=0)
        same = all(
            t.tokens == v.tokens
            for runs in rounds[name]
            for t, v in zip(runs, virtual, strict=True)
        )
        cells = " | ".join(
            f"{real_one:.1f} | {ours:.1f} | {(ours - real_one) / real_one:+.1%}"
            for real_one, ours in zip(measured, figures(virtual), strict=True)
        )
        print(f"| {name} | {cells} | {'same' if same else 'OTHER'} |", flush=True)


if __name__ == "__main__":
    main()
