"""How fast the simulator is: one device over a trace link, fleets of 100 to 10,000, capacity.

    python -m benchmarks.bench_simulator                        all of it (two to four minutes)
    python -m benchmarks.bench_simulator --devices 100 1000     these fleets alone
    python -m benchmarks.bench_simulator --capacity   how many phones one cloud serves, by schedule

Each fleet runs in a process of its own, for its own peak memory; its time per token of a device,
divided by the smallest fleet's, shows whether time grows linearly. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

from cloud_sim.net.catalogue import network
from cloud_sim.net.links import ConstantDelay, Link
from cloud_sim.net.made_traces import convert, markov
from cloud_sim.net.streams import stream
from cloud_sim.sim.arrivals import poisson
from cloud_sim.sim.fleet import capacity, fleet, made_up_replays
from cloud_sim.sim.machines import cloud, device
from cloud_sim.sim.serving import Batching
from cloud_sim.sim.simulate import simulate
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead

TOKENS = 128
DIVERGENCE = 0.15
"""Share of steps at which steering changes the token (14-16 % measured at gain 0.476)."""


def single(rounds: int = 5, answers: int = 40) -> dict[str, float]:
    """Tokens per second of one device over a trace link, tape replay: the best of `rounds`."""
    up, down = (
        convert(markov([2, 10, 30], 2000, 60_000, stream(0, name)), "mahimahi")
        for name in ("up", "down")
    )
    (replay,) = made_up_replays(1, TOKENS, DIVERGENCE)
    phone, server = device("oneplus-12").costs(weights_mb=137.5), cloud("a100-qwen2.5-7b").costs()
    rates, by_cpu = [], []
    for _ in range(rounds):
        began, began_cpu, tokens = time.perf_counter(), time.process_time(), 0
        for _ in range(answers):
            transcript = simulate(
                lockstep(replay.device(), replay.request(TOKENS)),
                replay.session(),
                uplink=Link(up.as_rate(), ConstantDelay(25)),
                downlink=Link(down.as_rate(), ConstantDelay(25)),
                device_costs=phone,
                cloud_costs=server,
            )
            tokens += len(transcript.records)
        rates.append(tokens / (time.perf_counter() - began))
        by_cpu.append(tokens / (time.process_time() - began_cpu))
    return {
        "tokens_per_s": max(rates),
        "median_tokens_per_s": sorted(rates)[len(rates) // 2],
        "tokens_per_cpu_s": max(by_cpu),
    }


def one_fleet(devices: int) -> dict[str, float]:
    """Seconds and peak memory of a fleet that arrives at 4 answers a second."""
    began, began_cpu = time.perf_counter(), time.process_time()
    result = fleet(
        poisson(devices, 4.0, 0),
        made_up_replays(8, TOKENS, DIVERGENCE),
        network=network("lte"),
        device_costs=device("oneplus-12").costs(weights_mb=137.5),
        roofline=cloud("h100x2-llama-3.1-8b").roofline(),
        batching=Batching(rows=256, kv_tokens=cloud("h100x2-llama-3.1-8b").kv_tokens()),
        max_tokens=TOKENS,
    )
    seconds = time.perf_counter() - began
    cpu_s = time.process_time() - began_cpu
    assert result.answers == devices
    assert len(result.token_ms) == devices * (TOKENS - 1)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "devices": devices,
        "seconds": seconds,
        "peak_mb": peak_mb,
        "us_per_token": seconds * 1e6 / (devices * TOKENS),
        "cpu_us_per_token": cpu_s * 1e6 / (devices * TOKENS),
    }


def phones_per_gpu(target_ms: float = 100.0) -> dict[str, Any]:
    """Phones that answer at the same time with a p95 time per token within the target."""
    found: dict[str, Any] = {"target_ms": target_ms}
    schedules = {"lockstep": lockstep, "runahead": runahead}
    for name in ("a100-qwen2.5-7b", "h100x2-llama-3.1-8b", "h100x2-llama-3.3-70b"):
        line = cloud(name).roofline()
        batching = Batching(rows=256, kv_tokens=cloud(name).kv_tokens())
        for schedule, make in schedules.items():
            replays = made_up_replays(8, 48, DIVERGENCE)

            def run(
                phones: int,
                make: Any = make,
                line: Any = line,
                replays: Any = replays,
                batching: Batching = batching,
            ) -> Any:
                # All within a second: the phones are busy at the same time.
                return fleet(
                    poisson(phones, phones, 0),
                    replays,
                    network=network("lte"),
                    device_costs=device("oneplus-12").costs(weights_mb=137.5),
                    roofline=line,
                    batching=batching,
                    schedule=make,
                    max_tokens=48,
                )

            best = capacity(run, target_ms, most=1024)
            found[f"{name} {schedule}"] = {"phones": best.phones, "p95_ms": best.token_ms_p95}
            print(f"{name:>22} {schedule:>9}: {best.phones} phones", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--devices", type=int, nargs="*", default=[100, 300, 1000, 3000, 10_000], help="fleets"
    )
    parser.add_argument("--capacity", action="store_true")
    parser.add_argument("--fleet", type=int, help="one fleet of this many devices, as JSON")
    parser.add_argument("--json", action="store_true", help="accepted: the last line always is")
    options = parser.parse_args()
    if options.fleet:
        print(json.dumps(one_fleet(options.fleet)))
        return
    if options.capacity:
        print(json.dumps(phones_per_gpu()))
        return
    report: dict[str, Any] = {"single": single(), "fleets": []}
    print(f"one device: {report['single']['tokens_per_s']:,.0f} tokens/s", file=sys.stderr)
    for devices in options.devices:
        command = [sys.executable, "-m", "benchmarks.bench_simulator", "--fleet", str(devices)]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        report["fleets"].append(json.loads(shown))
        row = report["fleets"][-1]
        row["of_the_smallest"] = row["us_per_token"] / report["fleets"][0]["us_per_token"]
        print(
            f"{devices:>7} devices: {row['seconds']:6.1f} s, {row['peak_mb']:4.0f} MB, "
            f"{row['us_per_token']:.1f} us a token ({row['cpu_us_per_token']:.1f} of processor "
            f"time), {row['of_the_smallest']:.2f} times the smallest fleet's",
            file=sys.stderr,
            flush=True,
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
