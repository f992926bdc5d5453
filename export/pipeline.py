"""The order of an export: find, admit, load, write, verify, finish."""

from __future__ import annotations

import datetime
import importlib.metadata
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.bundle import (
    CHAT_TEMPLATE,
    MANIFEST,
    TOKENIZER,
    Bundle,
    BundleWriter,
    manifest_text,
    open_bundle,
)
from edge_runtime.errors import EnvironmentFailure, UsageError
from edge_runtime.gguf_reading import read_once
from edge_runtime.manifest import Architecture, Manifest, Memory, Source
from edge_runtime.text import Text
from edge_runtime.vocabulary import fingerprint
from edge_runtime.weights import ALIASES
from export.admission import admit, cpu_needs
from export.graph import embedding_weight, family_of, float_decoder, head_weight
from export.recipes import DEFAULT_TARGET, Recipe, recipe
from export.report import Progress, replace_text, report_on, took, verdict, write_report
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
from export.write import write_graphs

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
    admit(cpu_needs(parameter_count(source), chosen), writer.out)
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
            report = report_on(Bundle(writer.path, manifest), loaded, _last_half(tell))
            report |= {"table": table} | took(began)
            write_report(writer.path, report)
            manifest = writer.finish(manifest.model_copy(update=verdict(report)))
    tell("done", 1.0)
    return Exported(writer.out, manifest, report, time.monotonic() - began)


def verify_existing(
    path: str | Path,
    *,
    against: str | None = None,
    allow_pickle: bool = False,
    simulate_cases: int = 1,
    progress: Progress | None = None,
) -> Exported:
    """Verify the bundle at `path` (again) and update its report, `ready` and `branches`.

    `against` names the model it was made from; it may be left out for the embedded default and
    for hub ids. `simulate_cases`: of an NPU bundle, cases to run on the simulator. Raises
    `UsageError` when the model is missing or another one, `EnvironmentFailure` when there is no
    simulator.
    """
    tell = progress or (lambda what, done: None)
    began = time.monotonic()
    bundle = open_bundle(path, force=True)
    manifest = bundle.manifest
    compiled = manifest.npu is not None and manifest.npu["decode"]["binary"]
    if compiled and simulate_cases and not _simulator():
        raise EnvironmentFailure(
            "verify", "the NPU's simulator is not installed",
            todo="Install it (x86_64 Linux) with: pip install 'costeer-edge[npu]', or verify on"
            " the CPU provider alone with --simulate 0",
        )  # fmt: skip
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
    report = report_on(bundle, loaded, _last_half(tell), simulate_cases=simulate_cases)
    report |= {"table": table} | took(began)
    manifest = manifest.model_copy(update=verdict(report))
    write_report(bundle.path, report)
    replace_text(bundle.path / MANIFEST, manifest_text(manifest))
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


def _simulator() -> bool:
    from edge_runtime.npu.qnn import available

    return available()


def _last_half(tell: Progress) -> Progress:
    """The report's own progress, in the last half of the bar."""
    return lambda what, done: tell(what, 0.45 + 0.5 * done)


def _texts(language: Language) -> list[tuple[int, ...]]:
    """Two shipped texts: enough to tell whether two tables are the same."""
    return shipped_texts(Text(language.tokenizer, language.template), 64)[:2]


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
