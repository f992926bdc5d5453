"""When a fleet's devices begin: at random, or as recorded."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from cloud_sim.net.streams import stream
from edge_runtime.errors import SpecError


def poisson(devices: int, per_s: float, seed: int) -> list[float]:
    """Arrival times (ms) of `devices` answers, `per_s` a second on average."""
    gaps = stream(seed, "arrivals").exponential(1e3 / per_s, devices)
    return [float(t) for t in np.cumsum(gaps)]


def recorded(path: Path) -> list[float]:
    """Arrival times (ms) from a file with one a line, in seconds, ascending, from the first on.

    A server's log of request times is such a file. Raises `SpecError` with the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), f"the arrivals cannot be read: {error}") from error
    times: list[float] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            seconds = float(line)
        except ValueError:
            raise SpecError(where, "not a number of seconds", got=repr(line[:40])) from None
        if not math.isfinite(seconds):
            raise SpecError(where, "a time that cannot be", got=repr(line[:40]))
        if times and seconds * 1e3 < times[-1]:
            raise SpecError(where, "a time before the one above it", got=f"{seconds:g} s")
        times.append(seconds * 1e3)
    if not times:
        raise SpecError(str(path), "there are no arrivals in it")
    return [time - times[0] for time in times]
