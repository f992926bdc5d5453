"""Which tokens a model speaks: one hash that both sides of the wire compute alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer

from edge_runtime.errors import BundleError


def fingerprint(source: str | Path | Tokenizer | Mapping[str, int]) -> str:
    """SHA-256 (hex) of the map from id to token string, added tokens included.

    `source` is the path of a tokenizer.json, an open tokenizer, or a token-to-id mapping (what
    transformers' ``get_vocab()`` returns). Merges, normalisers and templates do not count: two
    models agree when each id means the same string. Raises `BundleError` for an unreadable file.
    """
    if isinstance(source, str | Path):
        source = open_tokenizer(source)
    if isinstance(source, Tokenizer):
        source = source.get_vocab(with_added_tokens=True)
    digest = hashlib.sha256()
    for token, index in sorted(source.items(), key=lambda pair: (pair[1], pair[0])):
        # Lengths, not separators: a token may hold any character.
        raw = token.encode("utf-8", "surrogatepass")
        digest.update(b"%d %d " % (index, len(raw)) + raw)
    return digest.hexdigest()


def open_tokenizer(path: str | Path, todo: str = "Export the bundle again") -> Tokenizer:
    """The tokenizer in the file at `path`. Raises `BundleError`, with `todo`, if it is none."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise BundleError(
            str(path), f"this is not a readable tokenizer: {error}", todo=todo
        ) from error


END_MARKERS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")
"""Tokens that end a turn: those that a vocabulary has are end tokens, whatever metadata says."""
START_MARKERS = frozenset({"<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<s>"})
"""Tokens that begin a turn. Conversions from GGUF are known to name one as the end; it is not."""


def end_ids(tokenizer: Tokenizer, declared: Iterable[int]) -> tuple[int, ...]:
    """Ids that end an answer: the vocabulary's turn-end markers, then what the metadata declares
    as far as that can be believed. May be empty."""
    known = tokenizer.get_vocab(with_added_tokens=True)
    marked = [known[marker] for marker in END_MARKERS if marker in known]
    kept = [i for i in declared if (tokenizer.id_to_token(i) or "") not in START_MARKERS]
    return tuple(dict.fromkeys(marked + kept))
