"""Where a step's time goes: by operator, and by what a simulator charges for."""

from __future__ import annotations

import datetime
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle import Bundle

if TYPE_CHECKING:
    from edge_runtime.branches import TwoBranches
    from edge_runtime.profile import Job


class OutsideClock:
    """A whole token as the schedule drives it; what onnxruntime takes is subtracted."""

    def __init__(self, branches: TwoBranches, token: int, candidates: int) -> None:
        from edge_runtime.candidates import TopK
        from edge_runtime.graphs import growing
        from edge_runtime.graphs.engine import Binding

        self._branches, self._token = branches, token
        self._codec = TopK(candidates)
        self._inside = 0.0
        run = Binding.run

        clock = self

        def timed(self: Binding) -> None:
            began = time.perf_counter()
            run(self)
            clock._inside += time.perf_counter() - began

        Binding.run = timed  # type: ignore[method-assign]
        call = growing.call

        def timed_call(*arguments: Any) -> list[Any]:
            began = time.perf_counter()
            found = call(*arguments)
            clock._inside += time.perf_counter() - began
            return found

        growing.call = timed_call  # type: ignore[assignment]

    def token(self, ids: np.ndarray) -> float:
        """Milliseconds outside onnxruntime for decoding a frame, head, steering and step."""
        from edge_runtime.candidates import CandidateSet
        from edge_runtime.device import SteeredDevice
        from edge_runtime.rules import PRESETS
        from edge_runtime.text import Prompts

        logprobs = np.linspace(-9, -1, len(ids)).astype(np.float16)
        payload = ids.astype("<u4").tobytes() + logprobs.tobytes() + bytes(4)
        device = SteeredDevice(self._branches, Prompts((1,), (1,)), PRESETS["light"])
        self._inside = 0.0
        began = time.perf_counter()
        candidates: CandidateSet = self._codec.decode(payload)
        device.choose(0, candidates, device.head(candidates))
        device.rollback(0)
        device.extend([self._token])
        return (time.perf_counter() - began - self._inside) * 1e3


def operators(bundle: Bundle, job: Job, text: list[int], past: int) -> dict[str, float]:
    """Milliseconds of one two-row step by operator type, the largest first."""
    from edge_runtime.branches import TwoBranches
    from edge_runtime.graphs import decoder, growing

    module: Any = growing if growing.grows(bundle) else decoder

    with tempfile.TemporaryDirectory() as folder:
        plain = module.open_session

        def profiled(path: Path, **options: Any) -> Any:
            return plain(path, profile_prefix=f"{folder}/ops", **options)

        module.open_session = profiled
        try:
            rows = TwoBranches.open(bundle, max_length=job.context_tokens, threads=job.threads)
        finally:
            module.open_session = plain
        rows.prefill(text[:past], text[:past])
        steps = 10
        for _ in range(steps):
            rows.rollback(0)
            rows.extend(text[:1])
        events = json.loads(Path(rows._decoder.session.end_profiling()).read_text())
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    spent: dict[str, float] = {}
    for event in events:
        timed = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if timed and event["ts"] >= runs[-steps]:
            kind = event["args"]["op_name"]
            spent[kind] = spent.get(kind, 0.0) + event["dur"] / 1e3 / steps
    ranked = sorted(spent.items(), key=lambda pair: -pair[1])
    return {kind: round(ms, 3) for kind, ms in ranked}


def costs(report: dict[str, Any], weights_bytes: int, candidates: int) -> dict[str, Any]:
    """The report as a device profile of the simulator: `costs`, and what they were measured on.

    Linear in tokens: a prompt's first call and the slope of the rest come from the two prefill
    lengths that are farthest apart.
    """
    import onnxruntime

    lengths = sorted(int(n) for n in report["prefill_ms"])
    step = report["step_ms_without_head"]["p50"]
    first, slope = step, step / 2
    if len(lengths) > 1:
        least, most = lengths[0], lengths[-1]
        low, high = (report["prefill_ms"][str(n)] for n in (least, most))
        slope = max(0.0, (high - low) / (most - least))
        first = max(0.0, low - slope * least)
    return {
        "machine": f"{platform.machine()}, {report['threads']} thread(s)",
        "engine": f"onnxruntime {onnxruntime.__version__}, CPU",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "costs": {
            "weights_mb": weights_bytes / 1e6,
            "step_ms": step,
            "chunk_ms_per_token": 2 * slope,
            "prefill_ms": first,
            "prefill_ms_per_token": slope,
            "head_ms_per_candidate": report["head_candidates_ms"]["p50"] / candidates,
            "steer_ms": report["outside_ms"],
        },
    }
