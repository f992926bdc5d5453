"""Runs a bundle's graphs directly, for verification: two right-padded rows, prefill and steps."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import Bundle
from edge_runtime.graphs.engine import open_session
from edge_runtime.graphs.growing import grows, run_growing

Floats = npt.NDArray[np.float32]


def usable_threads() -> int:
    """Threads for work that nobody times: OMP_NUM_THREADS where it is set, as torch takes it, else
    the cores this process may use."""
    try:
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    except (KeyError, ValueError):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return cores or 1


class BundleRunner:
    """A bundle's decoder and head in two sessions, with KV caches passed through.

    `profile`: every node that runs is recorded until `executed` is asked for.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1, profile: bool = False) -> None:
        self.bundle = bundle
        self._traces = tempfile.TemporaryDirectory() if profile else None
        self.decoder, self.head = (
            open_session(
                graph,
                threads=threads,
                profile_prefix=str(Path(self._traces.name) / graph.stem) if self._traces else None,
            )
            for graph in (bundle.decoder, bundle.head)
        )
        self._past = [i.name for i in self.decoder.get_inputs() if i.name.startswith("past")]
        self._presents = [name.replace("past_key_values", "present") for name in self._past]
        self._grows = grows(bundle)

    def caches(self, rows: int, length: int) -> dict[str, Floats]:
        """Empty KV caches for `rows` rows of up to `length` tokens."""
        shape = self.bundle.manifest.architecture
        size = (rows, shape.kv_heads, length, shape.head_dim)
        return {name: np.zeros(size, np.float32) for name in self._past}

    def hidden(
        self, rows: Sequence[Sequence[int]], caches: dict[str, Floats], past: Sequence[int] = ()
    ) -> Floats:
        """Hidden states [rows, longest, hidden] of new tokens; `caches` is brought up to date.

        `past` is the number of tokens that each row has in its cache already.
        """
        done = list(past) or [0] * len(rows)
        if self._grows:
            return run_growing(self.decoder, rows, caches, done)
        longest = max(len(row) for row in rows)
        ids = np.zeros((len(rows), longest), np.int64)
        total = max(n + len(row) for n, row in zip(done, rows, strict=True))
        mask = np.zeros((len(rows), total), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : done[index] + len(row)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, **caches}
        out: list[Any] = self.decoder.run(["hidden", *self._presents], feed)
        caches.update(zip(self._past, out[1:], strict=True))
        states: Floats = out[0]
        return states

    def logits(self, states: Floats) -> Floats:
        """Logits [n, vocabulary] of hidden states [n, hidden]."""
        logits: Floats = self.head.run(["logits"], {"hidden": states})[0]
        return logits

    def executed(self) -> list[Node]:
        """Each node that ran so far; ends the recording."""
        if self._traces is None:
            return []
        nodes: list[Node] = []
        for session in (self.decoder, self.head):
            seen = set()
            for event in json.loads(Path(session.end_profiling()).read_text()):
                args, name = event.get("args", {}), event["name"]
                if event.get("cat") == "Node" and "op_name" in args and name not in seen:
                    seen.add(name)
                    provider = args.get("provider", "") or "CPUExecutionProvider"
                    nodes.append(Node(args["op_name"], provider, _inner(args)))
        self._traces.cleanup()
        self._traces = None
        return nodes


def _inner(args: dict[str, Any]) -> int:
    """The last dimension of a node's first input."""
    shapes = args.get("input_type_shape") or [{}]
    first: list[int] = next(iter(shapes[0].values()), [])
    return first[-1] if first else 0


@dataclass(frozen=True, slots=True)
class Node:
    """One node that ran."""

    op: str
    provider: str
    inner: int = 0
    """Columns of its first input: of a matrix product, how many numbers each sum has."""


INTEGER_PRODUCTS = frozenset(
    {"QGemm", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"}
)
"""Ops with integer kernels as our recipes use them (MatMulNBits at accuracy level 4)."""
FLOAT_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm"})
TERMS = 2
"""A float product of so many columns adds an integer product's two terms (`export.products`): there
are no weights in it."""


def census(nodes: Sequence[Node]) -> dict[str, Any]:
    """Counts of the optimised graph: ops, integer and float products, share by provider.

    `term_sums` are MatMul nodes that are no product of a matrix, so `float_matmuls` has none.
    """
    ops = Counter(node.op for node in nodes)
    providers = Counter(node.provider for node in nodes)
    floats = [node for node in nodes if node.op in FLOAT_PRODUCTS]
    sums = sum(node.inner == TERMS for node in floats)
    return {
        "integer_matmuls": sum(ops[op] for op in INTEGER_PRODUCTS),
        "float_matmuls": len(floats) - sums,
        "term_sums": sums,
        "coverage": {name: count / len(nodes) for name, count in sorted(providers.items())},
        "ops": dict(sorted(ops.items())),
    }
