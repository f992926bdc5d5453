"""The order of an NPU export: find, admit, load, build and compile, verify, finish."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_runtime.bundle import CHAT_TEMPLATE, TOKENIZER, WEIGHTS, Bundle, BundleWriter
from edge_runtime.errors import EnvironmentFailure, UsageError
from edge_runtime.manifest import Manifest
from edge_runtime.npu.qnn import available, sdk_version
from edge_runtime.text import Text
from export.admission import admit, npu_needs
from export.npu.build import NpuBuild, NpuOptions, build
from export.npu.calibrate import shipped_prompts
from export.npu.model import check_config
from export.pipeline import Exported, manifest_for
from export.recipes import Recipe
from export.report import Progress, report_on, took, verdict, write_report
from export.shipped import shipped_texts
from export.sources import load_config, load_language, load_model, parameter_count, resolve
from export.tied import share_table

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
    check_config(config)
    admit(npu_needs(parameter_count(source)), writer.out)
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
        recipe = Recipe(options.target, "", "block" if options.target == "npu-qnn" else "int8")
        manifest = manifest_for(source, recipe, config, language, weights_bytes, options.past)
        manifest = writer.finish(_with_npu(manifest, built))
        report = None
        if verify:
            report = report_on(
                Bundle(writer.path, manifest),
                loaded,
                lambda what, done: tell(what, 0.6 + 0.35 * done),
                simulate_cases=simulate_cases if options.compile else 0,
            )
            report |= {"table": table} | took(began) | _costs(built, report)
            write_report(writer.path, report)
            manifest = manifest.model_copy(update=verdict(report))
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
        libraries["qairt"] = sdk_version()
    return manifest.model_copy(
        update={
            "npu": section.model_dump(mode="json"),
            "recipe": {"body": section.recipe, "chunk": section.chunk, "past": section.past},
            "memory": manifest.memory.model_copy(update={"kv_bytes_per_token_per_row": kv_bytes}),
            "libraries": libraries,
        }
    )


def _costs(built: NpuBuild, report: dict[str, Any]) -> dict[str, Any]:
    """What compiling took; an export holds its model while the compiler runs beside it."""
    compiled = built.compiled.items()
    return {
        "compile_seconds": {name: made.seconds for name, made in compiled},
        "compiler_peak_rss_mb": {name: made.peak_rss_mb for name, made in compiled},
        "export_peak_rss_mb": max(report["export_peak_rss_mb"], built.peak_rss_mb),
    }
