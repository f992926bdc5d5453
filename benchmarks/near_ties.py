"""Do the schedules emit the same tokens when real models really run? (docs/schedules.md)

    python -m benchmarks.near_ties --cloud LARGE --device SMALL --data COGENESIS.jsonl --cases 6

The schedules' logic is proven on models in float64. Real ones sum in another order when they score
several positions at once, or several rows, so a near tie may fall the other way; from there on
two greedy answers have nothing to do with each other. So each first difference is shown with its
margin: by how much the steered best token led the second best, in nats. At most 1e-3 is a near tie;
more would be a bug. In memory, without a network; the cloud's frames take some turns to arrive, so
that it runs ahead and rolls back.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cloud_sim.live.llm import TransformersModel
from cloud_sim.live.load import load
from cloud_sim.live.ragged import ATTENTION
from cloud_sim.session import session
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import Faults, run_direct
from edge_runtime.device import SteeredDevice
from edge_runtime.rules import method
from edge_runtime.schedules.actions import Schedule
from edge_runtime.schedules.draft import draft
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.text import Text
from edge_runtime.transcript import Transcript
from scenarios.models.branches import ModelBranches

SCHEDULES: dict[str, Callable[[SteeredDevice, Request], Schedule]] = {
    "lockstep": lockstep,
    "runahead": partial(runahead, window=6),
    "runahead b=4": partial(runahead, window=6, branches=4),
    "draft n=3": partial(draft, draft_tokens=3),
}
NEAR_TIE = 1e-3


def case(line: str, text: Text, note_tokens: int) -> tuple[str, str, str]:
    """Name, query and note of a line of the data; a longer note is cut."""
    found = json.loads(line)
    query = found["input"].strip()
    note = found["personalized_input"].rstrip().removesuffix(query).rstrip()
    return found["id"], query, text.decode(text.encode(note)[:note_tokens])


def differ(ours: Transcript, lockstep_run: Transcript) -> tuple[int, float] | None:
    """Position and lockstep's margin (nats) of the first token that is another; None: all equal."""
    pairs = zip(ours.records, lockstep_run.records, strict=False)
    for position, (one, other) in enumerate(pairs):
        if one.token != other.token:
            assert other.decision is not None
            return position, other.decision.margin
    return None


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cloud", required=True)
    options.add_argument("--device", required=True)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--cases", type=int, default=6)
    options.add_argument("--skip", type=int, default=0)
    options.add_argument("--tokens", type=int, default=48)
    options.add_argument("--note-tokens", type=int, default=200)
    options.add_argument("--gain", type=float, default=1.0)
    options.add_argument("--dtype", default="float32")
    chosen = options.parse_args()
    loaded = load(chosen.cloud, dtype=chosen.dtype, attention=ATTENTION)
    cloud = TransformersModel(loaded)
    same = chosen.device == chosen.cloud
    other = loaded if same else load(chosen.device, dtype=chosen.dtype, attention=ATTENTION)
    small = TransformersModel(other)
    branches = ModelBranches(small)
    lines = chosen.data.read_text(encoding="utf-8").splitlines()
    lines = lines[chosen.skip : chosen.skip + chosen.cases]
    differences: dict[str, list[str]] = {name: [] for name in SCHEDULES}
    worst, tokens = 0.0, 0
    for line in lines:
        name, query, note = case(line, loaded.text, chosen.note_tokens)
        request = Request(query, cloud.vocabulary, codec("topk:64"), chosen.tokens)
        runs: dict[str, Transcript] = {}
        for schedule, make in SCHEDULES.items():
            began = time.perf_counter()
            prompts = loaded.text.prompts(query, note)
            rule = method("costeer", chosen.gain)
            device = SteeredDevice(branches, prompts, rule, end_ids=cloud.end_ids)
            delay = Faults(delay_ticks=8)
            runs[schedule] = run_direct(make(device, request), session(cloud), faults=delay)
            found = differ(runs[schedule], runs["lockstep"])
            if found is not None:
                position, margin = found
                worst = max(worst, margin)
                differences[schedule].append(f"{name} at {position}, {margin:.1e}")
            took = time.perf_counter() - began
            print(
                f"{name} {schedule}: {len(runs[schedule].records)} tokens, {found}, {took:.0f} s",
                flush=True,
            )
        tokens += len(runs["lockstep"].records)
    print(f"\n{len(lines)} answers, {tokens} tokens, gain {chosen.gain:.3g}, {chosen.dtype}\n")
    print("| schedule | answers that differ | first differences: case, position, margin (nats) |")
    print("|---|---|---|")
    for schedule, found_all in list(differences.items())[1:]:
        print(f"| {schedule} | {len(found_all)} of {len(lines)} | {'; '.join(found_all)} |")
    verdict = "each a near tie" if worst <= NEAR_TIE else f"NOT near ties: up to {worst:.2g}"
    print(f"\nFirst differences: {verdict if worst else 'none'}")


if __name__ == "__main__":
    main()
