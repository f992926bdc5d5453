"""What a codec does to predictions of real models along a reference answer.

Besides the codecs of the wire there are two that need a memory of earlier frames, here only to be
compared (a lost or reordered frame would spoil those after it):

    delta:K    packed:K whose ids are coded against those of the frame before
    zstd:K     topk:K through zstandard, with a dictionary trained on the first half of this very
               answer's frames and judged on the second: a bound that a real dictionary stays below

What they decode to is what packed:K and topk:K decode to, so their quality is theirs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.candidates import Codec, Ids, best_ids, codec
from edge_runtime.compact import pack, unpack
from edge_runtime.errors import UsageError
from edge_runtime.rules import method
from edge_runtime.tuned import reads_notes
from scenarios.cells.codec_vectors import Vectors
from scenarios.methods import seen, steered
from scenarios.models.predictions import CLOUD, UPLOAD
from scenarios.spec import Cell

DICTIONARY_BYTES = 8192

Floats = npt.NDArray[np.floating]


def measure(cell: Cell, kept: Vectors) -> tuple[dict[str, Any], dict[str, float]]:
    """The cell's row, and what the clock said (kept apart: it is not the same twice)."""
    rule = reads_notes(method(cell.method, cell.gain))
    lossy = codec_of(cell.codec)
    sizes, encode_us = frames(cell.codec, kept.cloud)
    nll = full_nll = same = sent = 0.0
    whole = kept.steered(rule)
    for position, (table, place) in enumerate(zip(kept.tables, kept.places, strict=True)):
        through = steered(kept.about(rule, position), table, position, lossy)
        full_nll -= whole[position][0]
        nll -= float(through[place])
        same += whole[position][1] == int(np.argmax(through[:-1]))
        sent += place in seen(lossy, table[CLOUD].astype(np.float64)).ids
    row = {
        "case": cell.case.id,
        "method": cell.method,
        "gain": rule.gain,
        "bundle": cell.bundle,
        "cloud_model": cell.cloud_model,
        "codec": cell.codec,
        "seed": cell.seed,
        "tokens": len(kept),
        "payload_bytes": float(np.mean(sizes)),
        "full_bytes": 2 * kept.cloud.shape[1],
        "nll": nll,
        "full_nll": full_nll,
        "cloud_nll": kept.nll(CLOUD),
        "upload_nll": kept.nll(UPLOAD),
        "same": same,
        "sent": sent,
        "origin": {"payload_bytes": "measured", "nll": "measured"},
    }
    return row, {"encode_us": encode_us}


def codec_of(name: str) -> Codec:
    """The wire's codec, or the one that decodes to the same. Raises `UsageError`."""
    kind, _, count = name.partition(":")
    stands = {"delta": "packed", "zstd": "topk"}.get(kind)
    return codec(f"{stands}:{count}" if stands else name)


def frames(name: str, predictions: Floats) -> tuple[list[int], float]:
    """Bytes of each frame of `predictions` [n, V], and the median time to encode one, in us."""
    kind, _, count = name.partition(":")
    encode = codec(name).encode if kind not in ("delta", "zstd") else None
    if kind == "delta":
        encode = DeltaPacked(int(count)).encode
    if kind == "zstd":
        half = len(predictions) // 2
        plain = codec(f"topk:{count}")
        encode = Trained(plain, [plain.encode(row) for row in predictions[:half]]).encode
        predictions = predictions[half:]
    assert encode is not None
    sizes, spent = [], []
    for row in predictions:
        began = time.perf_counter()
        sizes.append(len(encode(row)))
        spent.append(1e6 * (time.perf_counter() - began))
    return sizes, float(np.median(spent))


class DeltaPacked:
    """`packed:K` with a memory: a bit for each id of the frame before says whether it stays."""

    def __init__(self, k: int) -> None:
        self.k = k
        self._sent: Ids = np.empty(0, np.int64)
        self._received: Ids = np.empty(0, np.int64)

    def encode(self, logprobs: Floats) -> bytes:
        """A mask over the last ids, the new ids as differences, then a byte for each."""
        ids = best_ids(logprobs, self.k)
        stays = np.isin(self._sent, ids, assume_unique=True)
        new = np.setdiff1d(ids, self._sent, assume_unique=True)
        # The stayed ids go first, without being named: their places are the mask's.
        order = np.concatenate([self._sent[stays], new])
        left_out = max(0.0, 1.0 - float(np.exp(logprobs[ids].astype(np.float64)).sum()))
        numbered = np.concatenate([np.zeros(int(stays.sum()), np.int64), new])
        body = pack(numbered, logprobs[order], left_out)
        # `pack` writes a byte for each of the zero differences of what stayed: leave them out.
        tail = len(body) - _variable_bytes(numbered)
        body = body[:tail] + body[tail + int(stays.sum()) :]
        self._sent = ids
        return np.packbits(stays).tobytes() + body

    def decode(self, payload: bytes) -> tuple[Ids, Floats]:
        """Ids [C] ascending and their log-probabilities [C]."""
        mask = (len(self._received) + 7) // 8
        bits = np.unpackbits(np.frombuffer(payload[:mask], np.uint8))[: len(self._received)]
        stayed = self._received[bits.astype(bool)]
        body = payload[mask:]
        head = len(body) - _trailing(body, len(stayed))
        filled = body[:head] + b"\0" * len(stayed) + body[head:]
        found = unpack(filled)
        ids = np.concatenate([stayed, found.ids[len(stayed) :]])
        order = np.argsort(ids)
        self._received = ids[order]
        return ids[order], found.logprobs[order]


def _variable_bytes(numbers: Ids) -> int:
    """What `pack` spends on the differences of `numbers`."""
    steps = np.diff(numbers, prepend=0)
    return int(sum(max(1, -(-int(step).bit_length() // 7)) for step in steps))


def _trailing(body: bytes, stayed: int) -> int:
    """Bytes of the differences in a body whose first `stayed` ones were left out."""
    (count,) = np.frombuffer(body[8:10], "<u2")
    return len(body) - 14 - int(count)


class Trained:
    """A codec's payloads through zstandard with a dictionary."""

    def __init__(self, plain: Codec, samples: Sequence[bytes]) -> None:
        import zstandard

        self._plain = plain
        try:
            kept: Any = zstandard.train_dictionary(DICTIONARY_BYTES, list(samples))
        except zstandard.ZstdError as error:
            raise UsageError(
                "codec zstd:K",
                "the answer is too short to train a dictionary on",
                got=f"{len(samples)} frames",
            ) from error
        self._press = zstandard.ZstdCompressor(
            level=3, dict_data=kept, write_content_size=False, write_dict_id=False
        )
        self._open = zstandard.ZstdDecompressor(dict_data=kept)

    def encode(self, logprobs: Floats) -> bytes:
        """The plain payload, compressed."""
        pressed: bytes = self._press.compress(self._plain.encode(logprobs))
        return pressed

    def decode(self, payload: bytes, size: int) -> bytes:
        """The plain payload of `size` bytes."""
        plain: bytes = self._open.decompress(payload, max_output_size=size)
        return plain
