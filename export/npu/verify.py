"""An NPU bundle against the float model: on the CPU provider, and on the HTP simulator for less.

Same figures and same form as `export.verify` gives for CPU targets. The simulator is exact and
slow (a prefill chunk of SmolLM2-135M takes it a minute), so it gets the first case and the first
positions of its answer; the same static graphs on the CPU provider cover `CPU_CASES` of them. The
figures at the top level of the report are the simulator's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import Bundle
from edge_runtime.npu.branches import NpuBranches
from edge_runtime.npu.manifest import ROWS, NpuSection
from edge_runtime.text import Text
from export.marks import NPU_KL, Marks, at_least, limits, passed, quality_marks
from export.npu.compile import HTP
from export.runner import usable_threads
from export.shipped import shipped_cases, shipped_texts
from export.verify import Progress, Reference, compare, compare_text

GRAPHS = ("prefill", "decode", "head")
CPU_CASES = 4
"""The static graphs are not made for the CPU provider: a case takes it 10 to 25 s."""


SIMULATED_POSITIONS = 8
"""Of a case's answer."""
SIMULATED_TEXT = 13
"""Tokens of each of two texts: one call of the prefill graph."""

TOLERANCE = {"blocks": 1, "w8a16": 2}
"""By recipe, see `export.marks`."""


class NpuRunner:
    """An NPU bundle behind the verbs that `export.verify.compare` uses; always two rows."""

    def __init__(self, bundle: Bundle, backend: str) -> None:
        self.bundle = bundle
        self.branches = NpuBranches.open(bundle, threads=usable_threads(), backend=backend)

    def caches(self, rows: int, length: int) -> dict[str, Any]:
        """None are passed around: the branches hold theirs."""
        return {}

    def hidden(
        self, rows: Sequence[Sequence[int]], caches: dict[str, Any], past: Sequence[int] = ()
    ) -> npt.NDArray[np.float32]:
        """Hidden states [2, longest, hidden] of two fresh sequences."""
        states = self.branches.states(rows)
        longest = max(map(len, states))
        return np.stack([np.pad(state, ((0, longest - len(state)), (0, 0))) for state in states])

    def logits(self, states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits [n, V] of hidden states [n, hidden], two at a time."""
        if len(states) % ROWS:
            states = np.concatenate([states, states[-1:]])
            return self.logits(states)[:-1]
        pairs = [self.branches.head(states[at : at + ROWS]) for at in range(0, len(states), ROWS)]
        return np.concatenate(pairs)


def verify_npu(
    bundle: Bundle,
    reference: Reference,
    *,
    simulate_cases: int = 1,
    progress: Progress = lambda what, done: None,
) -> dict[str, Any]:
    """The report on an NPU bundle; `simulate_cases` 0 leaves the simulator out."""
    section = NpuSection.model_validate(bundle.manifest.npu)
    text = Text.open(bundle)
    cases = shipped_cases(text, section.past)
    texts = shipped_texts(text, section.past)
    on_cpu = NpuRunner(bundle, "cpu")
    proxy = compare(reference, on_cpu, cases[:CPU_CASES], progress)
    proxy |= compare_text(reference, on_cpu, texts, progress)
    report: dict[str, Any] = {
        "target": bundle.manifest.target,
        "soc": section.soc,
        "architecture": section.architecture,
        "size_mb": round(bundle.size_bytes / 1e6, 2),
        "context_binary_mb": binary_sizes(bundle, section),
    }
    simulated = simulate_cases > 0 and section.decode.binary is not None
    figures = proxy
    rows_equal = rows_independent(on_cpu.branches, cases[0].aware, cases[0].agnostic)
    if simulated:
        on_htp = NpuRunner(bundle, "simulator")
        short = [
            replace(case, answer=case.answer[:SIMULATED_POSITIONS])
            for case in cases[:simulate_cases]
        ]
        started = time.monotonic()

        def simulating(what: str, done: float) -> None:
            progress("running on the simulator", done)

        figures = compare(reference, on_htp, short, simulating)
        beginnings = [ids[:SIMULATED_TEXT] for ids in texts[:ROWS]]
        figures |= compare_text(reference, on_htp, beginnings, simulating)
        # One token a row: the decode graph, the cheapest call there is.
        start = () if section.first_token is None else (section.first_token,)
        rows_equal &= rows_independent(on_htp.branches, (*start, 5), (*start, 6))
        report["simulator_seconds"] = round(time.monotonic() - started, 1)
    report |= figures | {
        "measured_on": "HTP simulator" if simulated else "CPU provider",
        "on_cpu_provider": proxy,
        "rows_bit_equal": rows_equal,
        "branches": "together" if rows_equal else "separate",
    }
    report |= placement(section)
    report["marks"] = pass_marks(report, section)
    report["ready"] = passed(report["marks"])
    return report


def binary_sizes(bundle: Bundle, section: NpuSection) -> dict[str, float]:
    """10^6 bytes of each context binary, and of the two that a decode step uses together."""
    sizes = {
        name: round((bundle.path / binary).stat().st_size / 1e6, 2)
        for name in GRAPHS
        if (binary := getattr(section, name).binary) is not None
    }
    if sizes:
        sizes["decode+head"] = round(sizes["decode"] + sizes["head"], 2)
    return sizes


def rows_independent(branches: NpuBranches, aware: Sequence[int], agnostic: Sequence[int]) -> bool:
    """Whether a row's states are the same to the bit whatever the other row holds."""
    together = branches.states([aware, agnostic])
    swapped = branches.states([agnostic, aware])
    return bool(np.array_equal(together[0], swapped[1]) and np.array_equal(together[1], swapped[0]))


def placement(section: NpuSection) -> dict[str, Any]:
    """Share of nodes by provider over the compiled graphs, each graph's nodes, and its products."""
    nodes: dict[str, int] = {}
    integer = floating = 0
    for coverage in section.coverage.values():
        for provider, count in coverage.nodes.items():
            nodes[provider] = nodes.get(provider, 0) + count
        for operators in coverage.operators.values():
            # Products of two activations (attention) are float unless the recipe is integer.
            products = operators.get("MatMul", 0)
            integer += operators.get("MatMulNBits", 0)
            integer += products if section.recipe == "w8a16" else 0
            floating += 0 if section.recipe == "w8a16" else products
    total = sum(nodes.values())
    return {
        "integer_matmuls": integer,
        "float_matmuls": floating,
        "coverage": {name: count / total for name, count in sorted(nodes.items())},
        "coverage_by_graph": {
            name: coverage.model_dump() for name, coverage in section.coverage.items()
        },
    }


def pass_marks(report: dict[str, Any], section: NpuSection) -> Marks:
    """Each requirement: its value, its limit, and whether it is met."""
    allowed = limits(TOLERANCE[section.recipe])
    if section.recipe == "blocks":
        allowed = replace(allowed, kl=NPU_KL)
    marks = quality_marks(report, allowed)
    # A graph of two rows cannot run them apart, as `branches: separate` asks of CPU targets.
    marks["rows_bit_equal"] = at_least(int(report["rows_bit_equal"]), 1)
    if section.coverage:
        marks["nodes_on_htp"] = at_least(report["coverage"].get(HTP, 0.0), 1.0)
        marks["integer_matmuls"] = at_least(report["integer_matmuls"], 1)
    return marks
