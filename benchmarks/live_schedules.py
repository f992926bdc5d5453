"""Each schedule over real sockets through the shaper, against its simulation (docs/validation.md).

    python -m benchmarks.live_schedules RECORDINGS [--rtt 60] [--rounds 3]

Real: driver, WebSocket, shaper, server and session on loopback; both models are a recording
(`benchmarks.record_answers`), and where one would compute, the real side sleeps for what the cost
model charges: a published phone and a published cloud. Simulated: the same generators in SimPy.
What threads, event loops, sockets and sessions take is measured where no link is and charged
(`HostCosts`). Server and device run in processes of their own.
Frames that run-ahead sends in vain depend on who is first by a millisecond, so bytes may differ
there; tokens may not. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.recorded_server import Pass, Served, served
from benchmarks.recordings import RecordedDevice, Recording
from cloud_sim.net.links import ConstantDelay, Link
from cloud_sim.net.rates import ConstantRate
from cloud_sim.net.shaper import shaped
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.engine import OwnGpu
from cloud_sim.sim.exchange import NO_HOST, Exchange, Host
from cloud_sim.sim.machines import cloud, device
from cloud_sim.sim.validate import TRANSPORT, paced
from cloud_sim.sim.waiting import Clock
from edge_runtime.connections.websocket import answer
from edge_runtime.schedules.actions import Schedule
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

    def with_host(self, host: HostCosts) -> Costs:
        """And what the host takes."""
        line = self.cloud
        return Costs(
            replace(self.device, steer_ms=self.device.steer_ms + host.token_ms),
            replace(
                line,
                step_ms=line.step_ms + host.pass_ms,
                ms_per_row=line.ms_per_row + host.row_ms,
            ),
            Host(host.wait_ms, host.frame_ms, host.connect_ms),
        )


@dataclass(frozen=True, slots=True)
class HostCosts:
    """What threads, event loops, sockets and the session's own work take, ms."""

    token_ms: float
    """On the device, per token."""
    frame_ms: float
    """On the device, per frame that comes down."""
    wait_ms: float
    """On the device, per frame that it waits for."""
    connect_ms: float
    pass_ms: float
    """In the cloud, per pass: from its end to the beginning of the next."""
    row_ms: float
    """In the cloud, per further row of a pass: to think of it and to send its frame."""


async def real(
    make: Callable[..., Schedule],
    recording: Recording,
    line: MakeLinks,
    costs: Costs,
    server: Served,
    gain: float | None = None,
) -> Transcript:
    """One answer over sockets; with `gain` 0 the device agrees with the cloud throughout."""
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


def host_costs(costs: Costs, recording: Recording) -> HostCosts:
    """Measured where no link is, in three situations: the device holds everything up, the cloud
    does, and they wait for each other. The links and schedules to be compared play no part."""
    ahead, broad = partial(runahead, window=16), partial(runahead, window=16, branches=8)
    quick_device, quick_cloud = DeviceCosts(step_ms=0.0), CloudCosts(step_ms=2.0)

    def extra(
        make: Callable[..., Schedule], costs: Costs, server: Served, gain: float | None
    ) -> tuple[Transcript, float, float]:
        took = asyncio.run(real(make, recording, no_link, costs, server, gain))
        ideal = simulated(make, recording, no_link, costs, gain)
        token_ms = float(np.median(took.token_ms) - np.median(ideal.token_ms))
        return took, max(0.0, token_ms), max(0.0, took.ttft_ms - ideal.ttft_ms)

    held_up = Costs(costs.device, quick_cloud)
    with served(recording, quick_cloud) as server:
        one, token_ms, _ = extra(ahead, held_up, server, 0.0)
        many, all_ms, _ = extra(broad, held_up, server, None)
    frames = (many.downlink_frames - one.downlink_frames) / len(recording.tokens)
    frame_ms = max(0.0, all_ms - token_ms) / frames
    with served(recording, costs.cloud) as server:
        server_holds_up = Costs(quick_device, costs.cloud)
        for _ in range(3):
            asyncio.run(real(broad, recording, no_link, server_holds_up, server))
        pass_ms, row_ms = between_passes(server.passes())
        _, wait_ms, connect_ms = extra(lockstep, costs, server, 0.0)
    wait_ms = max(0.0, wait_ms - token_ms - pass_ms)
    return HostCosts(token_ms, frame_ms, wait_ms, connect_ms, pass_ms, row_ms)


def between_passes(passes: Sequence[Pass]) -> tuple[float, float]:
    """What passes that follow each other take beyond their cost: with one row, and with each
    further one. Medians, since a session that has nothing to guess waits as well."""
    beyond: dict[int, list[float]] = {}
    for this, after in pairwise(passes):
        beyond.setdefault(this.rows, []).append(after.began_ms - this.began_ms - this.cost_ms)
    rows = np.array(sorted(beyond))
    medians = [np.median(beyond[n]) for n in rows]
    weights = [math.sqrt(len(beyond[n])) for n in rows]
    row_ms, pass_ms = np.polyfit(rows - 1, medians, 1, w=weights)
    return float(pass_ms), max(0.0, float(row_ms))


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
    found = [Recording.load(path) for path in chosen.recordings]
    device_costs = device(chosen.device).costs(weights_mb=chosen.weights_mb, vocabulary=151_936)
    device_costs = replace(device_costs, prefill_ms_per_token=0.2)  # not what is compared here
    costs = Costs(device_costs, cloud(chosen.cloud).costs())
    host = host_costs(costs, found[0])
    print("host, ms:", ", ".join(f"{name} {ms:.2f}" for name, ms in asdict(host).items()), "\n")
    with_host = costs.with_host(host)
    line = partial(links, chosen.rtt)
    print(
        "| schedule | tokens/s real | simulated | error | p50 ms real | simulated | error "
        "| p95 ms real | simulated | error | tokens |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    rounds: dict[str, list[list[Transcript]]] = {name: [] for name in SCHEDULES}
    with ExitStack() as stack:
        servers = [stack.enter_context(served(r, costs.cloud)) for r in found]
        for _ in range(chosen.rounds):  # interleaved, so that a noisy minute hits every schedule
            for name, make in SCHEDULES.items():
                runs = [
                    asyncio.run(real(make, recording, line, costs, server))
                    for recording, server in zip(found, servers, strict=True)
                ]
                rounds[name].append(runs)
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
