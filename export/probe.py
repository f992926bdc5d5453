"""Load time, peak memory and step time of a bundle, measured in a process that does nothing else.

`python -m export.probe BUNDLE` prints one JSON object. The step is what a phone does for a token:
two rows through the decoder after 256 tokens each, and the logits of 64 candidates. Of an NPU
bundle the static graphs run, on the CPU provider, unless this machine has such an NPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.errors import EnvironmentFailure
from edge_runtime.graphs.memory import peak_rss_mb

PAST, CANDIDATES = 256, 64
STEPS, NPU_STEPS = 30, 8
"""Steps timed; static graphs are not made for the CPU provider, and take it 20 times as long."""


def probe(bundle: Bundle) -> dict[str, Any]:
    """Run the probe in a child process. Raises `EnvironmentFailure` when it dies."""
    run = subprocess.run(
        [sys.executable, "-m", "export.probe", str(bundle.path.absolute())],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentFailure("probe", f"the bundle does not run: {last}", got=bundle.path)
    out: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return out


def measure(folder: Path) -> dict[str, Any]:
    """Measure here and now, through the runtime's own branches; peak memory is this process's."""
    from edge_runtime.branches import open_branches
    from edge_runtime.npu.branches import NpuBranches

    bundle = open_bundle(folder, force=True, check=False)
    shape, npu = bundle.manifest.architecture, bundle.manifest.npu
    steps = STEPS if npu is None else NPU_STEPS
    past = min(PAST, shape.max_context - steps - 2)
    some = np.random.default_rng(0)
    # A fresh interpreter with onnxruntime and numpy: the runtime itself, without any model.
    bare_mb = peak_rss_mb()
    began = time.perf_counter()
    branches = open_branches(bundle, max_length=past + steps + 2)
    if isinstance(branches, NpuBranches):
        branches.load()
    load_ms = (time.perf_counter() - began) * 1e3
    prompt = [int(token) for token in some.integers(0, shape.vocabulary_size, past)]
    if npu is not None and npu["first_token"] is not None:
        prompt[0] = npu["first_token"]
    ids = some.integers(0, shape.vocabulary_size, CANDIDATES)
    began = time.perf_counter()
    branches.prefill(prompt, prompt)
    prefill_ms = (time.perf_counter() - began) * 1e3
    times = []
    for token in prompt[:steps]:
        began = time.perf_counter()
        branches.extend([token])
        branches.logits(ids)
        times.append((time.perf_counter() - began) * 1e3)
    return {
        "load_ms": round(load_ms, 1),
        "prefill_ms": round(prefill_ms, 1),
        "prefill_tokens": 2 * past,
        "step_ms": round(float(np.median(times)), 2),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "peak_rss_without_model_mb": round(bare_mb, 1),
        "threads": 1,
    }


if __name__ == "__main__":
    # The NPU's simulator takes minutes a token: what is installed decides, not the user's setting.
    os.environ.pop("COSTEER_NPU", None)
    print(json.dumps(measure(Path(sys.argv[1]))))
