"""Which rules are compared, and what a rule does to a prediction of real models.

It does NOT hold the rules: they run on the device (`edge_runtime.rules`, `edge_runtime.steering`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_runtime.candidates import CandidateSet, Codec
from edge_runtime.errors import UsageError
from edge_runtime.rules import method
from edge_runtime.steering import Method, policy
from scenarios.metrics import kl
from scenarios.models.predictions import AGNOSTIC, AWARE, CLOUD, UPLOAD, Predictions, Table


def parse_all(texts: str | Iterable[str]) -> list[Method]:
    """Several methods, from a comma-separated list or a sequence; each once."""
    parts = texts.split(",") if isinstance(texts, str) else texts
    found = {one.name: one for one in map(method, filter(str.strip, parts))}
    if not found:
        raise UsageError(
            "methods", "none was named", allowed="NAME, NAME@GAIN or NAME:FIELD=VALUE, with commas"
        )
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
    sent: float = 0.0
    """Positions whose reference token the codec sent; the rest is of these positions."""
    lost: float = 0.0
    """Likelihood lost to the codec: its nll less that of whole vectors."""
    lost_sent: float = 0.0
    """What of it was lost on tokens that were sent."""
    same: float = 0.0
    """Positions where the best token is that of whole vectors."""


def steered(
    rule: Method, table: Table, position: int, codec: Codec | None = None
) -> npt.NDArray[np.floating]:
    """log policy [C] of `rule`, from log-probabilities [4, C] that sum to one.

    With a `codec` the device sees what that leaves of the cloud's prediction, and steering reaches
    only the tokens that were sent: the others keep the probability that the cloud gives them, which
    is together what the frame says was left out.
    """
    base = UPLOAD if rule.base == "informed-cloud" else CLOUD
    cloud = table[base].astype(np.float64)
    logits = None if base == UPLOAD else table[[AWARE, AGNOSTIC]].astype(np.float64)
    sent = CandidateSet(np.arange(len(cloud)), cloud, full=True)
    if codec is not None:
        sent = seen(codec, cloud)
    if logits is not None and not rule.full_head:
        logits = logits[:, rule.support(sent)]
    found = policy(rule, sent, logits, position)
    if sent.full:
        return found.policy
    whole = np.full(len(cloud), -np.inf)
    outside = np.setdiff1d(np.arange(len(cloud)), found.ids)
    rest = float(np.logaddexp.reduce(cloud[outside])) if len(outside) else -np.inf
    whole[found.ids] = found.policy + np.log1p(-min(np.exp(rest), 1 - 1e-9))
    whole[outside] = cloud[outside]
    return whole


def about_names(
    rule: Method, names: tuple[int, ...], ids: npt.NDArray[np.integer] | None
) -> Method:
    """`rule` with the note's `names` where they are among a table's `ids` [C], whose columns stand
    for the vocabulary there. None: the columns are the vocabulary."""
    if not rule.copy or ids is None:
        return rule.about(names)
    return rule.about(tuple(np.flatnonzero(np.isin(ids, names)).tolist()))


def seen(codec: Codec, cloud: npt.NDArray[np.floating]) -> CandidateSet:
    """What `codec` leaves of the cloud's log-probabilities [C], the last of which is the rest."""
    sent = codec.decode(codec.encode(cloud[:-1]))
    if not sent.full:
        return sent
    return CandidateSet(np.arange(len(cloud)), np.append(sent.logprobs, cloud[-1]), full=True)


def score(rule: Method, kept: Predictions, codec: Codec | None = None) -> Score:
    """`rule` on the reference of `kept`, through `codec` (None: nothing is lost)."""
    nll = divergence = top = diverged = sent = lost = lost_sent = same = 0.0
    for at in range(len(kept)):
        ids, table = kept.position(at)
        rule = about_names(rule, kept.names, ids)
        target = kept.target(at)
        chosen = steered(rule, table, at, codec)
        nll -= float(chosen[target])
        divergence += float(kl(table[UPLOAD], chosen))
        best = int(np.argmax(chosen[:-1]))
        top += best == int(np.argmax(table[UPLOAD, :-1]))
        diverged += best != int(np.argmax(table[CLOUD, :-1]))
        if codec is not None:
            whole = steered(rule, table, at)
            loss = float(whole[target] - chosen[target])
            there = target in seen(codec, table[CLOUD].astype(np.float64)).ids
            sent, lost, lost_sent = sent + there, lost + loss, lost_sent + loss * there
            same += best == int(np.argmax(whole[:-1]))
    return Score(nll, divergence, top, diverged, len(kept), sent, lost, lost_sent, same)
