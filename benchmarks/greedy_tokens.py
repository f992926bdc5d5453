"""Greedy tokens of a bundle with nothing but numpy and onnxruntime: for other processors.

`python benchmarks/greedy_tokens.py BUNDLE [STEPS]` prints the tokens and some
logits as JSON. `benchmarks/arm_check.sh` compares it between this machine and emulated arm64.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime

ROWS = ([1, 9, 30, 77, 5, 210, 33, 8, 121, 64, 7], [1, 9, 30, 77, 5])


def main(folder: Path, steps: int) -> None:
    """Two rows of different length, prefilled in one call, then `steps` greedy tokens of row 0."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    decoder, head = (
        onnxruntime.InferenceSession(
            str(folder / name), options, providers=["CPUExecutionProvider"]
        )
        for name in ("decoder.onnx", "head.onnx")
    )
    past = [i for i in decoder.get_inputs() if i.name.startswith("past")]
    length = max(map(len, ROWS)) + steps
    caches = {i.name: np.zeros((2, i.shape[1], length, i.shape[3]), np.float32) for i in past}
    outputs = ["hidden", *(i.name.replace("past_key_values", "present") for i in past)]
    ids = np.zeros((2, max(map(len, ROWS))), np.int64)
    for row, tokens in enumerate(ROWS):
        ids[row, : len(tokens)] = tokens
    filled = [len(tokens) for tokens in ROWS]
    last = [count - 1 for count in filled]
    emitted: list[int] = []
    for _ in range(steps):
        mask = (np.arange(max(filled)) < np.array(filled)[:, None]).astype(np.int64)
        out = decoder.run(outputs, {"input_ids": ids, "attention_mask": mask, **caches})
        caches = dict(zip(caches, out[1:], strict=True))
        states = np.stack([out[0][row, last[row]] for row in range(2)])
        logits = head.run(None, {"hidden": states})[0]
        token = int(logits[0].argmax())
        emitted.append(token)
        ids, last = np.full((2, 1), token, np.int64), [0, 0]
        filled = [count + 1 for count in filled]
    print(
        json.dumps(
            {
                "machine": platform.machine(),
                "onnxruntime": onnxruntime.__version__,
                "tokens": emitted,
                "last_logits": [round(float(x), 4) for x in logits[:, :8].ravel()],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 16)
