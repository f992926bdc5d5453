"""One KV cache and the tokens in it, and the shelf for caches of broken connections."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from cloud_sim.model import CloudModel, ScoreRequest


@dataclass(slots=True)
class Cache:
    """A model's sequence and the tokens it holds, prompt included."""

    model: CloudModel
    sequence: Any
    tokens: list[int] = field(default_factory=list)

    @classmethod
    def empty(cls, model: CloudModel) -> Cache:
        """A new sequence with nothing in it."""
        return cls(model, model.open())

    def fork(self, keep: int) -> Cache:
        """A new cache with the first `keep` tokens of this one."""
        return Cache(self.model, self.model.fork(self.sequence, keep), self.tokens[:keep])

    def request(
        self, tokens: list[int], first: int, *, same: int = 0, speculative: bool = False
    ) -> ScoreRequest:
        """Make this cache hold `tokens`, which it keeps; predict after each from index `first` on.

        What it holds already is not computed again, except the tokens to predict after. The first
        `same` tokens are known to be those of the request before.
        """
        held = self.tokens
        keep = min(first, len(held))
        if keep > same and held[same:keep] != tokens[same:keep]:
            pairs = zip(held, tokens, strict=False)  # rare: look for where only then
            keep = next(i for i, (have, want) in enumerate(pairs) if have != want)
        self.tokens = tokens
        new = tuple(tokens[keep:])
        every = len(tokens) - first > 1
        return ScoreRequest(self.model, self.sequence, keep, new, every, speculative)

    def close(self) -> None:
        """Free the sequence."""
        self.model.close(self.sequence)


@dataclass(slots=True)
class Shelf:
    """Caches of broken connections by session id, for the device to come back to; one a server."""

    size: int = 16
    """Caches kept; the one that has waited longest goes first."""
    _caches: OrderedDict[str, Cache] = field(default_factory=OrderedDict)
    _waited: set[str] = field(default_factory=set)
    """Sessions whose caches were here when `age` was last called."""

    def __len__(self) -> int:
        return len(self._caches)

    def put(self, session: str, cache: Cache) -> None:
        """Keep `cache` for `session`; the shelf owns it now."""
        stale = self._caches.pop(session, None)
        if stale is not None:
            stale.close()
        self._waited.discard(session)
        self._caches[session] = cache
        while len(self._caches) > self.size:
            self._caches.popitem(last=False)[1].close()

    def take(self, session: str) -> Cache | None:
        """The cache kept for `session`; the caller owns it now."""
        return self._caches.pop(session, None)

    def age(self) -> None:
        """Free what was here at the last call already: called every so often, it keeps each cache
        for once to twice as long."""
        for session in self._waited & self._caches.keys():
            self._caches.pop(session).close()
        self._waited = set(self._caches)

    def clear(self) -> None:
        """Free them all (the server stops)."""
        while self._caches:
            self._caches.popitem()[1].close()
