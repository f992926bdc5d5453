"""The fused float decoder: from a transformers model to ONNX nodes, with the weights kept apart.

The onnxruntime-genai builder makes the graph (GroupQueryAttention with rotation, skip norms);
`export.rewrites` then makes it quicker, for every recipe. The language-model head is not part of
the decoder: `export.write` makes its graphs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_runtime.errors import UsageError
from export.tensors import Array, LazyTensor

OPSETS = {"": 21, "com.microsoft": 1}
IR_VERSION = 10

FAMILIES = {
    "LlamaForCausalLM": ("llama", "LlamaModel"),
    "MistralForCausalLM": ("mistral", "MistralModel"),
    "Qwen2ForCausalLM": ("qwen2", "QwenModel"),
    "Qwen3ForCausalLM": ("qwen3", "Qwen3Model"),
    "Gemma3ForCausalLM": ("gemma3", "Gemma3Model"),
}
"""transformers' class name: our family name, and the builder's class."""


@dataclass(slots=True)
class Product:
    """One matrix product of the decoder: node output = node input @ weight [K, N]."""

    name: str
    x: str
    y: str
    weight: LazyTensor

    @property
    def site(self) -> str:
        """`qkv`, `o`, `gate_up` or `down`."""
        for key, site in (("o_proj", "o"), ("down_proj", "down"), ("mlp", "gate_up")):
            if key in self.name:
                return site
        return "qkv"


@dataclass(slots=True)
class FloatDecoder:
    """A decoder graph without its weights. `nodes` are in topological order."""

    family: str
    nodes: list[Any]
    inputs: list[Any]
    outputs: list[Any]
    tensors: dict[str, LazyTensor]
    """Everything that is not a product's weight or the embedding, by initializer name."""
    products: dict[str, Product] = field(default_factory=dict)
    """By node name: the MatMul nodes in `nodes` whose weight is known here."""
    embedding_ids: str = ""
    """The flattened token ids [batch * sequence, 1]."""
    embedding_out: str = ""
    """What the embedding must produce, [batch * sequence, 1, hidden], before any scale."""


def family_of(config: Any) -> tuple[str, str]:
    """Our family name and the builder class for a transformers configuration.

    Raises `UsageError` that lists the families which can be exported.
    """
    names = list(getattr(config, "architectures", None) or [])
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    known = ", ".join(f"{family} ({name})" for name, (family, _) in FAMILIES.items())
    raise UsageError(
        "--model",
        "models of this family cannot be exported",
        got=names[0] if names else getattr(config, "model_type", "unknown"),
        allowed=known,
    )


def float_decoder(model: Any, max_context: int | None = None) -> FloatDecoder:
    """The fused and rewritten decoder of a transformers causal language model.

    The model's weights are referred to, not copied; each is converted when its tensor is loaded.
    `max_context` shortens the tables of rotations, whose length is the longest context.
    """
    from export.rewrites import rewrite

    decoder = _build(model)
    rewrite(decoder, max_context)
    return decoder


def _build(model: Any) -> FloatDecoder:
    import onnx_ir as ir
    from onnx import numpy_helper

    family, builder_name = family_of(model.config)
    with _quiet(), tempfile.TemporaryDirectory() as cache:
        from onnxruntime_genai.models import builders

        builder = getattr(builders, builder_name)(
            model.config,
            ir.DataType.FLOAT,
            ir.DataType.FLOAT,
            "cpu",
            cache,
            {"exclude_lm_head": True, "hf_remote": False, "hf_token": "false"},
        )
        builder.load_weights = lambda _path: model
        if family == "gemma3":
            # The builder rounds the embedding's scale to two decimals.
            builder.embed_attrs["scale"] = math.sqrt(model.config.hidden_size)
        builder.make_model("")
    graph = builder.model.graph
    graph.sort()
    tensors = {}
    for name in list(graph.initializers):
        value = graph.initializers[name].const_value
        tensors[name] = LazyTensor(tuple(int(d) for d in value.shape), _loader(value))
        del graph.initializers[name]
    proto = ir.serde.serialize_graph(graph)
    nodes = []
    for node in proto.node:
        if node.op_type == "Constant":
            array = numpy_helper.to_array(node.attribute[0].t)
            tensors[node.output[0]] = LazyTensor.of(array)
        else:
            nodes.append(node)
    return FloatDecoder(family, nodes, list(proto.input), list(proto.output), tensors)


def _loader(value: Any) -> Any:
    return lambda: np.asarray(value.numpy(), dtype=np.float32)


def head_weight(model: Any) -> LazyTensor:
    """The language-model head's weight [vocabulary, hidden]."""
    return _weight(model.get_output_embeddings().weight)


def embedding_weight(model: Any) -> LazyTensor | None:
    """The embedding [vocabulary, hidden]; None when it is the head's own weight (tied)."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return None if embedding.data_ptr() == head.data_ptr() else _weight(embedding)


def _weight(parameter: Any) -> LazyTensor:
    def load() -> Array:
        array: Array = parameter.detach().float().numpy()
        return array

    return LazyTensor(tuple(parameter.shape), load)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The builder narrates on standard output; that belongs to our caller."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
