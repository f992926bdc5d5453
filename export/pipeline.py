"""The order of an export: find, admit, load, write, verify, finish."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.bundle import (
    CHAT_TEMPLATE,
    MANIFEST,
    REPORT,
    TOKENIZER,
    Bundle,
    BundleWriter,
    manifest_text,
    open_bundle,
)
from edge_runtime.errors import BudgetExceeded, UsageError
from edge_runtime.gguf_reading import read_once
from edge_runtime.manifest import Architecture, Manifest, Memory, Source
from edge_runtime.memory import peak_rss_mb
from edge_runtime.text import Text
from edge_runtime.vocabulary import fingerprint
from edge_runtime.weights import ALIASES
from export.graph import embedding_weight, family_of, float_decoder, head_weight
from export.probe import probe
from export.recipes import DEFAULT_TARGET, Recipe, recipe
from export.shipped import shipped_texts
from export.sources import (
    Language,
    ModelSource,
    load_config,
    load_language,
    load_model,
    parameter_count,
    resolve,
)
from export.tied import share_table
from export.verify import torch_reference, verify_bundle
from export.write import write_graphs

Progress = Callable[[str, float], None]

PREFILL_CHUNK = 64
"""Tokens a row and prefill call that the manifest's workspace estimate assumes."""

MAX_CONTEXT = 4096
"""Default for the longest prompt and answer together; fewer if the model allows fewer."""

LIBRARIES = ("onnxruntime", "onnxruntime-genai", "onnx", "transformers", "torch", "numpy")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export made."""

    path: Path
    manifest: Manifest
    report: dict[str, Any] | None
    seconds: float


@read_once()
def export_bundle(
    model: str,
    out: str | Path,
    *,
    target: str = DEFAULT_TARGET,
    max_context: int = MAX_CONTEXT,
    verify: bool = True,
    replace: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Export `model` (see `sources.resolve`) for `target` into the folder `out`.

    Raises `UsageError` for an unknown model, family or target and for an `out` in use,
    `BudgetExceeded` when disk or memory cannot hold the work, both before it begins. A bundle that
    fails its verification is written all the same, with `ready: false`.
    """
    tell = progress or (lambda what, done: None)
    began = time.monotonic()
    chosen = recipe(target)
    writer = BundleWriter(out, replace=replace)
    source = resolve(model, allow_pickle=allow_pickle, progress=progress)
    family_of(load_config(source))
    parameters = parameter_count(source)
    admit(parameters, chosen, writer.out)
    tell("reading the model", 0.05)
    language = load_language(source)
    loaded = load_model(source)
    table = share_table(loaded, source, _texts(language))
    with writer:
        context = min(max_context, loaded.config.max_position_embeddings)
        size = _write(writer.path, loaded, context, chosen, tell)
        language.tokenizer.save(str(writer.path / TOKENIZER), pretty=False)
        (writer.path / CHAT_TEMPLATE).write_text(language.template, encoding="utf-8")
        manifest = manifest_for(source, chosen, loaded.config, language, size, context)
        tell("writing the manifest", 0.4)
        manifest = writer.finish(manifest)
        report = None
        if verify:
            report = _report(Bundle(writer.path, manifest), loaded, tell)
            report |= {"table": table} | took(began)
            _write_report(writer.path, report)
            verdict = _verdict(report)
            manifest = writer.finish(manifest.model_copy(update=verdict))
    tell("done", 1.0)
    return Exported(writer.out, manifest, report, time.monotonic() - began)


def verify_existing(
    path: str | Path,
    *,
    against: str | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Verify the bundle at `path` (again) and update its report, `ready` and `branches`.

    `against` names the model it was made from; it may be left out for the embedded default and
    for hub ids. Raises `UsageError` when it is missing or another model.
    """
    tell = progress or (lambda what, done: None)
    began = time.monotonic()
    bundle = open_bundle(path, force=True)
    manifest = bundle.manifest
    known = manifest.source.name in ALIASES or manifest.source.kind == "hub"
    if against is None and not known:
        raise UsageError(
            "--against", "the bundle does not say where its model lies", got=manifest.source.name,
            todo="Name the folder or file it was exported from with --against",
        )  # fmt: skip
    source = resolve(against or manifest.source.name, allow_pickle=allow_pickle, progress=progress)
    if source.sha256 != manifest.source.sha256:
        raise UsageError(
            "--against", "this is not the model that the bundle was made from",
            got=f"sha256 {source.sha256[:12]}", allowed=f"sha256 {manifest.source.sha256[:12]}",
        )  # fmt: skip
    tell("reading the model", 0.05)
    loaded = load_model(source)
    table = share_table(loaded, source, _texts(load_language(source)))
    report = _report(bundle, loaded, tell)
    report |= {"table": table} | took(began)
    verdict = _verdict(report)
    manifest = manifest.model_copy(update=verdict)
    _write_report(bundle.path, report)
    _replace_text(bundle.path / MANIFEST, manifest_text(manifest))
    tell("done", 1.0)
    return Exported(bundle.path, manifest, report, time.monotonic() - began)


def _write(folder: Path, model: Any, context: int, chosen: Recipe, tell: Progress) -> int:
    """The three graphs and weights.bin; the latter's size in bytes."""
    tell("building the graph", 0.2)
    if chosen.graph == "portable":
        from export.portable import write_portable

        return write_portable(folder, model, chosen)
    decoder = float_decoder(model, context)
    tell("quantizing", 0.3)
    return write_graphs(folder, decoder, head_weight(model), embedding_weight(model), chosen)


def _texts(language: Language) -> list[tuple[int, ...]]:
    """Two shipped texts: enough to tell whether two tables are the same."""
    return shipped_texts(Text(language.tokenizer, language.template), 64)[:2]


def _report(bundle: Bundle, loaded: Any, tell: Progress) -> dict[str, Any]:
    if bundle.manifest.npu is not None:
        from export.npu_verify import verify_npu

        return verify_npu(bundle, torch_reference(loaded), progress=tell) | _mobile(bundle)
    tell("measuring time and memory", 0.42)
    measured = probe(bundle)
    report = verify_bundle(
        bundle, torch_reference(loaded), lambda what, done: tell(what, 0.45 + 0.5 * done)
    )
    return report | measured | _mobile(bundle) | {"export_peak_rss_mb": round(peak_rss_mb(), 1)}


def _mobile(bundle: Bundle) -> dict[str, Any]:
    from export.mobile import brief, usability

    return {"mobile": brief(usability(bundle))}


def took(began: float) -> dict[str, float]:
    """Seconds since `began`, and processor time of this process and those it has run."""
    own, run = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = own.ru_utime + own.ru_stime + run.ru_utime + run.ru_stime
    return {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(cpu, 1)}


def _verdict(report: dict[str, Any]) -> dict[str, Any]:
    return {"ready": report["ready"], "branches": report["branches"], "verified": True}


def _write_report(folder: Path, report: dict[str, Any]) -> None:
    _replace_text(folder / REPORT, json.dumps(report, indent=1) + "\n")


def _replace_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def admit(parameters: int, chosen: Recipe, out: Path) -> None:
    """Refuse an export that disk or memory cannot hold, from the sizes known beforehand.

    Memory: a line through the measured peaks of three exports with verification
    (docs/export.md). Raises `BudgetExceeded`.
    """
    import psutil

    bits = {"int8": 8.2, "block": chosen.bits + 2.5, "float": 32.0}[chosen.body]
    disk = int(parameters * bits / 8) + (64 << 20)
    folder = out
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < disk:
        raise BudgetExceeded(
            "--out", "the disk cannot hold the bundle", got=f"{free / 1e9:.1f} GB free",
            allowed=f"{disk / 1e9:.1f} GB or more",
        )  # fmt: skip
    memory = int(parameters * 6.9) + 900_000_000
    available = psutil.virtual_memory().available
    if available < memory:
        raise BudgetExceeded(
            "export", "there is too little memory for this model",
            got=f"{available / 1e9:.1f} GB available", allowed=f"{memory / 1e9:.1f} GB or more",
            todo="Close other programs, or export on a larger machine",
        )  # fmt: skip


def manifest_for(
    source: ModelSource,
    chosen: Recipe,
    config: Any,
    language: Language,
    weights_bytes: int,
    context: int,
) -> Manifest:
    """The manifest of a bundle under construction; its files are listed when it is finished."""
    family, _ = family_of(config)
    layers, hidden = config.num_hidden_layers, config.hidden_size
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    # A cache that grows is there three times while a call runs: kept, going in, coming out.
    copies = 3 if chosen.graph == "portable" else 1
    return Manifest(
        name=source.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        source=Source(kind=source.kind, name=source.name, sha256=source.sha256),
        target=chosen.target,
        recipe=chosen.options(),
        architecture=Architecture(
            family=family,
            layers=layers,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=hidden,
            vocabulary_size=config.vocab_size,
            max_context=context,
        ),
        tokens=language.tokens,
        vocabulary_sha256=fingerprint(language.tokenizer),
        memory=Memory(
            weights_bytes=weights_bytes,
            kv_bytes_per_token_per_row=copies * 2 * layers * kv_heads * head_dim * 4,
            workspace_bytes=workspace_bytes(config),
        ),
        branches="together",
        ready=True,
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES},
    )


def workspace_bytes(config: Any, rows: int = 2, chunk: int = PREFILL_CHUNK) -> int:
    """Estimate of the activations of one prefill call, in bytes.

    Widest moment: the merged gate and up products, both integer terms, as float32.
    """
    widest = 2 * config.intermediate_size
    return rows * chunk * (2 * widest + widest + 4 * config.hidden_size) * 4
