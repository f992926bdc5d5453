"""Which tokens a model speaks: one hash that both sides of the wire compute alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in the file at `path`. Raises `BundleError` if it is none."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise BundleError(
            str(path), f"this is not a readable tokenizer: {error}", todo="Export the bundle again"
        ) from error
