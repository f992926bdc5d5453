"""Compile one static graph for one SoC's HTP, in a process of its own, and say what ran where.

The compiler is native code that holds gigabytes and can crash; a child process turns that into an
error message and gives the memory back. `python -m export.npu.compile` is that child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.errors import EnvironmentFailure
from edge_runtime.graphs.memory import peak_rss_mb
from edge_runtime.npu.manifest import Coverage
from export.npu.socs import Soc

HTP = "QNNExecutionProvider"


@dataclass(frozen=True, slots=True)
class Compiled:
    """A context binary: its wrapper, its size, where the nodes went, what making it took."""

    context: Path
    binary: Path
    placement: list[tuple[str, str, str]]
    """(provider, operator, node) for every node of the graph."""
    coverage: Coverage
    seconds: float
    peak_rss_mb: float

    @property
    def binary_mb(self) -> float:
        """Size of the binary in units of 10^6 bytes."""
        return self.binary.stat().st_size / 1e6


def compile_graph(graph: Path, context: Path, soc: Soc) -> Compiled:
    """Write `context` (ONNX wrapper, beside `graph`) and its binary, the CPU forbidden.

    Raises `EnvironmentFailure` when a node cannot run on HTP, the plugin is absent, or the
    compiler dies; nothing is left behind then.
    """
    from edge_runtime.npu.qnn import context_binary, coverage

    answer = context.with_suffix(".json")
    # Bare names, in the graph's own folder: the binary holds a hash of the path it was given, and
    # the same export must give the same bytes.
    command = [sys.executable, "-m", "export.npu.compile", graph.name, context.name, soc.name]
    paths = os.pathsep.join(os.path.abspath(path or ".") for path in sys.path)
    done = subprocess.run(
        command,
        cwd=graph.parent,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    binary = context_binary(context)
    try:
        if done.returncode < 0:
            raise EnvironmentFailure(
                str(graph),
                f"the HTP compiler died of signal {-done.returncode}",
                todo="It may have run out of memory; try a smaller --past, or another --soc",
            )
        if not answer.exists():
            raise EnvironmentFailure(
                str(graph), "the HTP compiler gave no answer", got=done.stderr.strip()[-300:]
            )
        report = json.loads(answer.read_text())
    finally:
        answer.unlink(missing_ok=True)
        if done.returncode != 0:
            context.unlink(missing_ok=True)
            binary.unlink(missing_ok=True)
    if "error" in report:
        what, todo = report["error"]
        raise EnvironmentFailure(str(graph), what, todo=todo)
    return Compiled(
        context=context,
        binary=binary,
        placement=report["placement"],
        coverage=coverage(report["placement"]),
        seconds=report["seconds"],
        peak_rss_mb=report["peak_rss_mb"],
    )


def _child(graph: Path, context: Path, soc_name: str) -> int:
    from edge_runtime.npu.qnn import htp_session, placement
    from export.npu.socs import soc

    target = soc(soc_name)
    started = time.monotonic()
    report: dict[str, object]
    try:
        session = htp_session(
            graph,
            soc_number=target.number,
            architecture=f"v{target.architecture}",
            context=context,
        )
        report = {"placement": placement(session)}
    except EnvironmentFailure as error:
        report = {"error": [error.what, error.todo]}
    report["seconds"] = round(time.monotonic() - started, 1)
    report["peak_rss_mb"] = round(peak_rss_mb(), 1)
    context.with_suffix(".json").write_text(json.dumps(report))
    return int("error" in report)


if __name__ == "__main__":
    sys.exit(_child(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
