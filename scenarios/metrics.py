"""What is measured of an answer, with symbols in docs/metrics.md, and never without an interval.

Every figure here is a ratio of sums over cases (a mean is one with ones below), so one bootstrap
over cases serves them all: cases, not tokens, are what a new sample would change. All figures of a
study draw the same resamples, so a difference of two methods is paired by construction. Where seeds
are drawn besides cases, each of the two is resampled by itself (`groups`).

It does NOT run a model: `scenarios.evaluate` feeds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.names import WORD, names_of

Numbers = Sequence[float] | npt.NDArray[np.floating]
Groups = Sequence[Sequence[Any] | npt.NDArray[Any]]
"""What was drawn, each as a label for every number: cases, seeds. None: every number by itself."""

LEVEL = 0.9
"""Coverage of every interval, unless another is asked for."""
RESAMPLES = 4000
_ENTROPY = 0x60571EE7


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its bootstrap percentile interval over `cases` samples (cases, or pairs of a
    case and a seed)."""

    value: float
    low: float
    high: float
    cases: int

    def dict(self) -> dict[str, float]:
        """For JSON: value, low, high."""
        return {"value": self.value, "low": self.low, "high": self.high}


@lru_cache(maxsize=8)
def _counts(levels: int, factor: int, resamples: int) -> npt.NDArray[np.float64]:
    """How often each level is drawn in each resample, [resamples, levels]: the same for all."""
    # The first factor's key has no number of its own: cases alone draw what they always drew.
    key = (levels, factor) if factor else (levels,)
    rng = np.random.default_rng(np.random.SeedSequence(_ENTROPY, spawn_key=key))
    counts = rng.multinomial(levels, np.full(levels, 1 / levels), size=resamples)
    found = counts.astype(np.float64)
    found.flags.writeable = False
    return found


def weights(count: int, groups: Groups = (), resamples: int = RESAMPLES) -> npt.NDArray[np.float64]:
    """How much each of `count` numbers weighs in each resample, [resamples, count].

    Numbers of one label are drawn together, and crossed groups each by itself: a number weighs how
    often its case was drawn times how often its seed was (the pigeonhole bootstrap, Owen 2007).
    A group with a single label is not drawn: of one case nothing is known about other cases.
    """
    if not groups:
        return _counts(count, 0, resamples)
    orders = [{label: i for i, label in enumerate(dict.fromkeys(labels))} for labels in groups]
    crossed = [pair for pair in zip(groups, orders, strict=True) if len(pair[1]) > 1]
    found = np.ones((resamples, count))
    for factor, (labels, order) in enumerate(crossed):
        found *= _counts(len(order), factor, resamples)[:, [order[label] for label in labels]]
    return found


def ratios(
    above: Numbers, below: Numbers, drawn: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """sum(above) / sum(below) in each resample of `drawn` (`weights`)."""
    top, bottom = np.asarray(above, np.float64), np.asarray(below, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: npt.NDArray[np.float64] = (drawn @ top) / (drawn @ bottom)
    return found


def _estimate(
    value: float, found: npt.NDArray[np.float64], count: int, groups: Groups, level: float
) -> Estimate:
    samples = len(set(zip(*groups, strict=True))) if groups else count
    found = found[np.isfinite(found)]
    if not len(found):
        return Estimate(value, float("nan"), float("nan"), samples)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), samples)


def ratio(above: Numbers, below: Numbers, *, groups: Groups = (), level: float = LEVEL) -> Estimate:
    """sum(above) / sum(below) over cases [n], with its interval."""
    bottom = float(np.sum(below))
    value = float(np.sum(above)) / bottom if bottom else float("nan")
    found = ratios(above, below, weights(len(above), groups))
    return _estimate(value, found, len(above), groups, level)


def mean(values: Numbers, *, groups: Groups = (), level: float = LEVEL) -> Estimate:
    """The mean over cases [n], with its interval."""
    return ratio(values, np.ones(len(values)), groups=groups, level=level)


def difference(
    first: tuple[Numbers, Numbers],
    second: tuple[Numbers, Numbers],
    *,
    groups: Groups = (),
    level: float = LEVEL,
) -> Estimate:
    """ratio(first) - ratio(second) on the same resamples: the paired interval.

    Each is (above, below) over the same cases in the same order.
    """
    drawn = weights(len(first[0]), groups)
    found = ratios(*first, drawn) - ratios(*second, drawn)
    value = ratio(*first).value - ratio(*second).value
    return _estimate(value, found, len(first[0]), groups, level)


def quotient(
    first: tuple[Numbers, Numbers],
    second: tuple[Numbers, Numbers],
    *,
    groups: Groups = (),
    level: float = LEVEL,
) -> Estimate:
    """ratio(first) / ratio(second) on the same resamples: "1.5 times as many facts"."""
    drawn = weights(len(first[0]), groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = ratios(*first, drawn) / ratios(*second, drawn)
        value = np.float64(ratio(*first).value) / ratio(*second).value
    return _estimate(float(value), found, len(first[0]), groups, level)


def gap_captured(steered: Numbers, cloud: Numbers, upload: Numbers, **how: Any) -> Estimate:
    """(NLL cloud - NLL steered) / (NLL cloud - NLL upload), on the same reference tokens.

    Each argument: summed negative log-likelihood of the reference, nats, per case [n]. 0: as the
    cloud without the note; 1: as the cloud with it; negative: worse than no steering.
    """
    c, s, u = (np.asarray(x, np.float64) for x in (cloud, steered, upload))
    return ratio(c - s, c - u, **how)


# --- one position ---


def kl(p: npt.NDArray[np.floating], q: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """KL(p || q) in nats along the last axis, of log-probabilities over the same tokens."""
    wide = p.astype(np.float64)
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(wide), 0.0, np.exp(wide) * (wide - q))
    total: npt.NDArray[np.float64] = terms.sum(axis=-1)
    return total


# --- one answer ---


def facts_of(text: str, context: str, query: str) -> tuple[str, ...]:
    """Names and numbers of `text` that the `context` holds and the `query` does not.

    With the reference as `text`: what an informed answer tells; with the context itself: all that
    could be told (`edge_runtime.names`).
    """
    return names_of(text, context, query)


def _flat(text: str) -> str:
    plain = text.lower().replace("’", "'").replace("-", " ")
    return f" {' '.join(WORD.findall(plain))} "


def facts_told(answer: str, facts: Sequence[str]) -> int:
    """How many of `facts` the answer says: as whole words, whatever their capitals, hyphens and
    punctuation; a possessive or plural s is let pass."""
    flat = _flat(answer)
    return sum(_says(flat, fact) for fact in facts)


def _says(flat: str, fact: str) -> bool:
    wanted = _flat(fact).strip()
    return any(f" {wanted}{ending} " in flat for ending in ("", "'s", "s"))


def distinct(words: Sequence[Any], n: int) -> float:
    """Distinct n-grams over n-grams (Li et al. 2016): 1 repeats nothing; 1 if there is none."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(Counter(grams)) / len(grams) if grams else 1.0


@lru_cache(maxsize=1)
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def rouge(answer: str, reference: str) -> tuple[float, float]:
    """F-measures of ROUGE-1 and ROUGE-L (rouge-score, with its stemmer)."""
    scores = _rouge().score(reference, answer)
    return float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure)
