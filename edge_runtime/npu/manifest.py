"""What a bundle for a phone's NPU says about itself: the `npu` part of its manifest.

Plain data, read before anything is loaded. The three static graphs are there twice: as ONNX that
any provider can run or compile (`static`), and compiled for one SoC (`context`, a small ONNX
wrapper around `binary`). A phone needs only the compiled ones and the embedding.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ROWS = 2
"""Branches in every graph: aware and agnostic."""


class NpuGraph(BaseModel):
    """Files of one static graph, relative to the bundle."""

    model_config = ConfigDict(extra="forbid")

    static: str
    context: str | None = None
    binary: str | None = None


class Coverage(BaseModel):
    """Where a graph's nodes went when it was compiled with the CPU forbidden."""

    model_config = ConfigDict(extra="forbid")

    nodes: dict[str, int]
    """Nodes by provider."""
    operators: dict[str, dict[str, int]]
    """By provider: nodes by operator."""


class NpuSection(BaseModel):
    """The sizes that were fixed at export, and what the host does around the graphs."""

    model_config = ConfigDict(extra="forbid")

    recipe: Literal["blocks", "w8a16"]
    soc: str
    soc_number: int
    architecture: str
    """HTP generation, `v68` to `v81`."""
    chunk: int = Field(gt=0)
    """Tokens of each row that one prefill call takes."""
    past: int = Field(gt=0)
    """Slots of keys and values a row has; prompt and answer together fit in past + 1."""
    group: int = Field(gt=0)
    """Query heads that share a key head: the mask has group x sequence lines."""
    prefill: NpuGraph
    decode: NpuGraph
    head: NpuGraph
    embedding: str
    """Rows of `hidden` int8 and `hidden / block` fp16 scales, one row a token."""
    block: int = Field(gt=0)
    kv: Literal["float16", "uint16"]
    inv_freq: list[float]
    rope_scale: float = 1.0
    mask_floor: float = -100.0
    """Added to a score that must not count: deep enough, and exact in every recipe."""
    first_token: int | None = None
    """The token that position 0 always holds; its keys and values are then in `first_kv`."""
    first_kv: str | None = None
    coverage: dict[str, Coverage] = Field(default_factory=dict)
