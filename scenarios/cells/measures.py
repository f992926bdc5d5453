"""What the cells of a study measure.

time      one answer over a simulated link: when each token came, and what it cost
quality   a reference answer, teacher-forced: how likely the method finds it
both      both in one row: the price and the worth of the same setting (codec included)
fleet     many phones, each with that answer, on one cloud
codec     what a codec does to a prediction: bytes, time to encode, the steered token, the gap
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_runtime.candidates import codec
from edge_runtime.rules import method
from edge_runtime.tuned import reads_notes
from edge_runtime.weights import cache_dir
from scenarios.cells.recordings import RecordedPair
from scenarios.models.opened import LocalModels, Models, export_if_needed
from scenarios.plans import plan_of
from scenarios.run import Result, link_of, machines_of, run_cell
from scenarios.spec import Cell

CLOUD_DTYPE = "float16"
"""Nearer to float32 than bfloat16 is (docs/quality.md)."""
QUALITY_TOKENS = 1500
"""Longest prompt and reference together of a quality cell."""


_TOLD = ("query", "context", "aware", "reference", "facts")
"""Of a case: what the figures of an answer to it depend on."""


class Measures:
    """Runs groups of cells of any kind; what it opens it keeps for the next group."""

    def __init__(self, folder: Path, models: Models | None = None) -> None:
        self._own = models
        self._local = LocalModels(folder / "tapes")
        self._recorded = RecordedPair()
        self._pairs: dict[tuple[str, ...], Any] = {}
        self._clouds: dict[str, Any] = {}
        self._worth: dict[tuple[object, ...], dict[str, Any]] = {}
        self._last: tuple[object, Any] = (None, None)

    def run(self, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
        """Each cell's result as plain values: `row`, and `tokens` where there is an answer."""
        measure = {
            "time": self._time,
            "quality": lambda cell: {"row": self._quality(cell)},
            "both": self._both,
            "fleet": self._fleet,
            "codec": self._codec,
        }[cells[0].measure]
        yield from map(measure, cells)
        self._local.keep()

    def _models(self, cell: Cell) -> Models:
        return self._own or (self._recorded if cell.recorded else self._local)

    def _time(self, cell: Cell) -> dict[str, Any]:
        result = run_cell(cell, self._models(cell))
        return {"row": result.row, "tokens": result.tokens}

    def _both(self, cell: Cell) -> dict[str, Any]:
        """The answer's row; the reference's figures, its tokens renamed; what the answer tells."""
        result = run_cell(cell, self._models(cell))
        quality = self._quality(cell)
        quality["reference_tokens"] = quality.pop("tokens")
        origin = {**quality.pop("origin"), **result.row["origin"]}
        row = {**quality, **result.row, "origin": origin, **self._told(cell, result)}
        return {"row": row, "tokens": result.tokens}

    def _fleet(self, cell: Cell) -> dict[str, Any]:
        """Phones that all give the cell's answer, recorded once, to one cloud that batches."""
        from cloud_sim.sim.arrivals import poisson
        from cloud_sim.sim.fleet import fleet
        from cloud_sim.sim.machines import cloud
        from cloud_sim.sim.serving import Batching

        models = self._models(cell)
        machines = machines_of(cell, models)
        alone = run_cell(cell, models, machines)
        replay = models.replay(cell)
        # From here on only the recording: what a cloud guesses beyond it is stood in for.
        replay.cloud = replay.branches = None
        link = link_of(cell)
        result = fleet(
            poisson(cell.devices, cell.arrivals_per_s, cell.seed),
            [replay],
            network=link,
            device_costs=machines.device,
            roofline=cloud(cell.cloud).roofline(),
            batching=Batching(kv_tokens=cloud(cell.cloud).kv_tokens()),
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
        # Over links and machines it is the same, and those cells come one after the other.
        key = (
            *(cell.case, cell.method, cell.gain, cell.bundle, cell.cloud_model, cell.align),
            *(cell.codec, cell.note_tokens, cell.reference_tokens, cell.measure),
        )
        if key not in self._worth:
            self._worth = {key: self._score(cell)}
        return {**self._worth[key], "seed": cell.seed}

    def _score(self, cell: Cell) -> dict[str, Any]:
        from scenarios.evaluate import predictions
        from scenarios.methods import score
        from scenarios.models.pair import Lengths
        from scenarios.models.predictions import Store

        pair = self._pair(cell)
        lengths = Lengths(cell.note_tokens, cell.reference_tokens)
        kept = predictions(
            pair.cut(cell.case, lengths), pair, lengths, Store(cache_dir() / "evaluate")
        )
        ends = {name: score(method(name), kept) for name in ("cloud-only", "upload")}
        rule = reads_notes(method(cell.method, cell.gain))
        # A study of quality alone asks what a rule is worth, whatever the wire loses.
        result = score(rule, kept, codec(cell.codec) if cell.measure == "both" else None)
        return {
            "case": cell.case.id,
            "method": cell.method,
            "gain": rule.gain,
            "bundle": cell.bundle,
            "cloud_model": cell.cloud_model,
            "align": cell.align,
            "nll": result.nll,
            "tokens": result.tokens,
            "kl_upload": result.kl_upload,
            "top1_upload": result.top1_upload,
            "diverged": result.diverged,
            "cloud_nll": ends["cloud-only"].nll,
            "upload_nll": ends["upload"].nll,
            "origin": {"nll": "measured"},
        }

    def _told(self, cell: Cell, result: Result) -> dict[str, Any]:
        """The answer itself: its likelihood with and without the note (nats, summed), and facts."""
        from scenarios.models.predictions import Store
        from scenarios.models.written import measure

        pair, ids = self._pair(cell), result.transcript.tokens
        store = Store(cache_dir() / "evaluate")
        asked = {name: getattr(cell.case, name) for name in _TOLD}
        key = store.key(what="told", ids=ids, **asked, **pair.identity)
        found = store.record(key)
        if found is None:
            found = measure(cell.case, pair, ids, result.row["text"], 0).record()
            store.keep_record(key, found)
        names = ("upload_logp", "cloud_logp", "facts", "of_facts", "note_facts")
        return {"answer_tokens": len(ids)} | {name: found[name] for name in names}

    def _codec(self, cell: Cell) -> dict[str, Any]:
        from scenarios.cells.codec_vectors import vectors
        from scenarios.cells.codecs import measure
        from scenarios.models.pair import Lengths
        from scenarios.models.predictions import Store

        pair = self._pair(cell)
        lengths = Lengths(cell.note_tokens, cell.reference_tokens)
        asked = (cell.case, cell.bundle, cell.cloud_model, lengths)
        if self._last[0] != asked:
            store = Store(cache_dir() / "evaluate")
            self._last = asked, vectors(pair, cell.case, lengths, cell.vectors, store)
        kept = self._last[1]
        row, clock = measure(cell, kept)
        return {"row": row, "clock": clock}

    def _pair(self, cell: Cell) -> Any:
        from scenarios.models.pair import open_cloud, open_pair

        if cell.cloud_model not in self._clouds:
            self._clouds[cell.cloud_model] = open_cloud(cell.cloud_model, CLOUD_DTYPE)
        key = (cell.bundle, cell.cloud_model, cell.align)
        if key not in self._pairs:
            bundle = cell.bundle
            device = bundle if bundle.startswith("float:") else str(export_if_needed(bundle))
            self._pairs[key] = open_pair(
                device,
                cell.cloud_model,
                cloud_dtype=CLOUD_DTYPE,
                max_length=QUALITY_TOKENS,
                align=cell.align,
                shared=self._clouds[cell.cloud_model],
            )
        return self._pairs[key]
