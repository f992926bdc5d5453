"""The device by itself: methods whose base is the small model ask no cloud.

device   prefill   steer → y0   step(y0)   steer → y1   step(y1)   ...
"""

from __future__ import annotations

from functools import partial

import numpy as np

from edge_runtime.candidates import CandidateSet
from edge_runtime.policy import Device
from edge_runtime.schedules.actions import Compute, Emit, Finish, Load, Schedule


def alone(device: Device, vocabulary_size: int, max_tokens: int) -> Schedule:
    """Emit at most `max_tokens` tokens that the device chooses from its own predictions."""
    flat = np.full(vocabulary_size, -np.log(vocabulary_size), np.float32)
    whole = CandidateSet(np.arange(vocabulary_size), flat, full=True)
    yield Compute("prefill", device.prefill, device.load("prefill"))
    for position in range(max_tokens):
        scores = yield Compute(
            "head", partial(device.head, whole), device.load("head", candidates=vocabulary_size)
        )
        decision = yield Compute(
            "steer",
            partial(device.choose, position, whole, scores),
            Load(candidates=vocabulary_size),
        )
        yield Emit(decision.token, decision)
        if decision.token in device.end_ids:
            return Finish("end")
        if position + 1 < max_tokens:
            yield Compute(
                "step", partial(device.extend, [decision.token]), device.load("step", tokens=1)
            )
    return Finish("length")
