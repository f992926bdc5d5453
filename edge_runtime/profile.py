"""What a bundle does on this machine: loading, prefill, steps, heads, memory, in a process alone.

`measure` starts one fresh process for each number of threads (and one that only loads, after the
weights were dropped from the page cache) and hands back what they report. Inside, rounds of the
variants that are compared are interleaved, the first ones are thrown away, and figures are
percentiles over all rounds. Memory is what that process held at the most; the full head is
loaded last, since a device that asks for candidates only never loads it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.errors import EnvironmentFailure
from edge_runtime.graphs.memory import peak_rss_mb
from edge_runtime.profile_parts import OutsideClock, costs, operators
from edge_runtime.roofline import Roofline, bandwidth_gbps, step_bytes

if TYPE_CHECKING:
    from edge_runtime.branches import TwoBranches

CANDIDATES = 64
WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Job:
    """What one process measures."""

    bundle: str
    threads: int = 1
    context_tokens: int = 1024
    past: int = 256
    rounds: int = 30
    prefill_lengths: tuple[int, ...] = (32, 128, 256, 512)
    load_only: bool = False


def measure(
    bundle: Path,
    threads: Sequence[int] = (1,),
    tell: Callable[[str], None] = lambda _: None,
    **job: Any,
) -> dict[str, Any]:
    """The whole report: the figures for the first of `threads`, all of them in `by_threads`.

    Raises `EnvironmentFailure` when a measuring process dies.
    """
    opened = open_bundle(bundle, force=True)
    tell("loading from a cold page cache")
    evicted = _evict(opened.path / "weights.bin")
    cold = _isolated(Job(str(bundle), threads[0], load_only=True, **job))
    reports = []
    for count in threads:
        tell(f"measuring with {count} thread{'s' * (count > 1)}")
        reports.append(_isolated(Job(str(bundle), count, **job)))
    first = dict(reports[0])
    first["load_ms"] = {
        "cold": cold["load_ms"] if evicted else None,
        "warm": reports[0]["load_ms"],
    }
    first["bundle_mb"] = opened.size_bytes / 1e6
    first["peak_rss_over_bundle"] = first["peak_rss_mb"] / first["bundle_mb"]
    first["bundle"] = opened.manifest.name + " " + opened.manifest.target
    first |= costs(first, opened.manifest.memory.weights_bytes, CANDIDATES)
    first["by_threads"] = reports
    return first


def _evict(path: Path) -> bool:
    """Drop a file from the page cache; False where the system offers no way."""
    if not hasattr(os, "posix_fadvise"):
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)  # a page that is not on the disk yet cannot be dropped
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
    return True


def _isolated(job: Job) -> dict[str, Any]:
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = str(job.threads)
    root = str(Path(__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(
        part for part in (root, environment.get("PYTHONPATH")) if part
    )
    command = [sys.executable, "-m", "edge_runtime.profile", json.dumps(asdict(job))]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        said = run.stderr.strip().splitlines()
        raise EnvironmentFailure(
            "profile",
            "the measuring process failed: " + (said[-1] if said else f"exit {run.returncode}"),
            todo="Ask for a shorter context, or see whether the machine is out of memory",
        )
    report: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return report


def _inside(job: Job) -> dict[str, Any]:
    """The measuring process."""
    from edge_runtime.branches import TwoBranches  # in this process, and not in the one that asks

    bundle = open_bundle(job.bundle, force=True, check=False)
    began = time.perf_counter()
    branches = TwoBranches.open(bundle, max_length=job.context_tokens, threads=job.threads)
    ids = _some_ids(bundle)
    loaded = (time.perf_counter() - began) * 1e3
    if job.load_only:
        return {"load_ms": loaded}
    after_load = peak_rss_mb()
    rng = np.random.default_rng(0)
    size = bundle.manifest.architecture.vocabulary_size
    text = [int(t) for t in rng.integers(0, size, job.context_tokens)]
    past = max(1, min(job.past, job.context_tokens - 8))

    longest = job.context_tokens - 1
    branches.prefill(text[:longest], text[: max(1, longest // 8)])
    branches.logits(ids)
    after_prefill = peak_rss_mb()
    prefill = {
        str(n): _percentiles(_timed(partial(branches.prefill, text[:n], text[:1]), 3))["p50"]
        for n in job.prefill_lengths
        if n <= longest
    }
    branches.prefill(text[:past], text[:past])
    apart = _Apart(branches, past)
    clock = OutsideClock(branches, text[0], CANDIDATES)

    def step() -> None:
        branches.rollback(0)
        branches.extend(text[:1])

    def step_with_candidates() -> None:
        step()
        branches.logits(ids)

    timings = _interleaved(
        {
            "step_ms_without_head": step,
            "step_ms_candidate_head": step_with_candidates,
            "head_candidates_ms": lambda: branches.logits(ids),
            "one_row_ms": apart.one,
            "sequential_ms": apart.both,
            "rollback_ms": lambda: branches.rollback(0),
        },
        job.rounds,
    )
    outside = _interleaved_values(lambda: clock.token(ids), job.rounds)
    peak, uss = peak_rss_mb(), _uss_mb()
    grown = _growth(branches, text[:past], min(500, job.context_tokens - past))

    branches.prefill(text[:past], text[:past])

    def step_full() -> None:
        step()
        branches.logits()

    full = _interleaved({"step_ms": step_full, "head_ms": branches.logits}, job.rounds)
    with_full_head = peak_rss_mb()
    weights, kv = step_bytes(bundle, past)
    roof = Roofline(weights, kv, bandwidth_gbps(weights + kv))
    return {
        "rows": 2,
        "threads": job.threads,
        "past": past,
        "context_tokens": job.context_tokens,
        **timings,
        **full,
        "prefill_ms": prefill,
        "outside_ms": outside["p50"],
        "bytes_per_token": roof.bytes_per_token,
        "bandwidth_gbps": roof.bandwidth_gbps,
        "floor_ms": roof.floor_ms,
        "over_floor": timings["step_ms_candidate_head"]["p50"] / roof.floor_ms,
        "second_branch": timings["step_ms_without_head"]["p50"] / timings["one_row_ms"]["p50"] - 1,
        "load_ms": loaded,
        "peak_rss_mb": peak,
        "peak_uss_mb": uss,
        "peak_rss_after_load_mb": after_load,
        "peak_rss_after_prefill_mb": after_prefill,
        "peak_rss_full_head_mb": with_full_head,
        "grown_mb_after_500_tokens": grown,
        "ops_ms": operators(bundle, job, text, past),
    }


class _Apart:
    """The same rows, one call each."""

    def __init__(self, branches: TwoBranches, past: int) -> None:
        self._branches, self._past = branches, past

    def one(self) -> None:
        """The aware row alone."""
        self._branches._decoder.one(0, [7], self._past)

    def both(self) -> None:
        """One row after the other."""
        for row in (0, 1):
            self._branches._decoder.one(row, [7], self._past)


def _growth(branches: TwoBranches, prompt: list[int], tokens: int) -> float:
    """MB by which the peak grew while `tokens` answer tokens were appended."""
    branches.prefill(prompt, prompt)
    branches.extend([7])
    before = peak_rss_mb()
    for _ in range(tokens - 2):
        branches.extend([7])
    return peak_rss_mb() - before


def _some_ids(bundle: Bundle) -> np.ndarray:
    size = bundle.manifest.architecture.vocabulary_size
    drawn = np.random.default_rng(1).permutation(size)[: min(CANDIDATES, size)]
    return np.sort(drawn).astype(np.int64)


def _timed(work: Callable[[], object], rounds: int) -> list[float]:
    work()
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        spent.append((time.perf_counter() - began) * 1e3)
    return spent


def _interleaved(
    variants: dict[str, Callable[[], object]], rounds: int
) -> dict[str, dict[str, float]]:
    """Percentiles in ms of each variant; one call of each in every round."""
    spent: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + WARM_UP):
        for name, work in variants.items():
            began = time.perf_counter()
            work()
            if turn >= WARM_UP:
                spent[name].append((time.perf_counter() - began) * 1e3)
    return {name: _percentiles(values) for name, values in spent.items()}


def _interleaved_values(work: Callable[[], float], rounds: int) -> dict[str, float]:
    return _percentiles([work() for _ in range(rounds + WARM_UP)][WARM_UP:])


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


def _uss_mb() -> float:
    import psutil

    return float(psutil.Process().memory_full_info().uss) / 1e6


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    arguments["prefill_lengths"] = tuple(arguments["prefill_lengths"])
    print(json.dumps(_inside(Job(**arguments))))
