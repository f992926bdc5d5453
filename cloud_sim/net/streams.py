"""Random numbers that components cannot take from each other.

Every random element (this device's uplink jitter, that device's loss) draws from a stream of its
own, found by name from the run's seed. Adding a device, an element or a draw leaves all other
streams as they were, and two arms of a comparison see the same weather.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

_BLOCK = 512


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The generator called `names` under `seed`: the same for the same arguments, everywhere.

    The name is hashed (SHA-256, not Python's salted hash) into the spawn key of a SeedSequence.
    """
    path = "/".join(str(name) for name in names).encode()
    digest = hashlib.sha256(path).digest()
    key = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=key))


def uniforms(generator: np.random.Generator) -> Iterator[float]:
    """Endless uniform numbers in [0, 1), drawn in blocks: one by one costs ten times as much."""
    while True:
        yield from generator.random(_BLOCK).tolist()


def normals(generator: np.random.Generator) -> Iterator[float]:
    """Endless standard normal numbers, drawn in blocks."""
    while True:
        yield from generator.standard_normal(_BLOCK).tolist()
