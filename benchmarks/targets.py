"""The table of docs/export.md: every CPU target of a model, its size, quality, speed and memory.

    python -m benchmarks.targets make --model smollm2-135m --out DIR        # exports and verifies
    python -m benchmarks.targets speed DIR --rounds 3                       # alone on the machine
    python -m benchmarks.targets table DIR

`make` leaves one bundle a target in DIR, `speed` measures them in turns (each target once a round,
so that what the machine does meanwhile hits all of them) and keeps the medians in DIR/speed.json,
`table` prints Markdown from the reports and those medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_runtime.bundle import open_bundle
from edge_runtime.errors import FELL_SHORT
from export.probe import probe
from export.recipes import RECIPES

app = typer.Typer(add_completion=False)
ROOT = Path(__file__).parents[1]
MEASURED = ("load_ms", "prefill_ms", "step_ms", "peak_rss_mb")
Folder = Annotated[Path, typer.Argument(help="Where `make` left its bundles.")]


@app.command()
def make(
    out: Annotated[Path, typer.Option(help="Folder for the bundles.")],
    model: Annotated[str, typer.Option(help="As for costeer export.")] = "smollm2-135m",
    targets: Annotated[str, typer.Option(help="Separated by commas; all by default.")] = "",
) -> None:
    """Export and verify each target in a process of its own; one JSON line each."""
    for target in targets.split(",") if targets else RECIPES:
        _tell(target)
        words = [
            "export",
            "--model",
            model,
            "--target",
            target,
            "--out",
            str(out.absolute() / target),
        ]
        done = subprocess.run(
            [sys.executable, "costeer.py", *words, "--replace", "--json"], cwd=ROOT
        )
        if done.returncode not in (0, FELL_SHORT):
            raise typer.Exit(done.returncode)


@app.command()
def speed(folder: Folder, rounds: int = 3) -> None:
    """Load, prefill, step and peak memory of each bundle, in turns; medians into speed.json."""
    bundles = [open_bundle(path, force=True, check=False) for path in _bundles(folder)]
    rows: dict[str, list[dict[str, Any]]] = {}
    for number in range(rounds):
        for bundle in bundles:
            row = probe(bundle)
            rows.setdefault(bundle.manifest.target, []).append(row)
            _tell(f"round {number}: {bundle.manifest.target} {row['step_ms']} ms a step")
    medians = {
        target: {key: statistics.median(row[key] for row in each) for key in MEASURED}
        for target, each in rows.items()
    }
    (folder / "speed.json").write_text(json.dumps({"rounds": rounds, "medians": medians}, indent=1))
    print(json.dumps(medians))


@app.command()
def table(folder: Folder) -> None:
    """The rows as Markdown, the default first."""
    timed = json.loads((folder / "speed.json").read_text()) if _timed(folder) else {"medians": {}}
    print(
        "| target | MB | KL aware / agnostic / text | steered KL .476 | steered KL 1.783 "
        "| steered top-1 .476 / 1.783 | two-row step, ms | prefill 2 x 256, ms | load, ms "
        "| peak MB | export: processor s, peak GB | ready |"
    )
    print("|---" * 12 + "|")
    for path in _bundles(folder):
        report = json.loads((path / "export_report.json").read_text())
        print(_row(report, timed["medians"].get(report["target"], report)))


def _row(report: dict[str, Any], times: dict[str, Any]) -> str:
    kl, error = report["steered_kl"], report["steered_kl_error"]
    top = report["steered_top1"]
    spent = report.get("cpu_seconds", report["seconds"])
    cells = [
        f"`{report['target']}`",
        f"{report['size_mb']:.1f}",
        f"{report['kl_aware']:.4f} / {report['kl_agnostic']:.4f} / {report['text_kl']:.4f}",
        f"{kl['0.476']:.5f} ± {error['0.476']:.5f}",
        f"{kl['1.783']:.4f} ± {error['1.783']:.4f}",
        f"{top['0.476']:.3f} / {top['1.783']:.3f}",
        f"{times['step_ms']:.1f}",
        f"{times['prefill_ms']:.0f}",
        f"{times['load_ms']:.0f}",
        f"{times['peak_rss_mb']:.0f}",
        f"{spent:.0f}, {report['export_peak_rss_mb'] / 1e3:.1f}",
        "yes" if report["ready"] else "no",
    ]
    return "| " + " | ".join(cells) + " |"


def _bundles(folder: Path) -> list[Path]:
    """Those that are there, in the order of the recipes."""
    return [folder / name for name in RECIPES if (folder / name / "export_report.json").is_file()]


def _timed(folder: Path) -> bool:
    return (folder / "speed.json").is_file()


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app()
