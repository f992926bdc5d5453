"""Everything an export says about a bundle: quality, times, memory, what other providers take."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_runtime.bundle import REPORT, Bundle
from edge_runtime.graphs.memory import peak_rss_mb
from export.mobile import brief, usability
from export.probe import probe
from export.verify import torch_reference, verify_bundle

Progress = Callable[[str, float], None]


def report_on(
    bundle: Bundle, model: Any, progress: Progress, *, simulate_cases: int = 1
) -> dict[str, Any]:
    """The report on `bundle` against the float `model` it was made from.

    `simulate_cases`: of an NPU bundle, cases to run on the HTP simulator.
    """
    progress("measuring time and memory", 0.0)
    measured = probe(bundle)
    reference = torch_reference(model)
    if bundle.manifest.npu is None:
        report = verify_bundle(bundle, reference, progress)
    else:
        from export.npu.verify import verify_npu

        report = verify_npu(bundle, reference, simulate_cases=simulate_cases, progress=progress)
    return (
        report
        | measured
        | {"mobile": brief(usability(bundle)), "export_peak_rss_mb": round(peak_rss_mb(), 1)}
    )


def took(began: float) -> dict[str, float]:
    """Seconds since `began`, and processor time of this process and those it has run."""
    own, run = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = own.ru_utime + own.ru_stime + run.ru_utime + run.ru_stime
    return {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(cpu, 1)}


def verdict(report: dict[str, Any]) -> dict[str, Any]:
    """What the report decides in the manifest."""
    return {"ready": report["ready"], "branches": report["branches"], "verified": True}


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write export_report.json; an older one is replaced whole."""
    replace_text(folder / REPORT, json.dumps(report, indent=1) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file so that it is the old one or the new one, never half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
