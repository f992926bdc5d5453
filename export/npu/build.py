"""NPU targets: a transformers model into static graphs, context binaries and a host embedding.

    npu-qnn         8-bit weights in blocks of 32, fp16 activations; no calibration (v69 and up)
    npu-qnn-w8a16   8-bit weights per channel, 16-bit integer activations; calibrated (v68 and up)

Files written into the bundle: prefill.onnx, decode.onnx, head.onnx (static, for any provider),
weights.bin (their tensors, stored once), embedding.bin, and for each graph NAME_ctx.onnx with
NAME_ctx_qnn.bin (compiled for one SoC).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime.errors import UsageError
from edge_runtime.graphs.memory import rss_mb
from edge_runtime.npu.manifest import ROWS, NpuGraph, NpuSection
from export.npu.blocks import BLOCK, blocks_recipe
from export.npu.compile import Compiled, compile_graph
from export.npu.files import save_static, write_embedding
from export.npu.graph import Shape, decoder_graph, head_graph
from export.npu.model import StaticModel, static_model
from export.npu.socs import DEFAULT_SOC, NPU_TARGETS, Soc, soc
from export.tensors import TensorFile

EMBEDDING = "embedding.bin"
PLACEMENT = "placement.json"
"""Every node of every graph: provider, operator, name."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class NpuOptions:
    """What an NPU export fixes for good."""

    target: str = "npu-qnn"
    soc: Soc = field(default_factory=lambda: soc(DEFAULT_SOC))
    chunk: int = 64
    """Tokens of each row that a prefill call takes."""
    past: int = 512
    """Slots of keys and values: the longest prompt and answer together."""
    layers: int | None = None
    """Only the first so many blocks (for trials)."""
    compile: bool = True
    """False: static graphs only, for machines without the QNN plugin."""

    def __post_init__(self) -> None:
        if self.target not in NPU_TARGETS:
            raise UsageError(
                "--target", "no such NPU target", got=self.target, allowed=", ".join(NPU_TARGETS)
            )
        if self.target == "npu-qnn" and not self.soc.float16:
            raise UsageError(
                "--soc",
                f"{self.soc.name} has an integer-only NPU (v{self.soc.architecture})",
                todo="Use --target npu-qnn-w8a16 for it",
            )
        if not 1 < self.chunk <= self.past:
            raise UsageError(
                "--chunk", "must hold 2 tokens and fit in the past", got=self.chunk,
                allowed=f"2 to {self.past}",
            )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NpuBuild:
    """What `build` wrote: the manifest's part, and what compiling took, by graph."""

    section: NpuSection
    compiled: dict[str, Compiled]
    peak_rss_mb: float
    """The most that this process and a compiler beside it held together."""


def build(
    model: Any,
    folder: Path,
    options: NpuOptions = NpuOptions(),
    *,
    calibration: Sequence[Sequence[int]] | None = None,
    progress: Progress = lambda what: None,
) -> NpuBuild:
    """Write the NPU files of the transformers `model` into `folder`.

    `calibration` (needed by `npu-qnn-w8a16`): prompts as lists of token ids, see
    `export.npu.calibrate.shipped_prompts`. Raises `UsageError` for a model that cannot be built,
    and `EnvironmentFailure` when HTP does not take a graph whole.
    """
    static = static_model(model, layers=options.layers)
    write_embedding(static, folder / EMBEDDING)
    section: dict[str, Any] = {}
    if options.target == "npu-qnn":
        _write_blocks(static, folder, options, progress)
        section = {"recipe": "blocks", "kv": "float16", "mask_floor": -10000.0}
    else:
        from export.npu.w8a16 import write_w8a16

        section = write_w8a16(
            static,
            folder,
            chunk=options.chunk,
            past=options.past,
            prompts=calibration,
            progress=progress,
        )
    graphs = {name: NpuGraph(static=f"{name}.onnx") for name in ("prefill", "decode", "head")}
    compiled: dict[str, Compiled] = {}
    peak = 0.0
    if options.compile:
        for name, graph in graphs.items():
            progress(f"compiling {name} for {options.soc.name} (HTP v{options.soc.architecture})")
            held = rss_mb()
            made = compile_graph(folder / graph.static, folder / f"{name}_ctx.onnx", options.soc)
            compiled[name] = made
            peak = max(peak, round(held + made.peak_rss_mb, 1))
            graphs[name] = graph.model_copy(
                update={"context": made.context.name, "binary": made.binary.name}
            )
    if compiled:
        listed = {name: made.placement for name, made in compiled.items()}
        (folder / PLACEMENT).write_text(json.dumps(listed, indent=0) + "\n", encoding="utf-8")
    section |= graphs | {
        "soc": options.soc.name,
        "soc_number": options.soc.number,
        "architecture": f"v{options.soc.architecture}",
        "chunk": options.chunk,
        "past": options.past,
        "group": static.group,
        "embedding": EMBEDDING,
        "block": BLOCK,
        "inv_freq": [float(value) for value in static.inv_freq],
        "rope_scale": static.rope_scale,
        "coverage": {name: made.coverage for name, made in compiled.items()},
    }
    return NpuBuild(NpuSection(**section), compiled, peak)


def _write_blocks(
    static: StaticModel, folder: Path, options: NpuOptions, progress: Progress
) -> None:
    with TensorFile(folder) as tensors:
        for name, sequence in (("prefill", options.chunk), ("decode", 1)):
            progress(f"quantizing {name}")
            graph = decoder_graph(static, Shape(ROWS, sequence, options.past))
            save_static(blocks_recipe(graph), folder / f"{name}.onnx", tensors)
        progress("quantizing head")
        save_static(blocks_recipe(head_graph(static, ROWS)), folder / "head.onnx", tensors)
