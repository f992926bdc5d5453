"""Load time, peak memory and step time of a bundle, measured in a process that does nothing else.

`python -m export.probe BUNDLE` prints one JSON object. The step is what a phone does for a token:
two rows through the decoder and 64 candidates' logits, caches bound as both past and present.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.errors import EnvironmentFailure

PAST, CHUNK, CANDIDATES = 256, 128, 64


def probe(bundle: Bundle) -> dict[str, Any]:
    """Run the probe in a child process. Raises `EnvironmentFailure` when it dies."""
    run = subprocess.run(
        [sys.executable, "-m", "export.probe", str(bundle.path)],
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


def measure(folder: Path, steps: int = 30) -> dict[str, Any]:
    """Measure here and now; peak memory is this process's."""
    import onnxruntime

    from export.runner import open_session

    bundle = open_bundle(folder, force=True, check=False)
    shape = bundle.manifest.architecture
    # A fresh interpreter with onnxruntime and numpy: the runtime itself, without any model.
    bare_mb = peak_mb()
    began = time.perf_counter()
    decoder, candidates = open_session(bundle.decoder), open_session(bundle.candidates)
    load_ms = (time.perf_counter() - began) * 1e3
    past = min(PAST, shape.max_context - CHUNK - 1)
    size = (2, shape.kv_heads, past + CHUNK, shape.head_dim)
    ids = np.random.default_rng(0).integers(0, shape.vocabulary_size, CANDIDATES)

    def bind(tokens: int, total: int) -> Any:
        binding = decoder.io_binding()
        for name, array in (
            ("input_ids", np.full((2, tokens), 5, np.int64)),
            ("attention_mask", np.ones((2, total), np.int64)),
        ):
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for name, value in caches.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("hidden", "cpu")
        return binding

    caches = {
        i.name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(size, np.float32))
        for i in decoder.get_inputs()
        if i.name.startswith("past")
    }
    binding = bind(CHUNK, CHUNK)
    began = time.perf_counter()
    decoder.run_with_iobinding(binding)
    prefill_ms = (time.perf_counter() - began) * 1e3
    binding = bind(1, past + 1)
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        decoder.run_with_iobinding(binding)
        hidden = binding.get_outputs()[-1].numpy()  # bound last
        candidates.run(None, {"hidden": hidden[:, -1], "candidate_ids": ids})
        times.append((time.perf_counter() - began) * 1e3)
    return {
        "load_ms": round(load_ms, 1),
        "prefill_128_two_rows_ms": round(prefill_ms, 1),
        "step_two_rows_ms": round(float(np.median(times)), 2),
        "peak_rss_mb": round(peak_mb(), 1),
        "peak_rss_without_model_mb": round(bare_mb, 1),
        "threads": 1,
    }


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    # getrusage would start from the parent's peak: Linux carries it over fork and exec.
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
