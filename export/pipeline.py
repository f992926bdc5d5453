"""The order of an export: find, admit, load, write, verify, finish."""

from __future__ import annotations

import datetime
import importlib.metadata
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.bundle import (
    CHAT_TEMPLATE,
    TOKENIZER,
    Architecture,
    BundleWriter,
    Manifest,
    Memory,
    Source,
)
from edge_runtime.errors import BudgetExceeded
from edge_runtime.vocabulary import fingerprint
from export.graph import embedding_weight, family_of, float_decoder, head_weight
from export.recipes import DEFAULT_TARGET, Recipe, recipe
from export.sources import (
    Language,
    ModelSource,
    load_config,
    load_language,
    load_model,
    parameter_count,
    resolve,
)
from export.write import write_graphs

Progress = Callable[[str, float], None]

PREFILL_CHUNK = 128
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


def export_bundle(
    model: str,
    out: str | Path,
    *,
    target: str = DEFAULT_TARGET,
    max_context: int = MAX_CONTEXT,
    replace: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Export `model` (see `sources.resolve`) for `target` into the folder `out`.

    Raises `UsageError` for an unknown model, family or target and for an `out` in use,
    `BudgetExceeded` when disk or memory cannot hold the work, both before it begins.
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
    with writer:
        tell("building the graph", 0.2)
        context = min(max_context, loaded.config.max_position_embeddings)
        decoder = float_decoder(loaded, context)
        tell("quantizing", 0.3)
        size = write_graphs(
            writer.path, decoder, head_weight(loaded), embedding_weight(loaded), chosen
        )
        language.tokenizer.save(str(writer.path / TOKENIZER), pretty=False)
        (writer.path / CHAT_TEMPLATE).write_text(language.template, encoding="utf-8")
        manifest = _manifest(source, chosen, loaded.config, language, size, context)
        tell("writing the manifest", 0.95)
        manifest = writer.finish(manifest)
    tell("done", 1.0)
    return Exported(writer.out, manifest, None, time.monotonic() - began)


def admit(parameters: int, chosen: Recipe, out: Path) -> None:
    """Refuse an export that disk or memory cannot hold, from the sizes known beforehand.

    Memory: the source in float32 plus the largest tensor twice; measured peaks are in
    docs/export.md. Raises `BudgetExceeded`.
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
    memory = int(parameters * 4 * 1.35) + (700 << 20)
    available = psutil.virtual_memory().available
    if available < memory:
        raise BudgetExceeded(
            "export", "there is too little memory for this model",
            got=f"{available / 1e9:.1f} GB available", allowed=f"{memory / 1e9:.1f} GB or more",
            todo="Close other programs, or export on a larger machine",
        )  # fmt: skip


def _manifest(
    source: ModelSource,
    chosen: Recipe,
    config: Any,
    language: Language,
    weights_bytes: int,
    context: int,
) -> Manifest:
    family, _ = family_of(config)
    layers, hidden = config.num_hidden_layers, config.hidden_size
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
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
            kv_bytes_per_token_per_row=2 * layers * kv_heads * head_dim * 4,
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
