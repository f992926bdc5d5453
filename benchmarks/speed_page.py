"""docs/benchmarks.md: the figures of `make bench`, each beside its goal, and what they are from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from benchmarks.peers import NODE_LLAMA_CPP
from edge_runtime.files import write_whole

PAST = 256
NAMES = {
    "ours": "costeer-edge cpu-int8",
    "llama": "llama.cpp Q8_0",
    "llama-no-amx": "llama.cpp Q8_0, without AMX",
    "genai": "onnxruntime-genai 8-bit b32",
    "authors": "the paper's form (torch fp32, 20 rounds)",
}
GOALS = {
    "candidates / memory floor": 2.0,
    "second branch over one row": 0.25,
    "candidates / llama two rows": 0.75,
    "candidates / authors two rows": 0.15,
    "prefill 512 / llama": 0.9,
    "prefill 512 / llama-no-amx": 0.5,
    "second query over a kept note / anew": 0.2,
    "peak RSS / bundle": 2.4,
    "growth over 500 tokens, MB": 1.0,
    "outside onnxruntime, ms": 0.3,
}
"""What each figure may be at most; other figures have no goal."""


def keep(report: dict[str, Any], folder: Path) -> Path:
    """Write `report` among those of other machines; a new run on one machine replaces its last."""
    name = report["machine"].split(",")[0].replace("(R)", "").lower()
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}.json"
    write_whole(path, json.dumps(report, indent=1) + "\n")
    return path


def kept(folder: Path) -> list[dict[str, Any]]:
    """The last report of every machine, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def page(reports: list[dict[str, Any]]) -> str:
    """docs/benchmarks.md: ratios of all machines beside each other, then each one's times."""
    lines = [
        "# Benchmarks",
        "",
        f"SmolLM2-135M-Instruct, one thread, {PAST} tokens in the cache; medians of interleaved",
        "rounds. Written by `make bench` from the last run on each machine (docs/benchmarks/):",
        "absolute times belong to a machine and an hour, ratios within one run travel, as far as",
        "is to be seen here. [The log](log.md) says what repeats, and why a figure is missed.",
        "",
    ]
    titles = [f"{report['machine'].split(',')[0]}, {report['date']}" for report in reports]
    lines += [f"| figure | at most | {' | '.join(titles)} |", f"|---|---|{'---|' * len(titles)}"]
    for name in dict.fromkeys(name for report in reports for name in report["ratios"]):
        goal = GOALS.get(name)
        values = (_judged(report["ratios"].get(name), goal) for report in reports)
        lines.append(f"| {name} | {'' if goal is None else goal} | {' | '.join(values)} |")
    for title, report in zip(titles, reports, strict=True):
        lines += ["", f"## {title}", "", *_times(report)]
    return "\n".join([*lines, ""])


def _judged(value: float | None, goal: float | None) -> str:
    if value is None:
        return "-"
    missed = goal is not None and value > goal
    return f"{value:.3f}{' (missed)' if missed else ''}"


def _times(report: dict[str, Any]) -> list[str]:
    ms = report["ms"]
    lines = [
        "| runtime, ms | one row | two rows | two rows, 64 candidates | prefill 512 |",
        "|---|---|---|---|---|",
    ]
    for name, title in NAMES.items():
        if name in ms:
            cells = (f"{ms[name].get(do, float('nan')):.1f}".replace("nan", "-")
                     for do in ("one", "two", "candidates", "prefill"))  # fmt: skip
            lines.append(f"| {title} | {' | '.join(cells)} |")
        elif name in report["skipped"]:
            lines.append(f"| {title} | not run: {report['skipped'][name]} | | | |")
    note = report["snapshot"]
    return [
        *lines,
        "",
        "One row of ours is without a head; the second branch is compared likewise."
        f" Memory floor {report['floor_ms']:.1f} ms at {report['bandwidth_gbps']:.1f} GB/s."
        f" Prefill of the note anew {note['anew_ms']:.0f} ms, from the encrypted snapshot"
        f" {note['kept_ms']:.0f} ms.",
        "",
        f"Machine: {report['machine']}. Versions: "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        + ".",
    ]


def machine() -> str:
    """Processor and what it offers."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return f"{platform.machine()}, {os.cpu_count()} cores"
    model = text.split("model name")[1].split(":")[1].splitlines()[0].strip()
    has = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if f" {flag}" in text]
    return f"{model}, {os.cpu_count()} cores, {' '.join(has) or 'no wide vectors'}"


def versions() -> dict[str, str]:
    """Of what took part."""
    names = ("onnxruntime", "onnxruntime-genai", "torch", "transformers", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "node-llama-cpp": NODE_LLAMA_CPP}
