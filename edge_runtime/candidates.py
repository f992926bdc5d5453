"""The cloud's prediction for one position, and the codecs that carry it.

A codec is named in `Open`: ``full`` (every token's log-probability in fp16, no ids) or ``topk:K``
(the K best as u32 id and fp16 log-probability, then the probability mass that was left out as
fp32); smaller ones are in `edge_runtime.compact`. Both sides of the wire use this module, so what
the device decodes is what was meant.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import ConnectionFailed, UsageError

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]

_FP16_FLOOR = -65504.0
_MASS = struct.Struct("<f")
# Made once: a frame is decoded for every token, and a type's name would be read each time.
_U4, _F2 = np.dtype("<u4"), np.dtype("<f2")
_ID, _F4 = np.dtype(np.int64), np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """Token ids [C] (ascending), their log-probabilities [C] (nats), and what is not among them."""

    ids: Ids
    logprobs: Floats
    left_out: float = 0.0
    """Probability mass of the tokens that are not here; 0 for the full vocabulary."""
    full: bool = False
    """True: `ids` is 0..V-1, and a head over the candidates is the full head."""

    @property
    def best(self) -> int:
        """The most probable token; of equals the one with the lowest id."""
        return int(self.ids[self.logprobs.argmax()])


class Codec(Protocol):
    """How a log-probability vector becomes bytes, and back."""

    @property
    def name(self) -> str:
        """As in `Open.codec`."""
        ...

    def encode(self, logprobs: Floats) -> bytes:
        """Bytes for `logprobs` [V] (natural logarithms, summing to one in probability)."""
        ...

    def decode(self, payload: bytes) -> CandidateSet:
        """The inverse, as far as the codec keeps it."""
        ...


LOOSE = 0.01
"""What rounding may add to a probability."""


def sound(logprobs: Floats) -> Floats:
    """`logprobs` [C], if they can be what a model predicts. Raises `ConnectionFailed`.

    One that is none (a cloud model that overflowed in fp16, or no cloud model at all) would
    silently make the answer nonsense.
    """
    best = logprobs.max()
    if not -np.inf < best <= LOOSE:  # NaN is in no range, and comes through `max`
        raise ConnectionFailed(
            "candidates", "these are no log-probabilities", got=f"best {best}", allowed="at most 0",
            todo="Look at the cloud's model",
        )  # fmt: skip
    return logprobs


@lru_cache(maxsize=8)
def all_ids(size: int) -> Ids:
    """0 to `size` - 1, made once."""
    ids = np.arange(size, dtype=np.int64)
    ids.flags.writeable = False
    return ids


def _fp16(values: Floats) -> npt.NDArray[np.float16]:
    # Minus infinity would survive fp16, but inf - inf in steering would not: floor it.
    return np.maximum(values, _FP16_FLOOR).astype("<f2")


@dataclass(frozen=True, slots=True)
class Full:
    """Every token's log-probability in fp16: 2 V bytes."""

    name: str = "full"

    def encode(self, logprobs: Floats) -> bytes:
        """2 V bytes."""
        return _fp16(logprobs).tobytes()

    def decode(self, payload: bytes) -> CandidateSet:
        """All V candidates."""
        if len(payload) % 2 or not payload:
            raise ConnectionFailed(
                "candidates", "a full payload has a wrong length", got=f"{len(payload)} bytes"
            )
        logprobs = sound(np.frombuffer(payload, dtype="<f2").astype(np.float32))
        return CandidateSet(all_ids(len(logprobs)), logprobs, full=True)


def best_ids(logprobs: Floats, k: int) -> Ids:
    """The ids of the min(k, V) best of `logprobs` [V], ascending; of equals at the edge the lower
    ones, so that bytes are reproducible."""
    if k >= len(logprobs):
        return np.arange(len(logprobs))
    edge = np.partition(logprobs, len(logprobs) - k)[len(logprobs) - k]
    above = np.flatnonzero(logprobs > edge)
    at = np.flatnonzero(logprobs == edge)[: k - len(above)]
    ids: Ids = np.sort(np.concatenate([above, at]))
    return ids


@dataclass(frozen=True, slots=True)
class TopK:
    """The k best as u32 id + fp16 log-probability, and the fp32 mass left out: 6 k + 4 bytes."""

    k: int

    @property
    def name(self) -> str:
        """As in `Open.codec`."""
        return f"topk:{self.k}"

    def encode(self, logprobs: Floats) -> bytes:
        """6 min(k, V) + 4 bytes. Ties at the edge go to the lower id, so bytes are reproducible."""
        ids = best_ids(logprobs, self.k)
        return self.pack(ids, logprobs[ids])

    def pack(self, ids: Ids, logprobs: Floats) -> bytes:
        """The payload of these candidates: ascending `ids` [C] with C <= k, `logprobs` [C]."""
        left_out = max(0.0, 1.0 - float(np.exp(logprobs.astype(np.float64)).sum()))
        return ids.astype("<u4").tobytes() + _fp16(logprobs).tobytes() + _MASS.pack(left_out)

    def decode(self, payload: bytes) -> CandidateSet:
        """At most k candidates, ids ascending."""
        count, rest = divmod(len(payload) - _MASS.size, 6)
        if count < 1 or rest:
            raise ConnectionFailed(
                "candidates", "a top-k payload has a wrong length", got=f"{len(payload)} bytes"
            )
        ids = np.frombuffer(payload, _U4, count).astype(_ID)
        logprobs = sound(np.frombuffer(payload, _F2, count, 4 * count).astype(_F4))
        (left_out,) = _MASS.unpack_from(payload, 6 * count)
        if not 0 <= left_out <= 1 + LOOSE:
            raise ConnectionFailed("candidates", "a mass left out is none", got=left_out)
        return CandidateSet(ids, logprobs, left_out)


CODECS = "full, full8, topk:K, packed:K, nucleus:P"


def codec(name: str) -> Codec:
    """The codec called `name`. Raises `UsageError` for a name or number that is none."""
    from edge_runtime import compact

    kind, _, number = name.partition(":")
    # No vocabulary has a number of ten digits, and Python takes none of thousands.
    whole = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0
    if name == "full":
        return Full()
    if name == "full8":
        return compact.Full8()
    if kind == "topk" and whole >= 1:
        return TopK(whole)
    if kind == "packed" and 1 <= whole <= 65535:
        return compact.Packed(whole)
    if kind == "nucleus" and number.count(".") <= 1 and number.replace(".", "").isdigit():
        mass = float(number)
        if 0 < mass < 1:
            return compact.Nucleus(mass)
    raise UsageError(
        "codec", "no such candidate codec", got=name, allowed=f"{CODECS} with K >= 1, 0 < P < 1"
    )


def draw(distribution: CandidateSet, uniform: float) -> int:
    """The token at `uniform` in [0, 1) of the inverse CDF over ascending ids."""
    cumulative = np.cumsum(np.exp(distribution.logprobs.astype(np.float64)))
    at = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(distribution.ids[min(at, len(distribution.ids) - 1)])
