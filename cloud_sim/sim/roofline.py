"""How long a GPU's step takes, from published points and the hardware's data sheet.

    step = floor + per_row * rows + cached tokens * KV bytes / bandwidth + prompt tokens * per_token

`floor` (reading the weights, launching kernels) and `per_row` are fitted to a profile's published
steps by relative least squares; with one published step, `per_row` is the arithmetic of a row at
half the GPU's peak. `weights_floor` says what floor the data sheet alone would give, over several
models: overhead per layer plus weights over a share of the bandwidth. `residuals` shows how far
each published point is from its fit.

Not modelled: prefill that decode steps hide, expert layers, pipeline bubbles, several nodes. The
published batch curves include other requests' prefills, so `per_row` does too: a simulated cloud
that prefills as well is on the slow side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloud_sim.net.schema import CloudFile

COMPUTE_EFFICIENCY = 0.5
"""Share of the peak FLOP rate that a prefill reaches."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """The terms of one cloud's step, ms."""

    floor_ms: float
    ms_per_row: float
    ms_per_context_token: float
    prefill_ms_per_token: float

    def step_ms(self, rows: int, context_tokens: int = 0, prompt_tokens: int = 0) -> float:
        """A forward pass of `rows` decoding rows over `context_tokens` cached tokens in all, with
        `prompt_tokens` of prompts in the same pass."""
        return (
            self.floor_ms
            + self.ms_per_row * rows
            + self.ms_per_context_token * context_tokens
            + self.prefill_ms_per_token * prompt_tokens
        )


def roofline(file: CloudFile) -> Roofline:
    """The roofline of a cloud profile."""
    gpu, model, steps = file.gpu, file.model, file.steps
    arithmetic_ms = 2 * model.parameters_b * 1e9 / (gpu.tflops * 1e12 * COMPUTE_EFFICIENCY) * 1e3
    if len(steps.batch) > 1:
        batch, ms = np.array(steps.batch, float), np.array(steps.ms)
        # Relative errors: a millisecond off counts more where steps are short.
        terms = np.stack([np.ones_like(batch), batch], axis=1) / ms[:, None]
        (floor, per_row), *_ = np.linalg.lstsq(terms, np.ones_like(ms))
    else:
        per_row = arithmetic_ms
        floor = steps.ms[0] - per_row * steps.batch[0]
    return Roofline(
        floor_ms=float(floor),
        ms_per_row=float(per_row),
        ms_per_context_token=model.kv_kb_per_token / (gpu.bandwidth_gb_per_s * 1e3),
        prefill_ms_per_token=steps.prefill_ms_per_token or arithmetic_ms,
    )


def residuals(file: CloudFile) -> list[tuple[int, float, float]]:
    """(batch, published ms, fitted ms) of each published step."""
    line = roofline(file)
    return [
        (batch, ms, line.step_ms(batch))
        for batch, ms in zip(file.steps.batch, file.steps.ms, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class WeightsFloor:
    """floor = overhead_ms_per_layer * layers + weights / (efficiency * bandwidth)."""

    overhead_ms_per_layer: float
    efficiency: float

    def ms(self, file: CloudFile) -> float:
        """The floor it predicts for a cloud."""
        read_ms = file.model.weights_gb / file.gpu.bandwidth_gb_per_s * 1e3
        return self.overhead_ms_per_layer * file.model.layers + read_ms / self.efficiency


def weights_floor(files: Sequence[CloudFile]) -> WeightsFloor:
    """Fitted, by relative least squares, to the batch-1 steps of `files`."""
    ms = np.array([file.steps.ms[0] for file in files])
    layers = np.array([file.model.layers for file in files], float)
    read = np.array([f.model.weights_gb / f.gpu.bandwidth_gb_per_s * 1e3 for f in files])
    terms = np.stack([layers, read], axis=1) / ms[:, None]
    (overhead, inverse), *_ = np.linalg.lstsq(terms, np.ones_like(ms))
    return WeightsFloor(float(overhead), float(1 / inverse))
