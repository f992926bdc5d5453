"""The order of an NPU export: find, admit, load, build and compile, verify, finish."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_runtime.bundle import CHAT_TEMPLATE, REPORT, TOKENIZER, WEIGHTS, Bundle, BundleWriter
from edge_runtime.errors import EnvironmentFailure, UsageError
from edge_runtime.manifest import Manifest
from edge_runtime.memory import peak_rss_mb
from edge_runtime.qnn import available
from edge_runtime.text import Text
from export.mobile import brief, usability
from export.npu import NpuBuild, NpuOptions, build
from export.npu_calibrate import shipped_prompts
from export.npu_verify import verify_npu
from export.pipeline import Exported, Progress, admit, manifest_for, took
from export.recipes import Recipe
from export.shipped import shipped_texts
from export.sources import load_config, load_language, load_model, parameter_count, resolve
from export.tied import share_table
from export.verify import torch_reference

KV_BYTES = 2
"""A key or value at the graphs' edge: fp16, or a 16-bit level."""


def export_npu(
    model: str,
    out: str | Path,
    options: NpuOptions,
    *,
    replace: bool = False,
    allow_pickle: bool = False,
    verify: bool = True,
    simulate_cases: int = 1,
    progress: Progress | None = None,
) -> Exported:
    """Export `model` for an NPU into the folder `out`.

    Raises what `export.pipeline.export_bundle` raises, and `EnvironmentFailure` when the QNN
    plugin is absent or its compiler does not take a graph whole.
    """
    tell = progress or (lambda what, done: None)
    began = time.monotonic()
    if options.compile and not available():
        raise EnvironmentFailure(
            "export",
            f"--target {options.target} needs Qualcomm's compiler",
            todo="Install it (x86_64 Linux) with: pip install 'costeer-edge[npu]'",
        )
    writer = BundleWriter(out, replace=replace)
    source = resolve(model, allow_pickle=allow_pickle, progress=progress)
    config = load_config(source)
    chosen = Recipe(options.target, "", "block" if options.target == "npu-qnn" else "int8")
    admit(parameter_count(source), chosen, writer.out)
    if config.max_position_embeddings < options.past:
        raise UsageError(
            "--past",
            "the model was not made for so many positions",
            got=options.past,
            allowed=f"up to {config.max_position_embeddings}",
        )
    tell("reading the model", 0.05)
    language = load_language(source)
    loaded = load_model(source)
    with writer:
        (writer.path / CHAT_TEMPLATE).write_text(language.template, encoding="utf-8")
        language.tokenizer.save(str(writer.path / TOKENIZER), pretty=False)
        text = Text(language.tokenizer, language.template)
        table = share_table(loaded, source, shipped_texts(text, 64)[:2])
        stages = _stages(tell)
        built = build(
            loaded,
            writer.path,
            options,
            calibration=shipped_prompts(lambda query: text.encode(text.chat(query))),
            progress=stages,
        )
        # A phone holds the three binaries; onnxruntime elsewhere maps the static graphs' weights.
        binaries = sum(made.binary.stat().st_size for made in built.compiled.values())
        weights_bytes = max(binaries, (writer.path / WEIGHTS).stat().st_size)
        manifest = manifest_for(source, chosen, config, language, weights_bytes, options.past)
        manifest = writer.finish(_with_npu(manifest, built))
        report = None
        if verify:
            report = verify_npu(
                Bundle(writer.path, manifest),
                torch_reference(loaded),
                simulate_cases=simulate_cases if options.compile else 0,
                progress=lambda what, done: tell(what, 0.6 + 0.35 * done),
            )
            report |= {"table": table, "mobile": brief(usability(Bundle(writer.path, manifest)))}
            report |= took(began) | _costs(built)
            manifest = manifest.model_copy(
                update={
                    "ready": report["ready"], "branches": report["branches"], "verified": True,
                }
            )  # fmt: skip
            (writer.path / REPORT).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        tell("writing the manifest", 0.97)
        manifest = writer.finish(manifest)
    tell("done", 1.0)
    return Exported(writer.out, manifest, report, time.monotonic() - began)


def _stages(tell: Progress) -> Callable[[str], None]:
    """The build's own words, spread over the part of the bar that building takes."""
    done = 0.1

    def step(what: str) -> None:
        nonlocal done
        done = min(done + 0.07, 0.6)
        tell(what, done)

    return step


def _with_npu(manifest: Manifest, built: NpuBuild) -> Manifest:
    section, shape = built.section, manifest.architecture
    kv_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * KV_BYTES
    libraries = dict(manifest.libraries)
    if built.compiled:
        libraries["onnxruntime-qnn"] = importlib.metadata.version("onnxruntime-qnn")
    return manifest.model_copy(
        update={
            "npu": section.model_dump(mode="json"),
            "recipe": {"body": section.recipe, "chunk": section.chunk, "past": section.past},
            "memory": manifest.memory.model_copy(update={"kv_bytes_per_token_per_row": kv_bytes}),
            "libraries": libraries,
        }
    )


def _costs(built: NpuBuild) -> dict[str, Any]:
    return {
        "compile_seconds": {name: made.seconds for name, made in built.compiled.items()},
        "peak_rss_mb": max(
            [peak_rss_mb(), *(made.peak_rss_mb for made in built.compiled.values())]
        ),
        "export_peak_rss_mb": round(peak_rss_mb(), 1),
    }
