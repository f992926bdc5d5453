"""What a bundle says about itself: the content of manifest.json."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
"""Raised when an older runtime would misread a newer bundle."""


Count = Annotated[int, Field(ge=1, le=1 << 31)]
Id = Annotated[int, Field(ge=0, le=1 << 31)]
Bytes = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """Where the weights came from."""

    kind: str
    """`folder`, `gguf`, `hub` or `wheel`."""
    name: str
    sha256: str
    """Of the GGUF file, or over the names and hashes of the folder's weight files."""


class Architecture(_Part):
    """The shapes a runtime needs to allocate its caches."""

    family: str
    layers: Annotated[int, Field(ge=1, le=1000)]
    kv_heads: Count
    head_dim: Count
    hidden: Count
    vocabulary_size: Count
    max_context: Count
    """Tokens, prompt and answer together."""


class Tokens(_Part):
    """Special token ids."""

    bos: Id | None
    end_ids: tuple[Id, ...]
    pad: Id


class Memory(_Part):
    """What running it takes: weights + rows * tokens * kv + workspace, in bytes."""

    weights_bytes: Bytes
    """Size of weights.bin. Mapped from the file; packed once more by kernels that need it."""
    kv_bytes_per_token_per_row: Bytes
    workspace_bytes: Bytes
    """Estimate for two rows and a prefill chunk of 64 tokens; the report has the measured peak."""


class File(_Part):
    """One file's size and SHA-256."""

    bytes: int
    sha256: str


class Manifest(_Part):
    """The content of manifest.json."""

    schema_version: int = SCHEMA_VERSION
    name: str
    created: str
    """UTC, ISO 8601: the only field that differs between two exports of the same source."""
    source: Source
    target: str
    recipe: dict[str, Any] = {}
    """The target's options as they were applied."""
    architecture: Architecture
    tokens: Tokens
    vocabulary_sha256: str
    memory: Memory
    branches: Literal["together", "separate"]
    """Whether two rows in one call give, bit for bit, what each gives alone."""
    ready: bool
    """False: verification failed, see the report."""
    verified: bool = False
    """Whether it was compared with the float model at all (`--no-verify` skips that)."""
    files: dict[str, File] = {}
    libraries: dict[str, str] = {}
    npu: dict[str, Any] | None = None
    """Only for NPU targets: chip, chunk sizes, context binaries."""
