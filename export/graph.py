"""The fused float decoder: from a transformers model to ONNX nodes, with the weights kept apart.

The onnxruntime-genai builder makes the graph (GroupQueryAttention with rotation, skip norms). Two
rewrites follow, for every recipe:

* `flatten`: between attention nodes everything runs on [batch * sequence, width] matrices, which
  is what the integer kernels take;
* `merge`: products that read the same input (gate and up, or q, k and v) become one.

The language-model head is not part of the decoder: `export.heads` makes its graphs.
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

_SHAPE_3D = "costeer.shape_3d"


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
    """The flattened token ids [batch * sequence]."""
    embedding_out: str = ""
    """What the embedding must produce, [batch * sequence, hidden], before any scale."""


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
    """The fused, flattened and merged decoder of a transformers causal language model.

    The model's weights are referred to, not copied; each is converted when its tensor is loaded.
    `max_context` shortens the tables of rotations, whose length is the longest context.
    """
    decoder = _build(model)
    _shorten_rotations(decoder, max_context)
    _flatten(decoder)
    _merge(decoder)
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


def _shorten_rotations(decoder: FloatDecoder, length: int | None) -> None:
    for name, tensor in decoder.tensors.items():
        if length and name.startswith(("cos_cache", "sin_cache")) and tensor.shape[0] > length:
            decoder.tensors[name] = LazyTensor.of(tensor.load()[:length])


def _flatten(decoder: FloatDecoder) -> None:
    from onnx import helper

    make = helper.make_node
    decoder.tensors["costeer.minus_one"] = LazyTensor.of(np.array([-1], np.int64))
    nodes = [
        make("Reshape", ["input_ids", "costeer.minus_one"], ["costeer.ids"], name="/flatten/ids"),
        make("Shape", ["input_ids"], ["costeer.batch_sequence"], name="/flatten/Shape"),
        make(
            "Concat",
            ["costeer.batch_sequence", "costeer.minus_one"],
            [_SHAPE_3D],
            axis=0,
            name="/flatten/Concat",
        ),
    ]
    for node in decoder.nodes:
        if node.op_type == "Gather" and node.input[1] == "input_ids":
            decoder.tensors.pop(node.input[0])
            decoder.embedding_ids, decoder.embedding_out = "costeer.ids", node.output[0]
            continue
        if node.op_type == "GroupQueryAttention":
            for index in range(3):
                if node.input[index]:
                    wide = node.input[index] + "/3d"
                    nodes.append(make("Reshape", [node.input[index], _SHAPE_3D], [wide], name=wide))
                    node.input[index] = wide
            flat, node.output[0] = node.output[0], node.output[0] + "/3d"
            width = _attention_width(decoder, flat)
            shape = f"costeer.flat_{width}"
            decoder.tensors[shape] = LazyTensor.of(np.array([-1, width], np.int64))
            nodes += [node, make("Reshape", [node.output[0], shape], [flat], name=flat + "/2d")]
            continue
        nodes.append(node)
    for node in nodes:
        for index, name in enumerate(node.output):
            if name == "hidden_states":
                node.output[index] = "hidden/2d"
        for index, name in enumerate(node.input):
            if name == "hidden_states":
                node.input[index] = "hidden/2d"
    nodes.append(make("Reshape", ["hidden/2d", _SHAPE_3D], ["hidden"], name="/flatten/hidden"))
    for output in decoder.outputs:
        if output.name == "hidden_states":
            output.name = "hidden"
    decoder.nodes = nodes


def _attention_width(decoder: FloatDecoder, output: str) -> int:
    """Width of an attention node's output: the rows of the weight that reads it."""
    for node in decoder.nodes:
        if node.op_type == "MatMul" and node.input[0] == output:
            return decoder.tensors[node.input[1]].shape[0]
    raise AssertionError(f"nothing reads {output}")


def _merge(decoder: FloatDecoder) -> None:
    from onnx import helper

    readers: dict[str, list[Any]] = {}
    for node in decoder.nodes:
        if node.op_type == "MatMul" and node.input[1] in decoder.tensors:
            readers.setdefault(node.input[0], []).append(node)
    nodes = []
    for node in decoder.nodes:
        group = readers.get(node.input[0], []) if node.op_type == "MatMul" else []
        if node not in group:
            nodes.append(node)
            continue
        if node is not group[0]:
            continue
        weights = [decoder.tensors.pop(one.input[1]) for one in group]
        name, out = node.name, node.output[0]
        if len(group) > 1:
            out = node.name + "/merged"
            widths = f"costeer.split_{'_'.join(str(w.shape[1]) for w in weights)}"
            split = np.array([w.shape[1] for w in weights], np.int64)
            decoder.tensors[widths] = LazyTensor.of(split)
        nodes.append(helper.make_node("MatMul", [node.input[0], ""], [out], name=name))
        decoder.products[name] = Product(name, node.input[0], out, _beside(weights))
        if len(group) > 1:
            outs = [one.output[0] for one in group]
            nodes.append(
                helper.make_node("Split", [out, widths], outs, axis=1, name=name + "/split")
            )
    decoder.nodes = nodes


def _beside(weights: list[LazyTensor]) -> LazyTensor:
    if len(weights) == 1:
        return weights[0]
    shape = (weights[0].shape[0], sum(weight.shape[1] for weight in weights))
    return LazyTensor(shape, lambda: np.concatenate([w.load() for w in weights], axis=1))


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
