"""A bundle against the float model it was made from, judged by the policy that users will see.

On shipped cases (a private note, a query, an answer) both branches are run over the answer's
positions, by the float model and by the bundle. The float model's own agnostic branch stands in
for the cloud, so the steered policy is softmax(L + gain * delta) with L its log-probabilities,
once with the float delta and once with the bundle's. Steering amplifies what quantization does to
the delta: a bundle with a small KL per branch can still be a poor steerer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import Bundle
from edge_runtime.text import Text
from export.recipes import RECIPES
from export.runner import BundleRunner, census, profiled

Logits = npt.NDArray[np.floating]
Reference = Callable[[Sequence[int]], Logits]
"""Float logits [n, vocabulary] of one row of n tokens."""
Progress = Callable[[str, float], None]

GAINS = (0.476, 1.0, 1.783)
"""One round, the plain product, and twenty rounds of the paper (docs/method.md)."""


class Runner(Protocol):
    """What `compare` needs of whoever runs a bundle (see `export.runner.BundleRunner`)."""

    bundle: Bundle

    def caches(self, rows: int, length: int) -> dict[str, Any]:
        """Empty KV caches."""
        ...

    def hidden(
        self, rows: Sequence[Sequence[int]], caches: dict[str, Any], past: Sequence[int] = ()
    ) -> npt.NDArray[np.float32]:
        """Hidden states [rows, longest, hidden] of new tokens."""
        ...

    def logits(self, states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits [n, vocabulary] of hidden states [n, hidden]."""
        ...


@dataclass(frozen=True, slots=True)
class Case:
    """The two prompts of one case and the answer whose positions are compared, as token ids."""

    aware: tuple[int, ...]
    agnostic: tuple[int, ...]
    answer: tuple[int, ...]


def torch_reference(model: Any) -> Reference:
    """The float model as a `Reference`."""

    def logits(ids: Sequence[int]) -> Logits:
        import torch

        with torch.inference_mode():
            out: Logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
        return out

    return logits


def shipped_cases(text: Text, limit: int) -> list[Case]:
    """The shipped cases in a model's tokens; those longer than `limit` are left out."""
    cases = []
    raw = resources.files("export.data").joinpath("cases.jsonl").read_text(encoding="utf-8")
    for line in raw.splitlines():
        entry = json.loads(line)
        prompts = text.prompts(entry["query"], entry["context"])
        answer = tuple(text.encode(entry["answer"]))
        if len(prompts.aware) + len(answer) <= limit:
            cases.append(Case(prompts.aware, prompts.agnostic, answer))
    return cases


def compare(
    reference: Reference, runner: Runner, cases: Sequence[Case], progress: Progress
) -> dict[str, Any]:
    """The quality figures of a bundle, means over the answer positions of all cases."""
    rows: list[dict[str, float]] = []
    for index, case in enumerate(cases):
        progress("comparing with the float model", index / len(cases))
        exact = [_answers(reference(p + case.answer), len(p)) for p in (case.aware, case.agnostic)]
        found = _bundle_logits(runner, case)
        rows += _positions(exact, found)
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    errors = {
        str(gain): float(np.std([row[f"kl@{gain}"] for row in rows]) / np.sqrt(len(rows)))
        for gain in GAINS
    }
    return {
        "cases": len(cases),
        "positions": len(rows),
        "kl_aware": mean["kl_aware"],
        "kl_agnostic": mean["kl_agnostic"],
        "top1_aware": mean["top1_aware"],
        "top1_agnostic": mean["top1_agnostic"],
        "delta_rel_error": float(np.sqrt(mean["delta_error"] / mean["delta_power"])),
        "delta_cosine": mean["delta_cosine"],
        "steered_kl": {str(gain): mean[f"kl@{gain}"] for gain in GAINS},
        "steered_kl_error": errors,
        "steered_top1": {str(gain): mean[f"top1@{gain}"] for gain in GAINS},
        "argmax_flips": {
            str(gain): int(sum(1 - row[f"top1@{gain}"] for row in rows)) for gain in GAINS
        },
    }


def _answers(logits: Logits, prompt: int) -> Logits:
    """Of all positions' logits, those that predict the answer's tokens, as log-probabilities."""
    return log_softmax(logits[prompt - 1 : -1])


def _bundle_logits(runner: Runner, case: Case) -> list[Logits]:
    prompts = (case.aware, case.agnostic)
    rows = [prompt + case.answer for prompt in prompts]
    together = runner.bundle.manifest.branches == "together"
    out = []
    groups = [rows] if together else [[row] for row in rows]
    for group in groups:
        states = runner.hidden(group, runner.caches(len(group), max(map(len, group))))
        for state, row in zip(states, group, strict=True):
            prompt = len(row) - len(case.answer)
            out.append(log_softmax(runner.logits(state[prompt - 1 : len(row) - 1])))
    return out


def _positions(exact: Sequence[Logits], found: Sequence[Logits]) -> Iterator[dict[str, float]]:
    for aware, agnostic, aware_found, agnostic_found in zip(*exact, *found, strict=True):
        delta, delta_found = aware - agnostic, aware_found - agnostic_found
        centred, centred_found = delta - delta.mean(), delta_found - delta_found.mean()
        norms = np.linalg.norm(centred) * np.linalg.norm(centred_found)
        row = {
            "kl_aware": kl(aware, aware_found),
            "kl_agnostic": kl(agnostic, agnostic_found),
            "top1_aware": float(aware.argmax() == aware_found.argmax()),
            "top1_agnostic": float(agnostic.argmax() == agnostic_found.argmax()),
            "delta_error": float(((centred_found - centred) ** 2).sum()),
            "delta_power": float((centred**2).sum()),
            "delta_cosine": float(centred @ centred_found / norms) if norms else 1.0,
        }
        for gain in GAINS:
            policy = log_softmax(agnostic + gain * delta)
            policy_found = log_softmax(agnostic + gain * delta_found)
            row[f"kl@{gain}"] = kl(policy, policy_found)
            row[f"top1@{gain}"] = float(policy.argmax() == policy_found.argmax())
        yield row


def log_softmax(logits: Logits) -> Logits:
    """Natural log-probabilities along the last axis, in float64."""
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    out: Logits = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return out


def kl(log_p: Logits, log_q: Logits) -> float:
    """KL(p || q) in nats of two log-probability vectors."""
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def rows_bit_equal(runner: BundleRunner, cases: Sequence[Case], steps: int = 4) -> bool:
    """Whether two rows in one call give, bit for bit, what each gives alone: prefill and steps."""
    for case in cases[:2]:
        prompts = (case.aware, case.agnostic)
        length = max(map(len, prompts)) + steps
        both_cache = runner.caches(2, length)
        both = runner.hidden(prompts, both_cache)
        caches = [runner.caches(1, length) for _ in prompts]
        for row, prompt in enumerate(prompts):
            alone = runner.hidden([prompt], caches[row])
            if not np.array_equal(both[row, : len(prompt)], alone[0]):
                return False
        for step, token in enumerate(case.answer[:steps]):
            past = [len(prompt) + step for prompt in prompts]
            both = runner.hidden([[token], [token]], both_cache, past)
            for row in range(2):
                alone = runner.hidden([[token]], caches[row], past[row : row + 1])
                if not np.array_equal(both[row], alone[0]):
                    return False
    return True


def verify_bundle(
    bundle: Bundle, reference: Reference, progress: Progress = lambda what, done: None
) -> dict[str, Any]:
    """The report on a CPU bundle: figures, and each pass mark with its value and limit.

    Times and memory are measured by `export.probe` in a process of its own.
    """
    text = Text.open(bundle)
    cases = shipped_cases(text, bundle.manifest.architecture.max_context)
    with profiled(bundle) as (runner, nodes):
        equal = rows_bit_equal(runner, cases)
        states = runner.hidden([cases[0].aware], runner.caches(1, len(cases[0].aware)))
        runner.logits(states[0, -1:])
        # Profiling keeps every event; the long comparison runs without it.
    counts = census(nodes)
    runner = BundleRunner(bundle, threads=2)
    figures = compare(reference, runner, cases, progress)
    report = {
        "target": bundle.manifest.target,
        "size_mb": round(bundle.size_bytes / 1e6, 2),
        **figures,
        "rows_bit_equal": equal,
        "branches": "together" if equal else "separate",
        **counts,
    }
    report["marks"] = pass_marks(report)
    report["ready"] = all(mark["pass"] for mark in report["marks"].values())
    return report


def pass_marks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each requirement of the target: its value, its limit, and whether it is met."""
    marks: dict[str, dict[str, Any]] = {}

    def mark(name: str, value: float, limit: float, at_most: bool = True) -> None:
        # A NaN meets no limit.
        met = value <= limit if at_most else value >= limit
        sign = "<=" if at_most else ">="
        marks[name] = {"value": value, "limit": f"{sign} {limit}", "pass": bool(met)}

    recipe = RECIPES[report["target"]]
    limits = recipe.limits
    mark("kl_aware", report["kl_aware"], limits.kl)
    mark("kl_agnostic", report["kl_agnostic"], limits.kl)
    for gain, limit in limits.steered_kl.items():
        mark(f"steered_kl@{gain}", report["steered_kl"][gain], limit)
    mark("steered_top1@0.476", report["steered_top1"]["0.476"], limits.steered_top1, False)
    if recipe.body != "float":
        mark("integer_matmuls", report["integer_matmuls"], 1, False)
        mark("float_matmuls", report["float_matmuls"], 0)
    return marks
