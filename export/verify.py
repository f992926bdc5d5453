"""A bundle against the float model it was made from, judged by the policy that users will see.

On shipped cases (a private note, a query, an answer) both branches are run over the answer's
positions, by the float model and by the bundle. The float model's own agnostic branch stands in
for the cloud, so the steered policy is softmax(L + gain * delta) with L its log-probabilities,
once with the float delta and once with the bundle's. Steering amplifies what quantization does to
the delta: a bundle with a small KL per branch can still be a poor steerer. Shipped texts are
compared as well, as plain text: the figure that others quote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_runtime.bundle import Bundle
from edge_runtime.text import Text
from export.marks import Marks, at_least, at_most, limits, passed, quality_marks
from export.recipes import RECIPES
from export.runner import BundleRunner, census, usable_threads
from export.shipped import Case, shipped_cases, shipped_texts

Logits = npt.NDArray[np.floating]
Reference = Callable[[Sequence[int], int], Logits]
"""Float logits [last, vocabulary] after each of the last tokens of one row."""
Progress = Callable[[str, float], None]

GAINS = (0.476, 1.0, 1.783)
"""One round, the plain product, and twenty rounds of the paper (docs/method.md)."""


class Runner(Protocol):
    """What the comparisons need of whoever runs a bundle (see `export.runner.BundleRunner`)."""

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


def torch_reference(model: Any) -> Reference:
    """The float model as a `Reference`."""

    def logits(ids: Sequence[int], last: int) -> Logits:
        import torch

        with torch.inference_mode():
            # The head is a quarter of the work: it runs only where it is asked for.
            out = model(torch.tensor([list(ids)]), use_cache=False, logits_to_keep=last)
            found: Logits = out.logits[0].numpy()
        return found

    return logits


def compare(
    reference: Reference, runner: Runner, cases: Sequence[Case], progress: Progress
) -> dict[str, Any]:
    """The quality figures of a bundle, means over the answer positions of all cases."""
    rows: list[dict[str, float]] = []
    for index, case in enumerate(cases):
        progress("comparing with the float model", index / len(cases))
        # The answer's last token predicts nothing that is compared.
        pair = [prompt + case.answer[:-1] for prompt in (case.aware, case.agnostic)]
        exact = [log_softmax(reference(row, len(case.answer))) for row in pair]
        rows += _positions(exact, _bundle_logits(runner, pair, len(case.answer)))
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


def compare_text(
    reference: Reference, runner: Runner, texts: Sequence[Sequence[int]], progress: Progress
) -> dict[str, Any]:
    """KL and top-1 on plain text, two texts a call; the prediction after the first token, which
    opens every prompt, is left out."""
    found: list[tuple[float, bool]] = []
    for index in range(0, len(texts), 2):
        progress("comparing plain text", index / len(texts))
        pair = [list(texts[index]), list(texts[min(index + 1, len(texts) - 1)])]
        ours = _bundle_logits(runner, pair, 0)
        for row, logits in list(zip(pair, ours, strict=True))[: len(texts) - index]:
            exact = log_softmax(reference(row, len(row) - 1))
            found += [
                (kl(p, q), bool(p.argmax() == q.argmax()))
                for p, q in zip(exact, logits[1:], strict=True)
            ]
    return {
        "texts": len(texts),
        "text_positions": len(found),
        "text_kl": float(np.mean([each[0] for each in found])),
        "text_top1": float(np.mean([each[1] for each in found])),
    }


def _bundle_logits(runner: Runner, rows: Sequence[Sequence[int]], last: int) -> list[Logits]:
    """Log-probabilities after each of the `last` tokens of each row (0: of all its tokens)."""
    together = runner.bundle.manifest.branches == "together"
    out = []
    for group in [rows] if together else [[row] for row in rows]:
        states = runner.hidden(group, runner.caches(len(group), max(map(len, group))))
        for state, row in zip(states, group, strict=True):
            start = len(row) - last if last else 0
            out.append(log_softmax(runner.logits(state[start : len(row)])))
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
    out: Logits = np.array(logits, np.float64)
    out -= out.max(-1, keepdims=True)
    out -= np.log(np.exp(out).sum(-1, keepdims=True))
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
    limit = bundle.manifest.architecture.max_context
    cases = shipped_cases(text, limit)
    runner = BundleRunner(bundle, threads=usable_threads(), profile=True)
    equal = rows_bit_equal(runner, cases)
    branches = "together" if equal else "separate"
    # From here on as the runtime will run it.
    runner.bundle = Bundle(bundle.path, bundle.manifest.model_copy(update={"branches": branches}))
    states = runner.hidden([cases[0].aware], runner.caches(1, len(cases[0].aware)))
    runner.logits(states[0, -1:])
    # Profiling keeps every event; the long comparison runs without it.
    counts = census(runner.executed())
    figures = compare(reference, runner, cases, lambda what, done: progress(what, 0.8 * done))
    figures |= compare_text(
        reference,
        runner,
        shipped_texts(text, limit),
        lambda what, done: progress(what, 0.8 + 0.2 * done),
    )
    report = {
        "target": bundle.manifest.target,
        "size_mb": round(bundle.size_bytes / 1e6, 2),
        **figures,
        "rows_bit_equal": equal,
        "branches": branches,
        **counts,
    }
    report["marks"] = pass_marks(report, bundle.manifest.architecture.layers)
    report["ready"] = passed(report["marks"])
    return report


def pass_marks(report: dict[str, Any], layers: int) -> Marks:
    """Each requirement of a CPU target: its value, its limit, and whether it is met."""
    recipe = RECIPES[report["target"]]
    marks = quality_marks(report, limits(recipe.tolerance))
    if recipe.body != "float":
        marks["integer_matmuls"] = at_least(report["integer_matmuls"], 1)
        # Where attention is written out, scores and values are two products of activations, and
        # so are the angles of the rotation (Gemma has two).
        allowed = 2 * layers + 2 if recipe.graph == "portable" else 0
        marks["float_matmuls"] = at_most(report["float_matmuls"], allowed)
    return marks
