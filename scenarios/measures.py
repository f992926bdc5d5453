"""What the cells of a study measure.

time      one answer over a simulated link: when each token came, and what it cost
quality   a reference answer, teacher-forced: how likely the method finds it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scenarios.models import LocalModels, Models, export_if_needed
from scenarios.plans import plan_of
from scenarios.run import link_of, machines_of, run_cell
from scenarios.spec import Cell

QUALITY_TOKENS = 1500
"""Longest prompt and reference together of a quality cell."""


class Measures:
    """Runs groups of cells of any kind; what it opens it keeps for the next group."""

    def __init__(self, folder: Path, models: Models | None = None) -> None:
        self._folder = folder
        self._models = models or LocalModels(folder / "tapes")
        self._pairs: dict[tuple[str, str], Any] = {}

    def run(self, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
        """Each cell's result as plain values: `row`, and `tokens` where there is an answer."""
        if cells[0].measure == "quality":
            yield from map(self._quality, cells)
            return
        for cell in cells:
            if cell.measure == "fleet":
                yield self._fleet(cell)
                continue
            result = run_cell(cell, self._models)
            yield {"row": result.row, "tokens": result.tokens}
        if isinstance(self._models, LocalModels):
            self._models.keep()

    def _fleet(self, cell: Cell) -> dict[str, Any]:
        """Phones that all give the cell's answer, recorded once, to one cloud that batches."""
        from cloud_sim.sim.fleet import fleet, poisson
        from cloud_sim.sim.machines import cloud

        machines = machines_of(cell, self._models)
        alone = run_cell(cell, self._models, machines)
        replay = self._models.replay(cell)
        # From here on only the recording: what a cloud guesses beyond it is stood in for.
        replay.cloud = replay.branches = None
        link = link_of(cell)
        result = fleet(
            poisson(cell.devices, cell.arrivals_per_s, cell.seed),
            [replay],
            network=link,
            device_costs=machines.device,
            roofline=cloud(cell.cloud).roofline(),
            schedule=plan_of(cell.schedule).make,
            max_tokens=cell.max_tokens,
            seed=cell.seed,
        )
        row = {
            "case": cell.case.id,
            "method": cell.method,
            "codec": cell.codec,
            "schedule": cell.schedule,
            "profile": cell.network,
            "rtt_ms": cell.rtt_ms,
            "device_profile": cell.device,
            "cloud_profile": cell.cloud,
            "devices": cell.devices,
            "arrivals_per_s": cell.arrivals_per_s,
            "seed": cell.seed,
            "alone_token_ms_p50": alone.row["token_ms_p50"],
            "virtual": True,
            "stand_ins": replay.stand_ins,
            **result.row(),
        }
        return {"row": row}

    def _quality(self, cell: Cell) -> dict[str, Any]:
        """The method on the case's reference, and the two ends of the gap on the same tokens."""
        from edge_runtime.steering import method
        from edge_runtime.weights import cache_dir
        from scenarios.evaluate import predictions
        from scenarios.methods import score
        from scenarios.pair import Lengths
        from scenarios.predictions import Store

        pair = self._pair(cell.bundle, cell.cloud_model)
        lengths = Lengths()
        kept = predictions(
            pair.cut(cell.case, lengths), pair, lengths, Store(cache_dir() / "evaluate")
        )
        ends = {name: score(method(name), kept) for name in ("cloud-only", "upload")}
        rule = method(cell.method, cell.gain)
        result = score(rule, kept)
        row = {
            "case": cell.case.id,
            "method": cell.method,
            "gain": rule.gain,
            "bundle": cell.bundle,
            "cloud_model": cell.cloud_model,
            "seed": cell.seed,
            "nll": result.nll,
            "tokens": result.tokens,
            "kl_upload": result.kl_upload,
            "top1_upload": result.top1_upload,
            "diverged": result.diverged,
            "cloud_nll": ends["cloud-only"].nll,
            "upload_nll": ends["upload"].nll,
            "origin": {"nll": "measured"},
        }
        return {"row": row}

    def _pair(self, bundle: str, cloud_model: str) -> Any:
        from scenarios.pair import open_pair

        key = (bundle, cloud_model)
        if key not in self._pairs:
            device = bundle if bundle.startswith("float:") else str(export_if_needed(bundle))
            self._pairs[key] = open_pair(device, cloud_model, max_length=QUALITY_TOKENS)
        return self._pairs[key]
