"""Every schedule over the same recorded answers: speed, waste, bytes (docs/schedules.md).

    python -m benchmarks.schedules RECORDINGS [--device oneplus-12] [--rtt 35 60] [--csv OUT]

Links are those of the `lte` profile for round trips up to 40 ms and of `us-mobile` above, with the
round trip set; the cloud's pass is a published one. Times are virtual, tokens are those of the
recording under every schedule, or it says so. Speed is tokens after the first over the time they
took, summed over the answers; the ratios have 90 % bootstrap intervals over answers.
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agreement import agreement, gates
from benchmarks.recordings import NO_DEVICE, RecordedDevice, Recording
from cloud_sim.net.catalogue import network
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.machines import cloud, device
from cloud_sim.sim.simulate import simulate
from edge_runtime.files import write_whole
from edge_runtime.schedules.actions import Schedule
from edge_runtime.schedules.auto import auto
from edge_runtime.schedules.draft import draft
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.transcript import Transcript
from scenarios.metrics import Estimate, ratio

Make = Callable[[RecordedDevice, Recording], Schedule]

SCHEDULES: dict[str, Make] = {
    "lockstep": lambda d, r: lockstep(d, r.request()),
    **{
        f"runahead w={w or 'auto'} b={b}": lambda d, r, w=w, b=b: runahead(  # type: ignore[misc]
            d, r.request(), window=w, branches=b
        )
        for w, b in ((4, 1), (8, 1), (0, 1), (0, 2), (0, 4), (0, 8), (0, 12), (0, 16))
    },
    **{
        f"draft n={n or 'auto'}": lambda d, r, n=n: draft(  # type: ignore[misc]
            d, r.request(), draft_tokens=n
        )
        for n in (0, 2, 4)
    },
    "auto": lambda d, r: auto(d, r.request()),
}
PLAIN: Make = lambda d, r: runahead(d, r.request(), window=16)  # noqa: E731
"""The cloud's own answer, streamed: with a device of gain 0 that takes no time."""


@dataclass(frozen=True, slots=True)
class Row:
    """One schedule over all answers of a gain."""

    schedule: str
    gain: float
    rtt_ms: float
    tokens_per_s: float
    x_lockstep: Estimate
    of_plain: Estimate
    same_tokens: float
    """Share of answers with the recorded tokens."""
    round_trips: float
    """Per 100 tokens."""
    wasted: float
    """Cloud predictions computed in vain, per emitted token."""
    up_bytes: float
    down_bytes: float
    accepted: float
    """Drafts kept, of those proposed."""


def run(
    recording: Recording,
    make: Make,
    rtt_ms: float,
    device_costs: DeviceCosts,
    cloud_costs: CloudCosts,
    gain: float | None = None,
) -> Transcript:
    """One answer in virtual time."""
    up, down = network("lte" if rtt_ms <= 40 else "us-mobile").with_rtt(rtt_ms).links(0)
    return simulate(
        make(RecordedDevice(recording, gain), recording),
        recording.session(),
        uplink=up,
        downlink=down,
        device_costs=device_costs,
        cloud_costs=cloud_costs,
    )


def summary(
    name: str,
    rtt_ms: float,
    recordings: list[Recording],
    runs: list[Transcript],
    lockstep_ms: list[float],
    plain_ms: list[float],
) -> Row:
    """The row of one schedule; `lockstep_ms` and `plain_ms` are those schedules' `spent`."""
    tokens = sum(len(t.records) for t in runs)
    took = spent(runs)
    counted = {
        key: sum(t.counters.get(key, 0) for t in runs)
        for key in ("wasted_cloud_tokens", "drafted", "accepted")
    }
    return Row(
        schedule=name,
        gain=recordings[0].gain,
        rtt_ms=rtt_ms,
        tokens_per_s=1e3 * (tokens - len(runs)) / sum(took),
        x_lockstep=ratio(lockstep_ms, took),
        of_plain=ratio(plain_ms, took),
        same_tokens=float(
            np.mean([t.tokens == r.tokens for r, t in zip(recordings, runs, strict=True)])
        ),
        round_trips=100 * sum(t.round_trips for t in runs) / tokens,
        wasted=counted["wasted_cloud_tokens"] / tokens,
        up_bytes=sum(t.uplink_bytes for t in runs) / tokens,
        down_bytes=sum(t.downlink_bytes for t in runs) / tokens,
        accepted=counted["accepted"] / max(1, counted["drafted"]),
    )


def spent(runs: list[Transcript]) -> list[float]:
    """Milliseconds after the first token, by answer."""
    return [float(t.token_ms.sum()) for t in runs]


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| schedule | tokens/s | x lockstep | of plain | round trips /100 | wasted | up B | down B "
        "| kept drafts | same |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        accepted = f"{row.accepted:.2f}" if row.accepted else ""
        x, plain = row.x_lockstep, row.of_plain
        lines.append(
            f"| {row.schedule} | {row.tokens_per_s:.1f} "
            f"| {x.value:.2f} [{x.low:.2f}, {x.high:.2f}] "
            f"| {plain.value:.3f} [{plain.low:.3f}, {plain.high:.3f}] | {row.round_trips:.1f} "
            f"| {row.wasted:.2f} | {row.up_bytes:.0f} | {row.down_bytes:.0f} "
            f"| {accepted} | {row.same_tokens:.0%} |"
        )
    return "\n".join(lines)


def flat(row: Row) -> dict[str, Any]:
    """The row with each interval as two columns of its own."""
    values: dict[str, Any] = {}
    for name in Row.__slots__:
        value = getattr(row, name)
        if isinstance(value, Estimate):
            values |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            values[name] = value
    return {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in values.items()}


def write_csv(path: Path, rows: list[Row], words: str) -> None:
    """All rows, after lines that say how and on what they were made."""
    text = io.StringIO()
    text.write(f"# python -m benchmarks.schedules {words}\n")
    text.write(
        f"# {datetime.now(tz=UTC):%Y-%m-%d}, Python {platform.python_version()}, numpy "
        f"{np.__version__}, {platform.machine()}; times are virtual, so the machine plays no part\n"
    )
    writer = csv.DictWriter(text, list(flat(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(flat, rows))
    write_whole(path, text.getvalue())


def measure(
    names: list[str],
    recordings: list[Recording],
    rtt_ms: float,
    device_costs: DeviceCosts,
    cloud_costs: CloudCosts,
) -> tuple[list[Row], float]:
    """The rows of the schedules `names` (lockstep among them), and plain streaming's tokens/s."""
    runs = {
        name: [run(r, SCHEDULES[name], rtt_ms, device_costs, cloud_costs) for r in recordings]
        for name in names
    }
    streamed = [run(r, PLAIN, rtt_ms, NO_DEVICE, cloud_costs, gain=0.0) for r in recordings]
    lockstep_ms, plain_ms = spent(runs["lockstep"]), spent(streamed)
    rows = [
        summary(name, rtt_ms, recordings, made, lockstep_ms, plain_ms)
        for name, made in runs.items()
    ]
    gaps = sum(len(recording.tokens) - 1 for recording in recordings)
    return rows, 1e3 * gaps / sum(plain_ms)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("recordings", type=Path)
    options.add_argument("--device", default="snapdragon-8-elite-npu")
    options.add_argument("--weights-mb", type=float, default=494.0, help="of the small model, int8")
    options.add_argument("--cloud", default="a100-qwen2.5-7b")
    options.add_argument("--rtt", type=float, nargs="+", default=[35.0, 60.0])
    options.add_argument("--only", nargs="+", default=[], help="these schedules, and lockstep")
    options.add_argument("--answers", type=int, help="of each gain, at most")
    options.add_argument("--csv", type=Path, help="write all rows here")
    chosen = options.parse_args()
    wrong = set(chosen.only) - set(SCHEDULES)
    if wrong:
        options.error(f"no such schedule (got {', '.join(wrong)}; allowed {', '.join(SCHEDULES)})")
    names = [name for name in SCHEDULES if name in {"lockstep", *(chosen.only or SCHEDULES)}]
    device_costs = device(chosen.device).costs(weights_mb=chosen.weights_mb, vocabulary=151_936)
    cloud_costs = cloud(chosen.cloud).costs()
    found = [Recording.load(path) for path in sorted(chosen.recordings.glob("*.npz"))]
    report: list[Row] = []
    print(
        f"{chosen.device}: step {device_costs.step_ms:.1f} ms, cloud {cloud_costs.step_ms:.1f} ms"
    )
    for gain in sorted({recording.gain for recording in found}):
        recordings = [recording for recording in found if recording.gain == gain]
        recordings = recordings[: chosen.answers]
        count = sum(len(recording.tokens) for recording in recordings)
        among = agreement(recordings)
        print(
            f"\ngain {gain:.3g}: {len(recordings)} answers, {count} tokens; the token is among the"
        )
        print("cloud's best m: " + ", ".join(f"{m}: {share:.1%}" for m, share in among.items()))
        for gated in gates(recordings, device_costs):
            print(gated)
        for rtt in chosen.rtt:
            rows, plain = measure(names, recordings, rtt, device_costs, cloud_costs)
            print(f"\ngain {gain:.3g}, round trip {rtt:g} ms, plain {plain:.1f} tokens/s\n")
            print(table(rows), flush=True)
            report += rows
    if chosen.csv:
        words = [word for word in sys.argv[1:] if word != str(chosen.recordings)]
        write_csv(chosen.csv, report, shlex.join(["RECORDINGS", *words]))


if __name__ == "__main__":
    main()
