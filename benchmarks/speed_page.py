"""docs/benchmarks.md: the figures of `make bench`, each beside its goal, and what they are from."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from benchmarks.peers import NODE_LLAMA_CPP

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


def page(report: dict[str, Any]) -> str:
    """docs/benchmarks.md."""
    ms = report["ms"]
    lines = [
        "# Benchmarks",
        "",
        f"SmolLM2-135M-Instruct, one thread, {PAST} tokens in the cache; medians of interleaved",
        "rounds in ms. Written by `make bench`: absolute times belong to this machine and this",
        "hour, ratios within one run travel.",
        "",
        "| runtime | one row | two rows | two rows, 64 candidates | prefill 512 |",
        "|---|---|---|---|---|",
    ]
    for name, title in NAMES.items():
        if name in ms:
            cells = (f"{ms[name].get(do, float('nan')):.1f}".replace("nan", "-")
                     for do in ("one", "two", "candidates", "prefill"))  # fmt: skip
            lines.append(f"| {title} | {' | '.join(cells)} |")
        elif name in report["skipped"]:
            lines.append(f"| {title} | not run: {report['skipped'][name]} | | | |")
    lines += ["", "One row of ours is without a head; the second branch is compared likewise.", ""]
    lines += ["| figure | value | at most | |", "|---|---|---|---|"]
    for name, value in report["ratios"].items():
        goal = GOALS.get(name)
        verdict = "" if goal is None else "met" if value <= goal else "missed"
        lines.append(f"| {name} | {value:.3f} | {'' if goal is None else goal} | {verdict} |")
    kept = report["snapshot"]
    lines += [
        "",
        f"Memory floor {report['floor_ms']:.1f} ms at {report['bandwidth_gbps']:.1f} GB/s."
        f" Prefill of the note anew {kept['anew_ms']:.0f} ms, from the encrypted snapshot"
        f" {kept['kept_ms']:.0f} ms.",
        "",
        f"Machine: {report['machine']}. Versions: "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        + ".",
        "",
    ]
    return "\n".join(lines)


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
