"""The rule: what the device does to the cloud's prediction, as pure numpy.

At each position the cloud gives L = log p(. | query, y<t), the device's small model gives
D = log p(. | note, query, y<t) - log p(. | query, y<t), and the answer's policy is
softmax(L + k D). The paper (CoSteer, arXiv 2507.04756, Eq. 4-9) gets there by T rounds of an
online-learning update; `gain` is the closed form of those rounds, so they cost one multiply-add
(the proof is in docs/method.md, the loop itself is the oracle in
tests/edge_runtime/test_steering.py).

Constants over the vocabulary cancel in L + k D, so D may be a difference of raw logits over the
candidates alone. Rules that do need the small model's normalisers say so: `Method.full_head`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_runtime.candidates import CandidateSet
from edge_runtime.errors import UsageError

Floats = npt.NDArray[np.floating]
AWARE, AGNOSTIC = 0, 1
"""Rows of the small model: with the private note, and without it."""

Base = Literal["cloud", "informed-cloud", "aware", "agnostic"]
"""Whose prediction is steered: the cloud's; the cloud's after uploading the note (an upper bound
that breaks privacy); the small model's own, with the note or without."""
Rule = Literal["linear", "positive"]
"""L + k D, or L + k max(D, 0): raise what the note speaks for, lower nothing."""

VOCABULARY = 150_000
"""Tokens that the mass of unsent ones is spread over, where the vocabulary's size is not known."""
OWN_BEST = 8
"""`Method.mix`: so many best tokens of the aware row join the cloud's candidates."""


def gain(
    rounds: int = 20, alpha: float = 2.0, beta: float = 1.0, lam: float = 2.0, eta: float = 10.0
) -> float:
    """The gain k that `rounds` FTRL updates amount to (k_1 = 0.476, k_20 = 1.783).

    With S_0 = k_0 = 0: S_t = S_{t-1} + alpha k_{t-1} + beta, then
    k_t = (S_t + k_{t-1} / eta) / (t lam + 1 / eta).
    """
    if rounds < 0 or eta <= 0 or lam < 0:
        raise UsageError(
            "steering",
            "these rounds have no gain",
            got=f"rounds={rounds}, lam={lam:g}, eta={eta:g}",
            allowed="rounds >= 0, lam >= 0, eta > 0",
        )
    k = s = 0.0
    for t in range(1, rounds + 1):
        s += alpha * k + beta
        k = (s + k / eta) / (t * lam + 1 / eta)
    return k


@dataclass(frozen=True, slots=True)
class Method:
    """One steering rule with its numbers.

    The policy is ``(1 - m) softmax((base + gain * f(D)) / temper) + m * q`` on the candidates, with
    f the identity (`linear`) or max(., 0) (`positive`), after D was clipped to [-clip, clip]. What
    is mixed in, m q, is ``mix * p_aware``, for names of the note ``copy * p_aware``.
    """

    name: str
    gain: float = 0.0
    rule: Rule = "linear"
    base: Base = "cloud"
    mix: float = 0.0
    clip: float | None = None
    """Bounds what one token can tell about the note: 4 gain clip nats when sampling."""
    late_gain: float | None = None
    """The gain from position `decay_tokens` on, reached linearly; None: constant."""
    decay_tokens: int = 0
    temper: float = 1.0
    """1 + the weight of an entropy bonus (docs/method.md): above 1 the rule is less sure of
    itself. Its best token stays the best, so greedy answers do not change."""
    copy: float = 0.0
    """Names of the note get so much of the probability that the aware row gives them; the rest of
    the policy shares what is left."""
    names: tuple[int, ...] = ()
    """Their tokens, ascending; the device puts them in (`about`)."""
    tuned: bool = False
    """The aware row is a tuned small model without the note (`edge_runtime.tuned`)."""

    def __post_init__(self) -> None:
        for what, value, low, high in (
            ("gain", self.gain, 0.0, 100.0),
            ("late gain", self.late_gain, 0.0, 100.0),
            ("mix", self.mix, 0.0, 1.0),
            ("copy", self.copy, 0.0, 1.0),
            ("clip", self.clip, 0.0, 1e4),
            ("decay", self.decay_tokens, 0, 1_000_000),
            ("temper", self.temper, 0.1, 10.0),
        ):
            if value is not None and not low <= value <= high:
                raise UsageError(
                    f"method {self.name}",
                    f"the {what} is out of range",
                    got=value,
                    allowed=f"{low:g} to {high:g}",
                )

    @property
    def steers(self) -> bool:
        """Whether the small model has any say."""
        late = self.late_gain or 0.0
        own = self.base in ("aware", "agnostic")
        return self.gain > 0 or late > 0 or self.mix > 0 or self.copy > 0 or own

    @property
    def full_head(self) -> bool:
        """Whether the rule needs the small model's logits over the whole vocabulary."""
        own = self.base in ("aware", "agnostic")
        return self.rule == "positive" or self.mix > 0 or own

    @property
    def asks_cloud(self) -> bool:
        """Whether a cloud takes part at all."""
        return self.base in ("cloud", "informed-cloud")

    def about(self, names: tuple[int, ...]) -> Method:
        """The same rule for a note whose names are made of the tokens `names`."""
        return replace(self, names=names) if self.copy else self

    def support(self, candidates: CandidateSet) -> npt.NDArray[np.int64]:
        """The tokens [C] whose logits the rule needs, ascending: the candidates, and the names that
        are to be copied. (A rule that needs the whole vocabulary says so by `full_head`.)"""
        if not (self.copy and self.names) or candidates.full:
            return candidates.ids
        return np.union1d(candidates.ids, np.asarray(self.names, np.int64))

    def gain_at(self, position: int) -> float:
        """The gain for the answer's `position`-th token."""
        if self.late_gain is None:
            return self.gain
        done = min(1.0, position / self.decay_tokens) if self.decay_tokens else 1.0
        return self.gain + (self.late_gain - self.gain) * done


def log_softmax(scores: Floats) -> Floats:
    """Natural log-probabilities along the last axis; the input's precision is kept."""
    # The ufuncs themselves: arrays' own methods take longer to get to them than 64 numbers take.
    shifted = scores - np.maximum.reduce(scores, axis=-1, keepdims=True)
    total = np.add.reduce(np.exp(shifted), axis=-1, keepdims=True)
    return np.subtract(shifted, np.log(total), out=shifted)


def steer(base: Floats, delta: Floats, gain: float, temper: float = 1.0) -> Floats:
    """log softmax((base + gain * delta) / temper).

    With `temper` 1: the paper's iterate after the rounds that make `gain`.
    """
    number = base.dtype.type
    steered = base + number(gain) * delta
    return log_softmax(steered if temper == 1 else steered / number(temper))


def clip(delta: Floats, bound: float | None) -> Floats:
    """`delta` within [-bound, bound]; None: as it is."""
    return delta if bound is None else np.clip(delta, -bound, bound)


@dataclass(frozen=True, slots=True)
class Steered:
    """The policy for one position: ids [C] (ascending), log policy [C] and log base [C] (nats)."""

    ids: npt.NDArray[np.int64]
    policy: Floats
    base: Floats


def policy(
    method: Method, candidates: CandidateSet, logits: Floats | None, position: int = 0
) -> Steered:
    """Apply `method` to the cloud's `candidates` and the small model's raw `logits`.

    `logits` is [2, C] over `method.support(candidates)`, or [2, V] where `method.full_head` asks
    for it; a method that does not steer needs none.
    """
    if logits is None or not method.steers:
        base = log_softmax(candidates.logprobs)
        return Steered(candidates.ids, base, base)
    k = method.gain_at(position)
    if not method.full_head:
        delta = logits[AWARE] - logits[AGNOSTIC]
        if method.clip is not None:
            # Raw logits carry an arbitrary offset; a bound on D means something only without it.
            delta = clip(log_softmax(logits[AWARE]) - log_softmax(logits[AGNOSTIC]), method.clip)
        ids = method.support(candidates)
        base = _base_on(ids, candidates)
        steered = steer(base, delta, k, method.temper)
        if method.copy:
            # Normalised over the support: what the aware row thinks of all other tokens is little.
            steered = _mixed(method, ids, steered, log_softmax(logits[AWARE]))
        return Steered(ids, steered, base)
    own = log_softmax(logits)
    if not method.asks_cloud:
        base = own[AWARE if method.base == "aware" else AGNOSTIC]
        base = log_softmax(base[candidates.ids])
        ids = candidates.ids
    else:
        joined = method.mix or method.copy
        ids = _with_own_best(candidates, own[AWARE]) if joined else candidates.ids
        base = _base_on(ids, candidates, len(own[AWARE]))
    aware = own[AWARE][ids]
    delta = clip(aware - own[AGNOSTIC][ids], method.clip)
    if method.rule == "positive":
        delta = np.maximum(delta, 0)
    steered = steer(base, delta, k, method.temper)
    steered = _mixed(method, ids, steered, aware)
    return Steered(ids, steered.astype(base.dtype, copy=False), base)


def _mixed(method: Method, ids: npt.NDArray[np.int64], steered: Floats, aware: Floats) -> Floats:
    """`steered` [C] with what the method mixes in of the aware row's log-probabilities [C]."""
    share = np.full(len(ids), method.mix)
    if method.copy and method.names:
        named = np.isin(ids, np.asarray(method.names), assume_unique=True)
        share[named] = max(method.mix, method.copy)
    if not share.any():
        return steered
    own = np.exp(aware)
    left = 1 - method.mix - float(((share - method.mix) * own).sum())
    with np.errstate(divide="ignore"):
        rest = np.log(max(left, 0.0))
        mixed = log_softmax(np.logaddexp(rest + steered, np.log(share * own)))
    return mixed.astype(steered.dtype, copy=False)


def _base_on(
    ids: npt.NDArray[np.int64], candidates: CandidateSet, size: int = VOCABULARY
) -> Floats:
    """The cloud's log-probabilities on `ids` [C], which hold all the candidates.

    Of the tokens that the cloud did not send only their total mass is known: each of them, of the
    vocabulary's `size`, gets an equal share of it, and never more than the least of those sent.
    """
    if len(ids) == len(candidates.ids):
        return log_softmax(candidates.logprobs)
    unseen = max(candidates.left_out, 1e-12) / max(1, size - len(candidates.ids))
    level = min(float(np.log(unseen)), float(candidates.logprobs.min()))
    base = np.full(len(ids), level, candidates.logprobs.dtype)
    base[np.searchsorted(ids, candidates.ids)] = candidates.logprobs
    return log_softmax(base)


def _with_own_best(candidates: CandidateSet, aware: Floats) -> npt.NDArray[np.int64]:
    """The candidates and the aware row's best tokens."""
    size = len(aware)
    if candidates.full:
        return candidates.ids
    best = np.argpartition(aware, size - OWN_BEST)[size - OWN_BEST :] if size > OWN_BEST else None
    return np.union1d(candidates.ids, np.arange(size) if best is None else best)
