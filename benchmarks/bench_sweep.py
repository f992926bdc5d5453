"""A sweep of 420 cells over recorded answers: how long it takes, and that hands do not matter.

    python -m benchmarks.bench_sweep [--engines local ray dask] [--jobs 1 2]

Three rules (cloud alone, `light`, `costeer`; SmolLM2-135M on both sides) under two schedules over
ten networks and seven round trips. The answers are recorded by the models once and kept in the
cache; then the sweep runs anew in an empty folder for each engine and number of jobs, processes
and their imports included. Ends with one line of JSON; exit code 1 when two Parquet files differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edge_runtime.weights import cache_dir
from scenarios.cli_study import LIBRARY
from scenarios.spec import Scenario, read_scenario
from scenarios.sweep import sweep

NETWORKS = [
    *("2g", "3g-fast", "3g", "4g", "5g"),
    *("lte", "slow-4g", "textbook-4g", "us-mobile", "wifi-campus"),
]
ROUND_TRIPS = [10.0, 20.0, 40.0, 80.0, 120.0, 160.0, 320.0]


def study(networks: list[str], round_trips: list[float]) -> Scenario:
    """`quickstart` over those links."""
    axes = {"network.profile": networks, "network.rtt_ms": round_trips}
    settings = [f"{key}={json.dumps(values)}" for key, values in axes.items()]
    return read_scenario(LIBRARY / "quickstart.toml", settings)


def tapes() -> Path:
    """The recorded answers, made by the models if they are not there."""
    folder = cache_dir() / "benchmarks" / "sweep"
    sweep(study(NETWORKS[:1], ROUND_TRIPS[:1]), folder)
    return folder / "tapes"


def timed(engine: Any, jobs: int, recorded: Path) -> dict[str, Any]:
    """One run in an empty folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(recorded, folder / "tapes")
        began = time.perf_counter()
        path = sweep(study(NETWORKS, ROUND_TRIPS), folder, jobs=jobs, engine=engine)
        return {
            "engine": engine,
            "jobs": jobs,
            "seconds": round(time.perf_counter() - began, 2),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--engines", nargs="+", default=["local", "ray", "dask"])
    options.add_argument("--jobs", nargs="+", type=int, default=[1, 2])
    chosen = options.parse_args()
    recorded = tapes()
    cells = len(study(NETWORKS, ROUND_TRIPS))
    print(f"{cells} cells on {os.cpu_count()} cores")
    runs = []
    for engine in chosen.engines:
        for jobs in chosen.jobs if engine == "local" else chosen.jobs[-1:]:
            runs.append(timed(engine, jobs, recorded))
            print("{engine:6} {jobs} jobs {seconds:7.2f} s  {sha256:.16}".format(**runs[-1]))
    same = len({run["sha256"] for run in runs}) == 1
    print("the same bytes" if same else "the files DIFFER")
    print(json.dumps({"cells": cells, "same": same, "runs": runs}))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
