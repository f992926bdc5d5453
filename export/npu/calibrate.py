"""The range of every tensor in a static graph, measured in float32 on shipped text.

Position 0 is left out: its activations are a hundred times everyone else's (the attention sink),
and one scale cannot hold both. Its keys and values are the same for every prompt that begins with
the same token, so they are computed here once and shipped as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from edge_runtime.errors import UsageError
from edge_runtime.npu.host import Array, Frame
from edge_runtime.npu.manifest import ROWS
from export.npu.graph import Shape, decoder_graph
from export.npu.model import StaticModel
from export.npu.qdq import Ranges, is_kv

MASK_FLOOR = -100.0
"""Deep enough to hide a slot, shallow enough to leave the scores their resolution."""

Chat = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Ranges by tensor name; keys and values of position 0, [kv_heads, d] each; its token."""

    ranges: Ranges
    first_token: int
    first_kv: dict[str, Array]


def shipped_prompts(chat: Chat) -> list[list[int]]:
    """The calibration text that comes with this package, through the model's chat template."""
    text = resources.files("export.npu").joinpath("calibration.txt").read_text(encoding="utf-8")
    return [chat(" ".join(part.split())) for part in text.split("\n\n") if part.strip()]


def calibrate(static: StaticModel, prompts: Sequence[Sequence[int]], chunk: int) -> Calibration:
    """Run `prompts`, two at a time, through the float graph and keep each tensor's extremes.

    Only whole chunks count, so prompts shorter than chunk + 1 tokens are left out. Raises
    `UsageError` when none is left, or when they do not all begin with the same token.
    """
    firsts = {prompt[0] for prompt in prompts if prompt}
    usable = [list(prompt) for prompt in prompts if len(prompt) > chunk]
    if len(firsts) != 1 or not usable:
        raise UsageError(
            "export",
            "calibration needs prompts that begin with the same token and fill a chunk",
            got=f"{len(firsts)} first tokens, {len(usable)} long enough",
            todo="Use --target npu-qnn, which needs no calibration",
        )
    past = 1 + chunk * max(1, (max(map(len, usable)) - 1) // chunk)
    runner = _Runner(static, chunk, past)
    first = usable[0][0]
    runner.start(first)
    first_kv = runner.first_kv
    for index in range(0, len(usable), ROWS):
        runner.rows([usable[index], usable[min(index + 1, len(usable) - 1)]])
    return Calibration(runner.ranges, first, first_kv)


class _Runner:
    """The float graph with every tensor as an output, and the extremes seen so far."""

    def __init__(self, static: StaticModel, chunk: int, past: int) -> None:
        self.static = static
        self.chunk = chunk
        self.frame = Frame(
            past=past,
            group=static.group,
            inv_freq=static.inv_freq,
            rope_scale=static.rope_scale,
            mask_floor=MASK_FLOOR,
        )
        model = decoder_graph(static, Shape(ROWS, chunk, past))
        self.shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in model.graph.input
        }
        given = {value.name for value in model.graph.output}
        model.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for node in model.graph.node
            for name in node.output
            if name not in given
        )
        self.session = _session(model)
        self.names = [output.name for output in self.session.get_outputs()]
        self.ranges: Ranges = {}
        self.first_kv: dict[str, Array] = {}

    def start(self, first: int) -> None:
        """Keys and values of `first` at position 0."""
        outputs, _ = self._run([[first]] * ROWS, [0] * ROWS, self._empty())
        self.first_kv = {name: outputs[name][0, :, 0].copy() for name in outputs if is_kv(name)}

    def rows(self, prompts: list[list[int]]) -> None:
        """Count the extremes over the whole chunks of two prompts."""
        slots = self._empty()
        for name, array in slots.items():
            array[:, :, 0] = self.first_kv[name.removeprefix("past_")]
        length = 1
        while length + self.chunk <= min(len(prompt) for prompt in prompts):
            part = [prompt[length : length + self.chunk] for prompt in prompts]
            outputs, inputs = self._run(part, [length] * ROWS, slots)
            for name, array in (inputs | outputs).items():
                low, high = self.ranges.get(name, (np.inf, -np.inf))
                self.ranges[name] = min(low, float(array.min())), max(high, float(array.max()))
            self._head(outputs["hidden"])
            for name, array in slots.items():
                array[:, :, length : length + self.chunk] = outputs[name.removeprefix("past_")]
            length += self.chunk

    def _head(self, hidden: Array) -> None:
        """Extremes of the logits, which the head graph makes of these hidden states."""
        logits = hidden.reshape(-1, self.static.hidden) @ self.static.head.T
        low, high = self.ranges.get("logits", (np.inf, -np.inf))
        self.ranges["logits"] = min(low, float(logits.min())), max(high, float(logits.max()))

    def _empty(self) -> dict[str, Array]:
        return {
            name: np.zeros(shape, np.float32)
            for name, shape in self.shapes.items()
            if name.startswith("past_")
        }

    def _run(
        self, tokens: list[list[int]], lengths: list[int], slots: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        inputs = self.frame.inputs(self._embed, tokens, lengths, self.chunk) | slots
        outputs = self.session.run(self.names, inputs)
        return dict(zip(self.names, outputs, strict=True)), inputs

    def _embed(self, ids: Array) -> Array:
        return self.static.embedding[ids]


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Fusions would remove tensors whose ranges are wanted.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data: Any = model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
