"""What is changed in the builder's decoder, for every recipe, to make a step quicker.

* `_flatten`: between attention nodes everything runs on [batch * sequence, 1, width], so that
  whatever is done for each row is done in one node, whichever rows the call has (and the axis in
  the middle is free for the terms of `export.products`);
* `_merge`: products that read the same input (gate and up, or q, k and v) become one;
* `_scale_queries`: the softmax's scale goes into the queries' weights. Attention's own products of
  one row by a matrix are faster when nothing is to be multiplied on the way (18 % of the attention
  over 512 tokens).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from export.graph import FloatDecoder, Product
from export.tensors import Array, LazyTensor

FLAT = "costeer.flat_"
"""Shapes [-1, 1, width] by name: what attention gives back is reshaped to one."""
_BATCH_SHAPE = "costeer.batch_shape"


def rewrite(decoder: FloatDecoder, max_context: int | None) -> None:
    """All rewrites, in place. `max_context` shortens the tables of rotations."""
    _shorten_rotations(decoder, max_context)
    _flatten(decoder)
    _merge(decoder)
    _scale_queries(decoder)


def _shorten_rotations(decoder: FloatDecoder, length: int | None) -> None:
    for name, tensor in decoder.tensors.items():
        if length and name.startswith(("cos_cache", "sin_cache")) and tensor.shape[0] > length:
            decoder.tensors[name] = LazyTensor.of(tensor.load()[:length])


def _flatten(decoder: FloatDecoder) -> None:
    from onnx import helper

    make = helper.make_node
    decoder.tensors["costeer.minus_one"] = LazyTensor.of(np.array([-1], np.int64))
    decoder.tensors["costeer.one_column"] = LazyTensor.of(np.array([-1, 1], np.int64))
    nodes = [
        make("Reshape", ["input_ids", "costeer.one_column"], ["costeer.ids"], name="/flatten/ids"),
        make("Shape", ["input_ids"], ["costeer.batch_sequence"], name="/flatten/Shape"),
        make(
            "Concat",
            ["costeer.batch_sequence", "costeer.minus_one"],
            [_BATCH_SHAPE],
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
                    wide = node.input[index] + "/batch"
                    nodes.append(
                        make("Reshape", [node.input[index], _BATCH_SHAPE], [wide], name=wide)
                    )
                    node.input[index] = wide
            flat, node.output[0] = node.output[0], node.output[0] + "/batch"
            width = _attention_width(decoder, flat)
            shape = f"{FLAT}{width}"
            decoder.tensors[shape] = LazyTensor.of(np.array([-1, 1, width], np.int64))
            nodes += [node, make("Reshape", [node.output[0], shape], [flat], name=flat + "/flat")]
            continue
        nodes.append(node)
    for node in nodes:
        for index, name in enumerate(node.output):
            if name == "hidden_states":
                node.output[index] = "hidden/flat"
        for index, name in enumerate(node.input):
            if name == "hidden_states":
                node.input[index] = "hidden/flat"
    nodes.append(make("Reshape", ["hidden/flat", _BATCH_SHAPE], ["hidden"], name="/flatten/hidden"))
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
                helper.make_node("Split", [out, widths], outs, axis=2, name=name + "/split")
            )
    decoder.nodes = nodes


def _beside(weights: list[LazyTensor]) -> LazyTensor:
    if len(weights) == 1:
        return weights[0]
    shape = (weights[0].shape[0], sum(weight.shape[1] for weight in weights))
    return LazyTensor(shape, lambda: np.concatenate([w.load() for w in weights], axis=1))


def _scale_queries(decoder: FloatDecoder) -> None:
    makers = {name: node for node in decoder.nodes for name in node.output}
    products = {product.y: product for product in decoder.products.values()}
    for node in decoder.nodes:
        attributes = {one.name: one for one in node.attribute}
        scale = attributes["scale"].f if "scale" in attributes else 0.0
        if node.op_type != "GroupQueryAttention" or not scale:
            continue
        packed = not node.input[1]  # queries, keys and values side by side in one tensor
        name, biases = node.input[0], []
        while makers[name].op_type == "Reshape" or (packed and makers[name].op_type == "Add"):
            biases += [makers[name].input[1]] if makers[name].op_type == "Add" else []
            name = makers[name].input[0]
        maker = makers[name]
        if packed and name in products:
            heads = attributes["num_heads"].i
            share = heads / (heads + 2 * attributes["kv_num_heads"].i)
            products[name].weight = _scaled(products[name].weight, scale, share)
            for bias in biases:
                decoder.tensors[bias] = _scaled(decoder.tensors[bias], scale, share)
        elif not packed and maker.op_type == "SimplifiedLayerNormalization":
            gamma = maker.input[1]  # the queries' own norm comes after their product
            decoder.tensors[gamma] = _scaled(decoder.tensors[gamma], scale)
        else:
            continue
        attributes["scale"].f = 1.0


def _scaled(tensor: LazyTensor, scale: float, share: float = 1) -> LazyTensor:
    """`tensor` [..., N] with the leading `share` of its N columns multiplied by `scale`."""
    count = round(share * tensor.shape[-1])

    def load() -> Array:
        array = np.array(tensor.load(), np.float32)
        array[..., :count] *= np.float32(scale)
        return array

    return LazyTensor(tensor.shape, load)
