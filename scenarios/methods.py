"""Which rules are compared: names as a study writes them, and what a rule does to a prediction.

    light, costeer, ...     a preset of `edge_runtime.steering`
    costeer@1.2             the same with another gain

It does NOT hold the rules: they run on the device and live in `edge_runtime.steering`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge_runtime.candidates import CandidateSet
from edge_runtime.errors import UsageError
from edge_runtime.steering import Method, method, policy
from scenarios.metrics import kl
from scenarios.predictions import AGNOSTIC, AWARE, CLOUD, UPLOAD, Predictions, Table


def parse(text: str) -> Method:
    """The method written as NAME or NAME@GAIN. Raises `UsageError`."""
    name, at, number = text.strip().partition("@")
    if not at:
        return method(name)
    try:
        gain = float(number)
    except ValueError:
        raise UsageError(
            "method", "what follows @ is no gain", got=text, allowed="NAME or NAME@GAIN"
        ) from None
    return replace(method(name, gain), name=f"{name}@{gain:g}")


def parse_all(texts: str | Iterable[str]) -> list[Method]:
    """Several methods, from a comma-separated list or a sequence; each once."""
    parts = texts.split(",") if isinstance(texts, str) else texts
    found = {one.name: one for one in map(parse, filter(str.strip, parts))}
    if not found:
        raise UsageError("methods", "none was named", allowed="NAME or NAME@GAIN, with commas")
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Score:
    """A method on one reference: sums over its tokens (nats)."""

    nll: float
    kl_upload: float
    top1_upload: float
    """Positions where its best token is the informed cloud's best."""
    diverged: float
    """Positions where its best token is not the uninformed cloud's best."""
    tokens: int


def steered(rule: Method, table: Table, position: int) -> npt.NDArray[np.floating]:
    """log policy [C] of `rule`, from log-probabilities [4, C] that sum to one."""
    base = UPLOAD if rule.base == "informed-cloud" else CLOUD
    logits = None if base == UPLOAD else table[[AWARE, AGNOSTIC]].astype(np.float64)
    candidates = CandidateSet(np.arange(table.shape[1]), table[base].astype(np.float64), full=True)
    return policy(rule, candidates, logits, position).policy


def score(rule: Method, kept: Predictions) -> Score:
    """`rule` on the reference of `kept`."""
    nll = divergence = same = diverged = 0.0
    for at in range(len(kept)):
        _, table = kept.position(at)
        chosen = steered(rule, table, at)
        nll -= float(chosen[kept.target(at)])
        divergence += float(kl(table[UPLOAD], chosen))
        best = int(np.argmax(chosen[:-1]))
        same += best == int(np.argmax(table[UPLOAD, :-1]))
        diverged += best != int(np.argmax(table[CLOUD, :-1]))
    return Score(nll, divergence, same, diverged, len(kept))
