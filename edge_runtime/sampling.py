"""Taking a token from a policy: greedy, or by one uniform number that belongs to the position."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_runtime.candidates import CandidateSet, Floats
from edge_runtime.errors import UsageError
from edge_runtime.policy import Use
from edge_runtime.steering import log_softmax


@functools.lru_cache(maxsize=64)
def _key(seed: int, use: str) -> int:
    stream = tuple(use.encode())
    words = np.random.SeedSequence(seed, spawn_key=stream).generate_state(2, np.uint64)
    return int(words[0]) | int(words[1]) << 64


def uniform(seed: int, position: int, use: Use = "choose") -> float:
    """The one random number in [0, 1) that belongs to one `use` at one `position` of an answer.

    Counter-based, so that a schedule may visit positions in any order, or twice.
    """
    bits = np.random.Philox(key=_key(seed, use), counter=position)
    return float(np.random.Generator(bits).random())


@dataclass(frozen=True, slots=True)
class Sampler:
    """How a token is taken from a policy: the best (`temperature` 0), or drawn."""

    temperature: float = 0.0
    top_p: float = 1.0
    """Draw among the most probable tokens that together have this much probability."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature and not 1e-3 <= self.temperature <= 100:
            raise UsageError(
                "sampler",
                "the temperature is out of range",
                got=self.temperature,
                allowed="0, or 0.001 to 100",
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(
                "sampler", "top-p is out of range", got=self.top_p, allowed="above 0, at most 1"
            )
        if self.seed < 0:
            raise UsageError("sampler", "the seed is negative", got=self.seed, allowed="0 or more")

    def distribution(self, ids: npt.NDArray[np.int64], logprobs: Floats) -> CandidateSet:
        """What is drawn from: `logprobs` [C] over ascending `ids`, after temperature and top-p.

        Greedy: the best token alone, of equals the one with the lowest id.
        """
        if self.temperature == 0:
            at = int(np.argmax(logprobs))
            return CandidateSet(ids[at : at + 1], np.zeros(1, np.float32))
        sharpened = log_softmax(logprobs.astype(np.float64) / self.temperature)
        if self.top_p < 1:
            order = np.argsort(-sharpened, kind="stable")
            mass = np.cumsum(np.exp(sharpened[order]))
            kept = np.sort(order[: int(np.searchsorted(mass, self.top_p)) + 1])
            ids, sharpened = ids[kept], log_softmax(sharpened[kept])
        return CandidateSet(ids, sharpened)

    def uniform(self, position: int, use: Use = "choose") -> float:
        """The random number for one use at one position."""
        return uniform(self.seed, position, use)

    def token(self, ids: npt.NDArray[np.int64], logprobs: Floats, position: int) -> int:
        """The token for `position` from a policy over ascending `ids`.

        By inverse CDF with the position's one uniform number, so that every schedule that sees
        the same policy draws the same.
        """
        if self.temperature == 0:
            return int(ids[logprobs.argmax()])
        left = self.distribution(ids, logprobs)
        if len(left.ids) == 1:
            return int(left.ids[0])
        cdf = np.cumsum(np.exp(left.logprobs))
        at = int(np.searchsorted(cdf, self.uniform(position) * cdf[-1], side="right"))
        return int(left.ids[min(at, len(left.ids) - 1)])


GREEDY = Sampler()
