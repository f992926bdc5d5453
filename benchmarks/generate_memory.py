"""Peak memory of a process that does what `costeer generate` does, without a cloud: imports, text,
two rows of 1,024 tokens, a prompt with a note of 900, and steered tokens over 64 candidates.

`python -m benchmarks.generate_memory BUNDLE` prints the peak in MB as one JSON line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.policy import Device

CONTEXT, NOTE = 1024, 900


def peak_over_bundle(bundle: Path) -> float:
    """The peak of such a process over the bundle's size on disk."""
    from edge_runtime.bundle import open_bundle

    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.generate_memory", str(bundle)],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    peak: float = json.loads(run.stdout)["peak_rss_mb"]
    return peak / (open_bundle(bundle, check=False).size_bytes / 1e6)


def main() -> None:
    import edge_runtime.cli
    import edge_runtime.connections.websocket
    import edge_runtime.ledger  # noqa: F401  # as generate does
    from edge_runtime.assembly import device_for
    from edge_runtime.bundle import open_bundle
    from edge_runtime.graphs.memory import peak_rss_mb
    from edge_runtime.rules import method
    from edge_runtime.text import Text

    bundle = open_bundle(sys.argv[1])
    text = Text.open(bundle)
    note = text.decode(text.encode("I am a vegetarian and I live in Porto. " * NOTE)[:NOTE])
    query = "What shall I eat tonight?"
    room = CONTEXT - len(text.prompts(query, note).aware)
    device = device_for(bundle, text, query, note, method("light"), max_tokens=room)
    device.prefill()
    _answer(device, room - 1)
    print(json.dumps({"peak_rss_mb": peak_rss_mb()}))


def _answer(device: Device, tokens: int) -> None:
    import numpy as np

    from edge_runtime.candidates import CandidateSet

    candidates = CandidateSet(np.arange(64) * 7, np.full(64, -np.log(64), np.float32))
    for position in range(tokens):
        decision = device.choose(position, candidates, device.head(candidates))
        device.extend([decision.token])


if __name__ == "__main__":
    main()
