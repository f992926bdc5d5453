"""Verbs `export`, `verify` and `inspect`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.errors import FELL_SHORT, UsageError, did_you_mean
from export.npu.socs import DEFAULT_SOC, NPU_TARGETS
from export.recipes import DEFAULT_TARGET, RECIPES

if TYPE_CHECKING:
    from export.pipeline import Exported

Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]


def export(
    model: Annotated[
        str, typer.Option(help="smollm2-135m, a transformers folder, a .gguf file, or a hub id.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    target: Annotated[
        str, typer.Option(help=f"One of: {', '.join((*RECIPES, *NPU_TARGETS))}.")
    ] = DEFAULT_TARGET,
    max_context: Annotated[
        int, typer.Option(help="Longest prompt and answer together, in tokens.", min=16)
    ] = 4096,
    soc: Annotated[
        str, typer.Option(help="NPU targets: the Qualcomm SoC, e.g. SM8550, SM8650, SM8750.")
    ] = DEFAULT_SOC,
    past: Annotated[
        int, typer.Option(help="NPU targets: slots for prompt and answer together.", min=16)
    ] = 512,
    chunk: Annotated[
        int, typer.Option(help="NPU targets: tokens that a prefill call takes.", min=2)
    ] = 64,
    simulate: Annotated[
        int, typer.Option(help="NPU targets: cases to run on the HTP simulator.", min=0)
    ] = 1,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare the bundle with the float model.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle at --out.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read weights from pickles, which can run code.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a device-ready bundle out of a model; exit code 4 when it fails its verification."""
    targets = (*RECIPES, *NPU_TARGETS)
    if target not in targets:
        raise UsageError(
            "--target", "no such target", got=target, todo=did_you_mean(target, targets)
        )
    if target in NPU_TARGETS:
        from export.npu.build import NpuOptions
        from export.npu.pipeline import export_npu
        from export.npu.socs import soc as soc_of

        options = NpuOptions(target=target, soc=soc_of(soc), past=past, chunk=chunk)
        with _progress() as tell:
            made = export_npu(
                model,
                out,
                options,
                verify=not no_verify,
                simulate_cases=simulate,
                replace=replace,
                allow_pickle=allow_pickle,
                progress=tell,
            )
        _result(made, as_json)
        return
    from export.pipeline import export_bundle

    with _progress() as tell:
        made = export_bundle(
            model,
            out,
            target=target,
            max_context=max_context,
            verify=not no_verify,
            replace=replace,
            allow_pickle=allow_pickle,
            progress=tell,
        )
    _result(made, as_json)


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    against: Annotated[
        str | None, typer.Option(help="The model it was made from (not needed for defaults).")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read weights from pickles, which can run code.")
    ] = False,
    simulate: Annotated[
        int, typer.Option(help="NPU bundles: cases to run on the HTP simulator.", min=0)
    ] = 1,
    as_json: Json = False,
) -> None:
    """Compare a bundle with the float model it was made from, and update its report; exit code 4
    when it fails."""
    from export.pipeline import verify_existing

    with _progress() as tell:
        made = verify_existing(
            bundle,
            against=against,
            allow_pickle=allow_pickle,
            simulate_cases=simulate,
            progress=tell,
        )
    _result(made, as_json)


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    mobile: Annotated[
        bool, typer.Option("--mobile", help="Also: what NNAPI, CoreML and XNNPACK would take.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a bundle and check every checksum."""
    opened = open_bundle(bundle, force=True)
    row = describe(opened) | {"checksums": "ok"}
    if not mobile:
        _show(row, as_json)
        return
    from export.mobile import table, usability

    found = usability(opened)
    _show(row | ({"mobile": found} if as_json else {}), as_json)
    if not as_json:
        print(table(found))


def describe(bundle: Bundle) -> dict[str, Any]:
    """The facts of a bundle as one flat table."""
    manifest = bundle.manifest
    shape, memory = manifest.architecture, manifest.memory
    return {
        "path": str(bundle.path),
        "name": manifest.name,
        "target": manifest.target,
        "ready": manifest.ready,
        "verified": manifest.verified,
        "source": f"{manifest.source.kind} {manifest.source.sha256[:12]}",
        "created": manifest.created,
        "size_mb": round(bundle.size_bytes / 1e6, 1),
        "family": shape.family,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "vocabulary_size": shape.vocabulary_size,
        "vocabulary_sha256": manifest.vocabulary_sha256,
        "max_context": shape.max_context,
        "end_ids": list(manifest.tokens.end_ids),
        "branches": manifest.branches,
        "weights_bytes": memory.weights_bytes,
        "kv_bytes_per_token_per_row": memory.kv_bytes_per_token_per_row,
        "workspace_bytes": memory.workspace_bytes,
        "memory_mb": {
            str(tokens): round((memory.weights_bytes + bundle.kv_bytes(tokens)) / 1e6, 1)
            for tokens in (512, 2048, shape.max_context)
            if tokens <= shape.max_context
        },
    }


def _result(made: Exported, as_json: bool) -> None:
    row = describe(open_bundle(made.path, force=True, check=False))
    report = dict(made.report or {})
    marks = report.pop("marks", {})
    report.pop("ops", None)
    row |= report | {"seconds": round(made.seconds, 1)}
    if as_json:
        print(json.dumps(row | ({"marks": marks} if marks else {})))
    else:
        _show_result(row, marks)
    if not row["ready"]:
        raise typer.Exit(FELL_SHORT)


def _show_result(row: dict[str, Any], marks: dict[str, Any]) -> None:
    for long in ("mobile", "on_cpu_provider", "coverage_by_graph"):
        row.pop(long, None)
    _show(row, False)
    if marks:
        _show_marks(marks)
    if not row["ready"]:
        _stderr().print("This bundle failed a mark: costeer generate refuses it without --force.")


def _show_marks(marks: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("mark", "value", "limit", "", box=None, pad_edge=False)
    for name, mark in marks.items():
        value = mark["value"]
        shown = f"{value:.4f}" if isinstance(value, float) else str(value)
        table.add_row(name, shown, mark["limit"], "pass" if mark["pass"] else "FAIL")
    Console().print(table)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = _stderr()
    shown = console.is_terminal  # elsewhere it would leave an empty line
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def _show(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in row.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k}: {_number(v)}" for k, v in value.items())
        value = _number(value)
        table.add_row(key, str(value))
    Console().print(table)


def _number(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 100 else value


def _stderr() -> Any:
    from rich.console import Console

    return Console(file=sys.stderr)
