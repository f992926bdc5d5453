"""Candidate codecs that spend fewer bytes than `candidates.TopK`.

    full8        every token, one byte each: steps of a twentieth to an eighth of a nat
    packed:K     the K best; ids as differences in variable length, log-probabilities in a byte
    nucleus:P    as many best tokens as together have probability P, packed likewise

Bytes are little-endian. What a byte costs in quality is in docs/quality.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_runtime.candidates import CandidateSet, Floats, Ids, all_ids, best_ids, sound
from edge_runtime.errors import ConnectionFailed

_FULL = struct.Struct("<ff")
_PACKED = struct.Struct("<ffHf")
_LEVELS = 255
_DEEPEST = 32.0
"""Nats below the best beyond which a token counts as impossible (e^-32 of its probability)."""
NUCLEUS_CAP = 4096
"""A flat prediction would put half the vocabulary into its nucleus; more than this never pays."""


def _to_bytes(logprobs: Floats) -> tuple[float, float, npt.NDArray[np.uint8]]:
    """The best log-probability, the step, and how many steps below the best each is."""
    top = float(logprobs.max())
    deep = min(float(top - logprobs.min()), _DEEPEST)
    step = deep / _LEVELS if deep > 0 else 1.0
    steps = np.rint((top - np.maximum(logprobs, top - _DEEPEST)) / step)
    return top, step, np.minimum(steps, _LEVELS).astype(np.uint8)


def _from_bytes(top: float, step: float, steps: npt.NDArray[np.uint8]) -> Floats:
    return (np.float32(top) - np.float32(step) * steps.astype(np.float32)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Full8:
    """Every token's log-probability in one byte: V + 8 bytes."""

    name: str = "full8"

    def encode(self, logprobs: Floats) -> bytes:
        """V + 8 bytes."""
        top, step, steps = _to_bytes(logprobs)
        return _FULL.pack(top, step) + steps.tobytes()

    def decode(self, payload: bytes) -> CandidateSet:
        """All V candidates, within half a step."""
        if len(payload) <= _FULL.size:
            raise ConnectionFailed(
                "candidates", "a full payload is too short", got=f"{len(payload)} bytes"
            )
        top, step = _FULL.unpack_from(payload)
        steps = np.frombuffer(payload, np.uint8, offset=_FULL.size)
        logprobs = sound(_from_bytes(top, step, steps))
        return CandidateSet(all_ids(len(steps)), logprobs, full=True)


def pack(ids: Ids, logprobs: Floats, left_out: float) -> bytes:
    """Ascending `ids` [C] and their `logprobs` [C]: about 3 C + 14 bytes."""
    top, step, steps = _to_bytes(logprobs)
    head = _PACKED.pack(top, step, len(ids), left_out)
    return head + steps.tobytes() + _variable(np.diff(ids, prepend=0))


def unpack(payload: bytes) -> CandidateSet:
    """The inverse of `pack`. Raises `ConnectionFailed` for bytes that are none of its."""
    try:
        top, step, count, left_out = _PACKED.unpack_from(payload)
        steps = np.frombuffer(payload, np.uint8, count, _PACKED.size)
        ids = np.cumsum(_fixed(payload[_PACKED.size + count :], count))
    except (struct.error, ValueError) as error:
        raise ConnectionFailed(
            "candidates", "a packed payload is cut short", got=f"{len(payload)} bytes"
        ) from error
    return CandidateSet(ids, sound(_from_bytes(top, step, steps)), left_out=left_out)


def _variable(numbers: Ids) -> bytes:
    """LEB128: seven bits a byte, the low ones first, the eighth says that more follow."""
    out = bytearray()
    for number in numbers.tolist():
        while number >= 0x80:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return bytes(out)


def _fixed(raw: bytes, count: int) -> Ids:
    data = np.frombuffer(raw, np.uint8).astype(np.int64)
    last = np.flatnonzero(data < 0x80)
    if len(last) != count or (count and last[-1] != len(data) - 1):
        raise ValueError("not as many numbers as announced")
    starts = np.concatenate([[0], last[:-1] + 1])
    shift = 7 * (np.arange(len(data)) - np.repeat(starts, last - starts + 1))
    if shift.size and shift.max() > 35:
        raise ValueError("a number is too long")
    numbers: Ids = np.add.reduceat((data & 0x7F) << shift, starts)
    return numbers


@dataclass(frozen=True, slots=True)
class Packed:
    """The k best in about 3 k + 14 bytes (a plain top-k takes 6 k + 4)."""

    k: int

    @property
    def name(self) -> str:
        """As in `Open.codec`."""
        return f"packed:{self.k}"

    def encode(self, logprobs: Floats) -> bytes:
        """The k best; of equals at the edge those with the lower ids."""
        ids = best_ids(logprobs, self.k)
        return pack(ids, logprobs[ids], _outside(logprobs[ids]))

    def decode(self, payload: bytes) -> CandidateSet:
        """At most k candidates, ids ascending."""
        return unpack(payload)


@dataclass(frozen=True, slots=True)
class Nucleus:
    """The fewest best tokens that have `mass` of the probability, at most `NUCLEUS_CAP`."""

    mass: float

    @property
    def name(self) -> str:
        """As in `Open.codec`."""
        return f"nucleus:{self.mass:g}"

    def encode(self, logprobs: Floats) -> bytes:
        """As many tokens as the prediction is unsure of, packed."""
        ids = best_ids(logprobs, NUCLEUS_CAP)
        order = ids[np.argsort(-logprobs[ids], kind="stable")]
        mass = np.cumsum(np.exp(logprobs[order].astype(np.float64)))
        ids = np.sort(order[: int(np.searchsorted(mass, self.mass)) + 1])
        return pack(ids, logprobs[ids], _outside(logprobs[ids]))

    def decode(self, payload: bytes) -> CandidateSet:
        """The nucleus, ids ascending."""
        return unpack(payload)


def _outside(kept: Floats) -> float:
    return max(0.0, 1.0 - float(np.exp(kept.astype(np.float64)).sum()))
