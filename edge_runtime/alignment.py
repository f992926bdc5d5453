"""Two tokenizers side by side: which tokens are the same bytes, and how to choose byte by byte.

A cloud model may speak other tokens than the device's small model. Two ways to steer it still:

    map     both are restricted to the tokens whose bytes they share
    byte    the next token's bytes are chosen one at a time: all tokens that begin with the bytes
            so far vote for their next byte with their probability, in both models

Pure numpy over byte strings; the device around it is `edge_runtime.translated`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

Floats = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]

END = 256
"""The symbol after the last byte of a token, beside the bytes 0 to 255."""
LEAST = 1e-9
"""Mass below which a model has no opinion: the difference of two such is noise."""


@lru_cache(maxsize=1)
def _byte_level() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, backwards (openai/gpt-2, encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stands = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in stands)
    stands |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return {character: byte for byte, character in stands.items()}


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """The bytes that each id stands for; None for added (special) tokens and unused ids.

    Knows byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) and SentencePiece's form (▁ for a space,
    ``<0x0A>`` for a byte: Gemma, Llama 2); which one it is, the vocabulary itself tells.
    """
    known = tokenizer.get_vocab(with_added_tokens=True)
    special = set(tokenizer.get_added_tokens_decoder())
    level = _byte_level()
    sentencepiece = "<0x0A>" in known
    found: list[bytes | None] = [None] * (max(known.values()) + 1)
    for token, index in known.items():
        if index in special:
            continue
        if sentencepiece:
            whole = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
            found[index] = (
                bytes([int(token[3:5], 16)]) if whole else token.replace("▁", " ").encode()
            )
        elif all(character in level for character in token):
            found[index] = bytes(level[character] for character in token)
    return found


@dataclass(frozen=True, slots=True)
class TokenMap:
    """Which of our tokens each of theirs is, byte for byte."""

    to_ours: Ids
    """[their vocabulary]: our id, or -1."""

    @classmethod
    def between(
        cls,
        ours: Sequence[bytes | None],
        theirs: Sequence[bytes | None],
        ends: tuple[Sequence[int], Sequence[int]] = ((), ()),
    ) -> TokenMap:
        """`ends`: our end tokens and theirs; each of theirs becomes the first of ours."""
        where: dict[bytes, int] = {}
        for index, raw in enumerate(ours):
            if raw is not None:
                where.setdefault(raw, index)
        to_ours = np.array([-1 if raw is None else where.get(raw, -1) for raw in theirs], np.int64)
        if ends[0]:
            to_ours[list(ends[1])] = ends[0][0]
        return cls(to_ours)

    @property
    def shared(self) -> int:
        """Tokens of theirs that we have too."""
        return int((self.to_ours >= 0).sum())


class ByteTree:
    """A vocabulary in the order of its bytes, so that a prefix is a range."""

    def __init__(self, tokens: Sequence[bytes | None], ends: Sequence[int] = ()) -> None:
        # An end token is the empty byte string: it stands before everything, and ends at once.
        ended = set(ends)
        pairs = [
            (b"" if index in ended else raw, index)
            for index, raw in enumerate(tokens)
            if index in ended or raw
        ]
        pairs.sort(key=lambda pair: (pair[0] or b"", pair[1]))
        self.words = [word or b"" for word, _ in pairs]
        self.ids = np.array([index for _, index in pairs], np.int64)

    def masses(self, probabilities: Floats) -> npt.NDArray[np.float64]:
        """Running sums [n + 1] of `probabilities` [V] in this order: a range's mass in one step."""
        ordered = np.asarray(probabilities, np.float64)[self.ids]
        return np.concatenate([[0.0], np.cumsum(ordered)])

    def branches(self, prefix: bytes) -> list[tuple[int, int, int]]:
        """What may follow `prefix`: (symbol, first, last) ranges, `END` first if it may end."""
        low = bisect_left(self.words, prefix)
        high = len(self.words) if not prefix else bisect_left(self.words, _after(prefix), low)
        found = []
        at, depth = low, len(prefix)
        while at < high:
            word = self.words[at]
            if len(word) == depth:
                symbol, stop = END, bisect_left(self.words, prefix + b"\0", at, high)
            else:
                symbol = word[depth]
                stop = bisect_left(self.words, _after(word[: depth + 1]), at, high)
            found.append((symbol, at, stop))
            at = stop
        return found


def _after(prefix: bytes) -> bytes:
    """The least byte string behind all that begin with `prefix`."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        return b"\xff" * (len(prefix) + 64)
    return trimmed[:-1] + bytes([trimmed[-1] + 1])


@dataclass(frozen=True, slots=True)
class Opinion:
    """One model's next-token probabilities, asked by bytes."""

    tree: ByteTree
    sums: npt.NDArray[np.float64]

    @classmethod
    def of(cls, tree: ByteTree, logprobs: Floats) -> Opinion:
        """From log-probabilities [V] (natural)."""
        return cls(tree, tree.masses(np.exp(np.asarray(logprobs, np.float64))))

    def next(self, prefix: bytes) -> npt.NDArray[np.float64]:
        """Mass [257] of each next byte, and of ending, among the tokens that begin so."""
        mass = np.zeros(257)
        for symbol, first, last in self.tree.branches(prefix):
            mass[symbol] = self.sums[last] - self.sums[first]
        return mass


Pick = Callable[[npt.NDArray[np.int64], Floats, Floats, Floats], tuple[int, float]]
"""Symbols [n], the cloud's log-mass [n], ours aware and agnostic [n]: the chosen index, and the
log-probability with which it was chosen."""


def choose_bytes(
    candidates: Sequence[bytes], logprobs: Floats, aware: Opinion, agnostic: Opinion, pick: Pick
) -> tuple[int, float]:
    """The candidate [index] that byte-by-byte choice ends at, and its log-probability.

    `candidates`: the cloud's tokens as bytes (an end token: empty), each once; `logprobs` [C].
    Asks `pick` once per byte at which candidates differ.
    """
    left = list(range(len(candidates)))
    prefix, total = b"", 0.0
    while len(left) > 1:
        groups: dict[int, list[int]] = {}
        for index in left:
            word = candidates[index]
            symbol = word[len(prefix)] if len(word) > len(prefix) else END
            groups.setdefault(symbol, []).append(index)
        symbols = np.array(sorted(groups), np.int64)
        at = 0
        if len(symbols) > 1:
            cloud = np.array(
                [np.logaddexp.reduce(np.asarray(logprobs)[groups[int(s)]]) for s in symbols]
            )
            ours = [
                np.log(np.maximum(one.next(prefix)[symbols], LEAST)) for one in (aware, agnostic)
            ]
            at, logprob = pick(symbols, cloud, *ours)
            total += logprob
        left = groups[int(symbols[at])]
        if symbols[at] == END:
            break
        prefix += bytes([int(symbols[at])])
    return left[0], total
