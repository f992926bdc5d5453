"""`make bench`: this runtime against others on the same weights, in interleaved rounds.

Prints a table and one JSON line, and writes docs/benchmarks.md, where other machines' last runs
are too. A peer that cannot run here is left out, with the reason. Figures are medians over all
rounds; only their ratios travel between machines.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.speed_page import GOALS, NAMES, PAST, keep, kept, machine, page, versions
from benchmarks.worker import tokens
from edge_runtime.files import write_whole

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
DOES = {"ours": ("one", "both", "candidates", "two"), "floor": ("two",)}


class Worker:
    """A peer's process."""

    def __init__(self, command: list[str], **environment: str) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if "DEBUG" not in os.environ else None,
            text=True,
            cwd=ROOT,
            env={**os.environ, **threads, **environment},
        )
        self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        stderr = self._process.stderr.read() if self._process.stderr else ""
        raise peers.Skipped((stderr.strip().splitlines() or ["its process ended"])[-1][:200])

    def ask(self, do: str, n: int, length: int = 0) -> list[float]:
        """Milliseconds of `n` rounds."""
        assert self._process.stdin is not None
        asked = {"do": do, "n": n, "past": PAST, "length": length}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        spent: list[float] = self._read()["ms"]
        return spent

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=30)


def python(peer: str, what: Callable[[], Path]) -> Callable[[], Worker]:
    """A worker in Python."""
    return lambda: Worker([sys.executable, "-m", "benchmarks.worker", peer, str(what())])


def llama(amx: bool) -> Worker:
    """llama.cpp; without AMX, from a copy of its binaries that lacks that one build."""
    folder = peers.node_llama_cpp() if amx else peers.without_amx(peers.node_llama_cpp())
    file = peers.tokens_file(tokens)
    script = str(Path(__file__).parent / "llama_peer.mjs")
    return Worker(["node", script, str(folder), str(peers.q8_gguf()), str(file)])


def start(wanted: list[str]) -> tuple[dict[str, Worker], dict[str, str]]:
    """Workers by name, and why some are missing."""
    makers: dict[str, Callable[[], Worker]] = {
        "ours": python("ours", peers.bundle),
        "floor": python("floor", peers.bundle),
        "llama": lambda: llama(True),
        "llama-no-amx": lambda: llama(False),
        "genai": python("genai", peers.genai_folder),
        "authors": python("authors", peers.fetch_smollm2),
    }
    workers, skipped = {}, {}
    for name in wanted:
        print(f"starting {NAMES.get(name, name)}", file=sys.stderr, flush=True)
        try:
            workers[name] = makers[name]()
        except (peers.Skipped, OSError, subprocess.SubprocessError) as reason:
            skipped[name] = str(reason)
    return workers, skipped


def measure(
    workers: dict[str, Worker], skipped: dict[str, str], rounds: int
) -> dict[str, dict[str, float]]:
    """Medians in ms by peer and task; the peers take turns in every round.

    A peer that fails on the way is left out from there on, with its reason in `skipped`.
    """
    spent: dict[tuple[str, str], list[float]] = {}

    def ask(name: str, turn: int, do: str, n: int, length: int = 0) -> None:
        if name in skipped:
            return
        try:
            some = workers[name].ask(do, n, length)
        except (peers.Skipped, OSError) as reason:
            skipped[name] = str(reason)
            return
        if turn:  # the first round warms up
            # What memory allows is the best of a round, in the same minutes as everybody else's.
            spent.setdefault((name, do), []).extend([min(some)] if name == "floor" else some)

    for turn in range(rounds):
        for name in workers:
            for do in DOES.get(name, ("one", "two")):
                ask(name, turn, do, 8 if turn else 3)
        for name in workers:
            ask(name, turn, "prefill", 1, 512)
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    result: dict[str, dict[str, float]] = {}
    for (name, do), values in spent.items():
        if name in skipped:
            continue
        result.setdefault(name, {})[do] = float(np.median(values))
    return result


def ratios(ms: dict[str, dict[str, float]], floor_ms: float) -> dict[str, float]:
    """The comparisons that are quoted."""
    ours = ms["ours"]
    found = {
        "candidates / memory floor": ours["candidates"] / floor_ms,
        "second branch over one row": ours["both"] / ours["one"] - 1,
    }
    # Where the processor has no AMX, llama.cpp's AMX build is the one without.
    amx = "amx_int8" in machine()
    for name in NAMES:
        if name in ms and name != "ours":
            plain = "llama-no-amx" if name == "llama" and not amx else name
            found[f"candidates / {name} two rows"] = ours["candidates"] / ms[name]["two"]
            found[f"prefill 512 / {plain}"] = ours["prefill"] / ms[name]["prefill"]
    return found


def device(bundle: Path) -> dict[str, float]:
    """Memory and the time outside onnxruntime, by `costeer profile` with 1,024 tokens of context,
    and the memory of a process that does what `costeer generate` does."""
    from benchmarks.generate_memory import peak_over_bundle
    from edge_runtime.profile import measure

    # Two processes of one build differ by a tenth, likely by where their pages lie.
    reports = [measure(bundle, rounds=15, prefill_lengths=(32,)) for _ in range(5)]
    return {
        "peak RSS / bundle": peak_over_bundle(bundle),
        "growth over 500 tokens, MB": max(one["grown_mb_after_500_tokens"] for one in reports),
        "outside onnxruntime, ms": float(np.median([one["outside_ms"] for one in reports])),
    }


def floor_gbps(bundle: Path, floor_ms: float) -> float:
    """The bandwidth at which a step's bytes are read in `floor_ms`."""
    from edge_runtime.bundle import open_bundle
    from edge_runtime.roofline import step_bytes

    return sum(step_bytes(open_bundle(bundle, check=False), PAST)) / floor_ms / 1e6


def snapshot(bundle: Path) -> dict[str, float]:
    """Prefill of a 1,000-token note and a 24-token query: anew, and from a kept note."""
    code = (
        "import json,sys,tempfile,time;from pathlib import Path;"
        "from edge_runtime.branches import TwoBranches;from edge_runtime.bundle import open_bundle;"
        "from edge_runtime.snapshot import Shelf;from benchmarks.worker import tokens;"
        "b=TwoBranches.open(open_bundle(sys.argv[1],check=False),max_length=1100);"
        "n=tokens(1000);q=tokens(1024)[1000:];\n"
        "def t():\n s=time.perf_counter();b.prefill(n+q,q,note=1000);b.logits(b_ids);"
        "return (time.perf_counter()-s)*1e3\n"
        "import numpy as np;b_ids=np.arange(64);t();fresh=[t() for _ in range(3)]\n"
        "with tempfile.TemporaryDirectory() as d:\n"
        " s=Shelf(Path(d),b'k'*32);s.put(b.bundle,n,b.note_blocks(1000));b.notes=s;t()\n"
        " kept=[t() for _ in range(5)]\n"
        "print(json.dumps({'anew_ms':float(np.median(fresh)),'kept_ms':float(np.median(kept))}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(bundle)],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    found["times_sooner"] = found["anew_ms"] / found["kept_ms"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--peers", default=",".join(NAMES))
    parser.add_argument("--no-write", action="store_true", help="leave docs/ alone")
    asked = parser.parse_args()
    chosen = asked.peers.split(",")
    wanted = ["ours", "floor", *(name for name in NAMES if name != "ours" and name in chosen)]
    workers, skipped = start(wanted)
    ms = measure(workers, skipped, asked.rounds + 1)
    for worker in workers.values():
        worker.close()
    floor_ms = ms.pop("floor")["two"]
    note = snapshot(peers.bundle())
    figures = ratios(ms, floor_ms)
    figures["second query over a kept note / anew"] = note["kept_ms"] / note["anew_ms"]
    figures |= device(peers.bundle())
    report = {
        "ms": ms,
        "ratios": figures,
        "goals": GOALS,
        "snapshot": note,
        "floor_ms": floor_ms,
        "bandwidth_gbps": floor_gbps(peers.bundle(), floor_ms),
        "skipped": skipped,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
    }
    if not asked.no_write:
        keep(report, PAGE.with_suffix(""))
        write_whole(PAGE, page(kept(PAGE.with_suffix(""))))
    print(page([report]))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
