"""A live answer on tape, and the tape in the place of the models.

`Listener` writes down, on the device, what came from the cloud and what the small model said to it,
so that the same answer can be run over other links without loading a model again. Only for
lockstep, where predictions come in the order of the tokens. The tape holds the small model's
scores: it is as private as the note.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from cloud_sim.sim.record import RecordingBranches
from cloud_sim.sim.replay import Replay
from cloud_sim.sim.tape import Tape
from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.candidates import CandidateSet, Codec, Floats
from edge_runtime.device import SteeredDevice
from edge_runtime.rules import method
from edge_runtime.sampling import Sampler
from edge_runtime.text import Text
from edge_runtime.transcript import TokenRecord
from scenarios.spec import Cell


class Listener:
    """Records the live answer of `device`; stands in for the codec of its request."""

    def __init__(self, bundle: Bundle, device: SteeredDevice, query: str, codec: Codec) -> None:
        self.name, self._codec = codec.name, codec
        self._emitted: list[int] = []
        self.tape = Tape(
            query,
            bundle.manifest.name,
            bundle.manifest.vocabulary_sha256,
            bundle.manifest.architecture.vocabulary_size,
            tuple(device.end_ids),
            codec.name,
            tuple(device.prompts.agnostic),
        )
        self.tape.names = device.prompts.names
        device.branches = RecordingBranches(device.branches, self.tape)

    def encode(self, logprobs: Floats) -> bytes:
        """The codec's own."""
        return self._codec.encode(logprobs)

    def decode(self, payload: bytes) -> CandidateSet:
        """The codec's own; the payload is the prediction after what was emitted so far."""
        self.tape.node(self._emitted).payload = bytes(payload)
        return self._codec.decode(payload)

    def emitted(self, record: TokenRecord) -> None:
        """A token is final."""
        self._emitted.append(record.token)


@dataclass(slots=True)
class Recorded:
    """`scenarios.models.opened.Models` of one recorded answer: no model is loaded."""

    bundle: Bundle
    text: Text
    tape: Tape

    @classmethod
    def open(cls, bundle: Path, tape: Path) -> Recorded:
        """A tape and the bundle it was recorded with."""
        opened = open_bundle(bundle, check=False)
        return cls(opened, Text.open(opened), Tape.load(tape))

    def replay(self, cell: Cell) -> Replay:
        """The tape; leaving it is refused."""
        sampler = Sampler(cell.temperature, cell.top_p, cell.seed)
        return Replay(self.tape, method(cell.method, cell.gain), sampler)

    def decode(self, cell: Cell) -> Callable[..., str]:
        """Ids to text."""
        return self.text.decode

    def weights_mb(self, cell: Cell) -> float:
        """What one step of the device's model reads, in 10^6 bytes."""
        return self.bundle.manifest.memory.weights_bytes / 1e6


def listens(device: Any, schedule: str) -> TypeGuard[SteeredDevice]:
    """Whether a `Listener` can record this answer."""
    return isinstance(device, SteeredDevice) and schedule.partition(":")[0] == "lockstep"
