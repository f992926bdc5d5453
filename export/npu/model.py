"""A transformers causal model as plain arrays: what the static NPU graph is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from edge_runtime.errors import UsageError
from export import graph

Array = npt.NDArray[Any]

FAMILIES = ("llama", "qwen2", "qwen3")
"""`model_type` of the transformers configurations that this builder knows."""


@dataclass(frozen=True, slots=True)
class StaticModel:
    """A decoder as arrays: its sizes, its float32 weights by transformers name, its rotation."""

    family: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    epsilon: float
    inv_freq: Array
    """Rotary frequencies [head_dim / 2], scaling included."""
    rope_scale: float
    """What cos and sin are multiplied by (1 but for a few scaling rules)."""
    weights: dict[str, Array]

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.heads // self.kv_heads

    def weight(self, name: str) -> Array | None:
        """The tensor called `name`, or None where this model has none (a bias)."""
        return self.weights.get(name)

    @property
    def embedding(self) -> Array:
        """Rows of the input embedding, [vocabulary, hidden]."""
        return self.weights["model.embed_tokens.weight"]

    @property
    def head(self) -> Array:
        """Rows of the output head, [vocabulary, hidden]; the embedding where the two are tied."""
        return self.weights.get("lm_head.weight", self.embedding)


def check_config(config: Any) -> None:
    """Raise `UsageError`, before any weight is read, for a family whose block is not built here."""
    on_cpu = graph.FAMILIES.keys() & set(config.architectures or [])
    elsewhere = "Use --target cpu-int8 for this model" if on_cpu else ""
    if config.model_type not in FAMILIES or config.hidden_act != "silu":
        raise UsageError(
            "--model",
            "the NPU graph is not written for this family",
            got=config.model_type,
            allowed=", ".join(FAMILIES),
            todo=elsewhere,
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UsageError(
            "--model",
            "the NPU graph has full attention only",
            got=", ".join(sorted(kinds)),
            todo=elsewhere,
        )
    scaling = getattr(config, "rope_scaling", None) or {}
    rope = scaling.get("rope_type") or scaling.get("type") or "default"
    if "dynamic" in rope or rope == "longrope":
        raise UsageError(
            "--model",
            "rotary frequencies that change with the length cannot be made static",
            got=rope,
            todo=elsewhere,
        )


def static_model(model: Any, *, layers: int | None = None) -> StaticModel:
    """Take what the graph needs from a transformers causal model; `layers` keeps the first few.

    Raises `UsageError` for a model that `check_config` refuses.
    """
    config = model.config
    check_config(config)
    rotary = model.model.rotary_emb
    kept = layers or config.num_hidden_layers
    outer = {f"model.layers.{index}." for index in range(kept)}
    weights = {
        name: tensor.detach().float().cpu().numpy()
        for name, tensor in model.state_dict().items()
        if not name.startswith("model.layers.") or ".".join(name.split(".")[:3]) + "." in outer
    }
    return StaticModel(
        family=config.model_type,
        layers=kept,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        hidden=config.hidden_size,
        vocabulary=weights["model.embed_tokens.weight"].shape[0],
        epsilon=config.rms_norm_eps,
        inv_freq=rotary.inv_freq.detach().float().cpu().numpy(),
        rope_scale=float(rotary.attention_scaling),
        weights=weights,
    )
