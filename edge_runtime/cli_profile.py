"""`costeer profile`: what a bundle does on this machine, and whether that is within a budget."""

from __future__ import annotations

import importlib.resources
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_runtime.errors import UsageError


def profile(
    bundle: Annotated[Path, typer.Argument(help="Folder made by costeer export.")],
    context_tokens: Annotated[
        int, typer.Option(min=16, help="Tokens that both rows have room for.")
    ] = 1024,
    past: Annotated[int, typer.Option(min=1, help="Tokens in the cache while steps run.")] = 256,
    threads: Annotated[str, typer.Option(help="One number, or several: 1,2.")] = "1",
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved rounds a figure.")] = 30,
    memory_mb: Annotated[float | None, typer.Option(help="Budget: resident memory.")] = None,
    first_token_ms: Annotated[
        float | None, typer.Option(help="Budget: prefill of the whole context.")
    ] = None,
    token_ms: Annotated[float | None, typer.Option(help="Budget: p95 of a step and head.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a bundle on this machine; exit code 1 if it exceeds the budget."""
    from rich.console import Console

    from edge_runtime.budget import Budget, admit
    from edge_runtime.bundle import open_bundle
    from edge_runtime.profile import measure

    budget = Budget(memory_mb, first_token_ms, token_ms)
    counts = _threads(threads)
    opened = open_bundle(bundle, force=True)  # how fast it is does not hang on how true it is
    if opened.manifest.npu is not None:
        raise UsageError(
            "profile", "this bundle is for an NPU, and there is none here", got=bundle,
            todo="Profile a cpu-int8 bundle, or the NPU one on its device",
        )  # fmt: skip
    limit = opened.manifest.architecture.max_context
    if context_tokens > limit:
        raise UsageError(
            "--context-tokens", "the model of this bundle does not go that far",
            got=context_tokens, allowed=f"up to {limit}",
        )  # fmt: skip
    admit(opened, context_tokens)
    progress = Console(stderr=True)
    with progress.status("starting") as status:
        report = measure(
            bundle, counts, lambda what: status.update(what),
            context_tokens=context_tokens, past=past, rounds=rounds,
        )  # fmt: skip
    longest = max(report["prefill_ms"], key=int, default=None)
    report["budget"] = budget.verdict(
        memory_mb=report["peak_rss_mb"],
        first_token_ms=report["prefill_ms"][longest] if longest else None,
        token_ms=report["step_ms_candidate_head"]["p95"],
    )
    report["modelled"] = modelled(report["bytes_per_token"])
    ok = all(line["ok"] for line in report["budget"])
    if not as_json:
        _show(report)
    print(json.dumps(report))
    if not ok:
        raise typer.Exit(1)


def _threads(text: str) -> tuple[int, ...]:
    from edge_runtime.graphs.engine import check_threads

    try:
        return tuple(check_threads(int(part)) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            "--threads", "not a list of numbers", got=text, allowed="such as 1 or 1,2"
        ) from error


def modelled(bytes_per_token: int) -> list[dict[str, Any]]:
    """The step on published devices, from the weight bandwidth that their figures imply.

    Each device's tokens/s times the weights of the model it was measured with; the best of its
    figures. Empty where the profiles are not installed.
    """
    try:
        folder = importlib.resources.files("cloud_sim.net.profiles").joinpath("devices")
        files = sorted(folder.iterdir(), key=lambda file: file.name)
    except (ModuleNotFoundError, OSError):
        return []
    rows = []
    for file in files:
        if not file.name.endswith(".toml"):
            continue
        device = tomllib.loads(file.read_text(encoding="utf-8"))
        speeds = [
            line["weights_mb"] * line["tokens_per_s"] / 1e3
            for line in device.get("decode", ())
            if line.get("origin") == "published"
        ]
        if speeds:
            best = max(speeds)
            rows.append(
                {
                    "device": device["name"],
                    "step_ms": bytes_per_token / best / 1e6,
                    "bandwidth_gbps": best,
                    "origin": "modelled",
                }
            )
    return rows


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print("[bold]Roofline[/bold]")
    console.print(
        f"  a step reads {report['bytes_per_token'] / 1e6:.0f} MB at"
        f" {report['bandwidth_gbps']:.1f} GB/s: floor {report['floor_ms']:.1f} ms, measured"
        f" {report['step_ms_candidate_head']['p50']:.1f} ms ({report['over_floor']:.1f} x)"
    )
    names = {
        "one_row_ms": "one row",
        "sequential_ms": "two rows, one after the other",
        "step_ms_without_head": "two rows together",
        "step_ms_candidate_head": "  with 64 candidates",
        "step_ms": "  with the full head",
    }
    table = Table(title="ms a step", title_justify="left", box=None)
    for column in ("past " + str(report["past"]), "threads", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if column.startswith("past") else "right")
    for one in report["by_threads"]:
        for key, name in names.items():
            spread = [f"{one[key][q]:.1f}" for q in ("p50", "p95", "p99")]
            table.add_row(name, str(one["threads"]), *spread)
    console.print(table)
    prefill = ", ".join(f"{n}: {ms:.0f}" for n, ms in report["prefill_ms"].items())
    load = {k: v for k, v in report["load_ms"].items() if v is not None}
    for name, value in (
        ("prefill ms by tokens", prefill),
        ("load ms", ", ".join(f"{k} {v:.0f}" for k, v in load.items())),
        ("outside onnxruntime", f"{report['outside_ms']:.2f} ms a token"),
        (
            "memory",
            f"{report['peak_rss_mb']:.0f} MB at the most ({report['peak_rss_over_bundle']:.2f} x"
            f" the bundle), {report['peak_uss_mb']:.0f} MB of it its own;"
            f" {report['peak_rss_full_head_mb']:.0f} MB with the full head",
        ),
        ("operators", ", ".join(f"{k} {v:.1f}" for k, v in list(report["ops_ms"].items())[:6])),
    ):
        console.print(f"[dim]{name}[/dim]  {value}", highlight=False)
    for row in report["modelled"]:
        console.print(
            f"[dim]modelled[/dim]  {row['device']}: {row['step_ms']:.1f} ms a step"
            f" (bandwidth of {row['bandwidth_gbps']:.0f} GB/s, from published tokens/s)",
            highlight=False,
        )
    for line in report["budget"]:
        mark = "[green]within[/green]" if line["ok"] else "[red]over[/red]"
        console.print(
            f"budget  {line['name']}: {line['measured']:.1f} of {line['limit']:g}, {mark}"
        )
