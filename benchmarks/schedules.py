"""Every schedule over the same recorded answers: speed, waste, bytes (docs/schedules.md).

    python -m benchmarks.schedules RECORDINGS [--device oneplus-12] [--rtt 35 60] [--json OUT]

Links are those of the `lte` profile for round trips up to 40 ms and of `us-mobile` above, with the
round trip set; the cloud's pass is a published one. Times are virtual, tokens are those of the
recording under every schedule, or it says so. Speed is tokens after the first over the time they
took, summed over the answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recordings import NO_DEVICE, RecordedDevice, Recording
from cloud_sim.net.catalogue import network
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.machines import cloud, device
from cloud_sim.sim.simulate import simulate
from edge_runtime.schedules.actions import Schedule
from edge_runtime.schedules.auto import auto
from edge_runtime.schedules.draft import draft
from edge_runtime.schedules.gates import gate
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.transcript import Transcript

Make = Callable[[RecordedDevice, Recording], Schedule]

SCHEDULES: dict[str, Make] = {
    "lockstep": lambda d, r: lockstep(d, r.request()),
    **{
        f"runahead w={w or 'auto'} b={b}": lambda d, r, w=w, b=b: runahead(  # type: ignore[misc]
            d, r.request(), window=w, branches=b
        )
        for w, b in ((4, 1), (8, 1), (16, 1), (0, 1), (0, 2), (0, 4), (0, 8), (0, 16))
    },
    **{
        f"draft n={n or 'auto'}": lambda d, r, n=n: draft(  # type: ignore[misc]
            d, r.request(), draft_tokens=n
        )
        for n in (0, 2, 4)
    },
    "auto": lambda d, r: auto(d, r.request()),
}
PLAIN = "plain streaming"


@dataclass(frozen=True, slots=True)
class Row:
    """One schedule over all answers of a gain."""

    schedule: str
    gain: float
    rtt_ms: float
    tokens_per_s: float
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


def summary(name: str, gain: float, rtt_ms: float, runs: list[tuple[Recording, Transcript]]) -> Row:
    """The row of one schedule."""
    transcripts = [transcript for _, transcript in runs]
    tokens = sum(len(t.records) for t in transcripts)
    spent = sum(float(t.token_ms.sum()) for t in transcripts)
    counted = {
        key: sum(t.counters.get(key, 0) for t in transcripts)
        for key in ("wasted_cloud_tokens", "drafted", "accepted")
    }
    return Row(
        schedule=name,
        gain=gain,
        rtt_ms=rtt_ms,
        tokens_per_s=1e3 * (tokens - len(runs)) / spent,
        same_tokens=float(np.mean([t.tokens == r.tokens for r, t in runs])),
        round_trips=100 * sum(t.round_trips for t in transcripts) / tokens,
        wasted=counted["wasted_cloud_tokens"] / tokens,
        up_bytes=sum(t.uplink_bytes for t in transcripts) / tokens,
        down_bytes=sum(t.downlink_bytes for t in transcripts) / tokens,
        accepted=counted["accepted"] / max(1, counted["drafted"]),
    )


def agreement(recordings: list[Recording]) -> dict[int, float]:
    """Share of positions whose token is among the cloud's best m."""
    ranks = []
    for recording in recordings:
        for token, payload in zip(recording.tokens, recording.payloads, strict=True):
            base = recording.codec.decode(payload)
            order = np.lexsort((base.ids, -base.logprobs))
            ranks.append(int(np.flatnonzero(base.ids[order] == token)[0]))
    return {m: float(np.mean(np.array(ranks) < m)) for m in (1, 2, 3, 4, 8)}


def gates(recordings: list[Recording], costs: DeviceCosts) -> list[dict[str, Any]]:
    """What each gate saves on the way of the ungated answer, and how far it moves the policy."""
    rows = []
    for name in ("latch", "reopen"):
        gated, moved, spent, tokens = 0, 0.0, 0.0, 0
        changed = 0
        for recording in recordings:
            barrier, missed = gate(name), 0
            for at, payload in enumerate(recording.payloads):
                base = recording.codec.decode(payload)
                tokens += 1
                if barrier.steers(base):
                    catching_up = costs.chunk_ms_per_token * missed
                    spent += costs.step_ms + catching_up
                    missed = 0
                    continue
                gated, missed = gated + 1, missed + 1
                delta = recording.scores[at][0] - recording.scores[at][1]
                before = base.logprobs.astype(np.float64)
                before -= np.log(np.exp(before).sum())
                steered = before + recording.gain * delta
                steered -= steered.max() + np.log(np.exp(steered - steered.max()).sum())
                moved += float((np.exp(steered) * (steered - before)).sum())
                changed += base.best != recording.tokens[at]
        rows.append(
            {
                "gate": name,
                "gated": gated / tokens,
                "device_ms_saved": 1 - spent / (tokens * costs.step_ms),
                "kl_nats_per_token": moved / tokens,
                "tokens_changed": changed / tokens,
            }
        )
    return rows


def table(rows: list[Row], plain: dict[float, float]) -> str:
    """The rows as Markdown."""
    lines = [
        "| schedule | tokens/s | x lockstep | of plain | round trips /100 | wasted | up B | down B "
        "| kept drafts | same |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    base = next(row.tokens_per_s for row in rows if row.schedule == "lockstep")
    for row in rows:
        accepted = f"{row.accepted:.2f}" if row.accepted else ""
        lines.append(
            f"| {row.schedule} | {row.tokens_per_s:.1f} | {row.tokens_per_s / base:.2f} "
            f"| {row.tokens_per_s / plain[row.rtt_ms]:.2f} | {row.round_trips:.1f} "
            f"| {row.wasted:.2f} | {row.up_bytes:.0f} | {row.down_bytes:.0f} "
            f"| {accepted} | {row.same_tokens:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("recordings", type=Path)
    options.add_argument("--device", default="snapdragon-8-elite-npu")
    options.add_argument("--weights-mb", type=float, default=494.0, help="of the small model, int8")
    options.add_argument("--cloud", default="a100-qwen2.5-7b")
    options.add_argument("--rtt", type=float, nargs="+", default=[35.0, 60.0])
    options.add_argument("--only", default="", help="schedules whose name contains this")
    options.add_argument("--answers", type=int, help="of each gain, at most")
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    device_costs = device(chosen.device).costs(weights_mb=chosen.weights_mb, vocabulary=151_936)
    cloud_costs = cloud(chosen.cloud).costs()
    found = [Recording.load(path) for path in sorted(chosen.recordings.glob("*.npz"))]
    report: list[dict[str, Any]] = []
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
        for row in gates(recordings, device_costs):
            print(row)
            report.append({"gain": gain, **row})
        plain: dict[float, float] = {}
        for rtt in chosen.rtt:
            streamed = [
                (r, run(r, SCHEDULES["runahead w=16 b=1"], rtt, NO_DEVICE, cloud_costs, 0.0))
                for r in recordings
            ]
            plain[rtt] = summary(PLAIN, gain, rtt, streamed).tokens_per_s
            rows = []
            for name, make in SCHEDULES.items():
                if chosen.only in name or name == "lockstep":
                    runs = [(r, run(r, make, rtt, device_costs, cloud_costs)) for r in recordings]
                    rows.append(summary(name, gain, rtt, runs))
            print(f"\ngain {gain:.3g}, round trip {rtt:g} ms, {PLAIN} {plain[rtt]:.1f} tokens/s\n")
            print(table(rows, plain))
            report += [
                {name: getattr(row, name) for name in Row.__slots__} | {"plain": plain[rtt]}
                for row in rows
            ]
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
