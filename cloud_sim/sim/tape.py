"""Recorded answers: run the real models once, replay over any number of links without them.

A tape holds, for each answer prefix that was visited, what the cloud sent (its encoded candidates)
and what the small model's head gave for them (both rows). Schedules, sessions, the steering rule
and the sampler are not recorded, they run again: so a replay emits the tokens that the models
would, over other links, under another schedule, and under any rule that stays on the path.

Where a replay leaves the recorded prefixes it says so: with the models at hand it runs them and
records what they say; without (offline) it refuses. One exception: a cloud that runs ahead asks
for guesses which the recorded answer never took. Offline, such a guess is stood in for by the
nearest recorded prefix's payload: it costs the time and bytes of a real one, no token can come of
it, and it is counted (`stand_ins`).

A tape keeps the public query's token ids and the lengths of the private prompts, and of the note
the tokens of its names. The small model's scores depend on the note: treat a tape as private.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_runtime.candidates import CandidateSet, codec
from edge_runtime.errors import SpecError, UsageError
from edge_runtime.files import write_whole
from edge_runtime.policy import Scores

SCHEMA = 1


class Node:
    """One answer prefix: what is known of the position after it."""

    __slots__ = ("children", "payload", "position", "scores", "stand_in")

    def __init__(self, position: int) -> None:
        self.position = position
        self.payload: bytes | None = None
        self.scores: Scores | None = None
        """[2, C] over the payload's candidates, or [2, V] if the rule wanted the full head."""
        self.children: dict[int, Node] = {}
        self.stand_in = False
        """Not recorded: made up for a guess of the cloud."""


@dataclass(slots=True)
class Tape:
    """One question's recorded answers, all under one codec."""

    query: str
    model: str
    vocabulary: str
    vocabulary_size: int
    end_ids: tuple[int, ...]
    codec: str
    prompt: tuple[int, ...] = ()
    """The cloud's prompt."""
    prompt_lengths: tuple[int, int] = (0, 0)
    """Tokens of the aware and the agnostic prompt."""
    names: tuple[int, ...] = ()
    """Tokens of the note's names, for rules that treat them apart (`edge_runtime.names`)."""
    root: Node = field(default_factory=lambda: Node(0))

    def node(self, tokens: Sequence[int]) -> Node:
        """The node of an answer prefix, made if it is new."""
        node = self.root
        for token in tokens:
            node = child(node, token)
        return node

    @property
    def positions(self) -> int:
        """Recorded prefixes."""
        return sum(1 for node, _, _ in self._walk() if node.payload is not None)

    def _walk(self) -> list[tuple[Node, int, int]]:
        """(node, index of its parent, its token), parents first; without stand-ins."""
        found, index = [(self.root, -1, -1)], 0
        while index < len(found):
            for token, below in found[index][0].children.items():
                if not below.stand_in:
                    found.append((below, index, token))
            index += 1
        return found

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        nodes = [
            _StoredNode(
                parent,
                token,
                node.payload or b"",
                b"" if node.scores is None else np.ascontiguousarray(node.scores, "<f4").tobytes(),
            )
            for node, parent, token in self._walk()
        ]
        stored = _Stored(
            SCHEMA,
            self.query,
            self.model,
            self.vocabulary,
            self.vocabulary_size,
            self.end_ids,
            self.codec,
            self.prompt,
            self.prompt_lengths,
            nodes,
            self.names,
        )
        write_whole(path, msgspec.msgpack.encode(stored), private=True)

    @classmethod
    def load(cls, path: Path) -> Tape:
        """Read a file. Raises `SpecError`."""
        try:
            stored = msgspec.msgpack.decode(path.read_bytes(), type=_Stored)
        except FileNotFoundError:
            raise SpecError(str(path), "no such tape") from None
        except (OSError, msgspec.DecodeError) as error:
            raise SpecError(str(path), f"this is no tape: {error}") from error
        if stored.schema != SCHEMA:
            raise SpecError(
                str(path), "a tape of another schema", got=stored.schema, allowed=SCHEMA
            )
        tape = cls(
            stored.query,
            stored.model,
            stored.vocabulary,
            stored.vocabulary_size,
            stored.end_ids,
            stored.codec,
            stored.prompt,
            stored.prompt_lengths,
            stored.names,
        )
        nodes: list[Node] = []
        for entry in stored.nodes:
            node = child(nodes[entry.parent], entry.token) if nodes else tape.root
            node.payload = entry.payload or None
            if entry.scores:
                node.scores = np.frombuffer(entry.scores, "<f4").reshape(2, -1)
            nodes.append(node)
        return tape


def child(node: Node, token: int) -> Node:
    """The node one token further, made if it is new."""
    below = node.children.get(token)
    if below is None:
        below = node.children[token] = Node(node.position + 1)
    return below


class _StoredNode(msgspec.Struct, array_like=True):
    parent: int
    token: int
    payload: bytes
    scores: bytes


class _Stored(msgspec.Struct, array_like=True):
    schema: int
    query: str
    model: str
    vocabulary: str
    vocabulary_size: int
    end_ids: tuple[int, ...]
    codec: str
    prompt: tuple[int, ...]
    prompt_lengths: tuple[int, int]
    nodes: list[_StoredNode]
    names: tuple[int, ...] = ()


class TapeCodec:
    """The tape's codec, for rows that are nodes: what was encoded once is handed out again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._real = codec(name)
        self._decoded: dict[bytes, CandidateSet] = {}

    def encode(self, logprobs: Any) -> bytes:
        """The node's payload; a real row is encoded."""
        if isinstance(logprobs, Node):
            assert logprobs.payload is not None
            return logprobs.payload
        return self._real.encode(logprobs)

    def decode(self, payload: bytes) -> CandidateSet:
        """The candidates; the same object for the same payload."""
        known = self._decoded.get(payload)
        if known is None:
            known = self._decoded[payload] = self._real.decode(payload)
        return known


def left_path(tape: Tape, position: int, who: str) -> UsageError:
    """The refusal to go on where nothing was recorded."""
    return UsageError(
        "tape",
        f"the answer leaves the recorded path at position {position}, unknown to the {who}",
        got=f"a tape of {tape.positions} positions",
        todo="Run without --offline so that the models can be asked, or record this rule as well",
    )
