"""A steered device whose small model has another tokenizer than the cloud.

It speaks the cloud's ids to the schedule and its own to the small model: the answer so far is
tokenized anew for the small model as it grows (`edge_runtime.alignment` says how tokens are
matched). A token with no counterpart is therefore no obstacle: it is emitted, and the small model
reads its text in its own tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_runtime.alignment import ByteTree, Opinion, TokenMap, choose_bytes, token_bytes
from edge_runtime.candidates import CandidateSet
from edge_runtime.device import Branches, choose
from edge_runtime.errors import UsageError
from edge_runtime.policy import Decision, Scores, Use
from edge_runtime.sampling import GREEDY, Sampler
from edge_runtime.schedules.actions import Kind, Load
from edge_runtime.steering import AGNOSTIC, AWARE, Method, log_softmax, policy
from edge_runtime.text import Prompts, Text

How = Literal["map", "byte"]


class TranslatedDevice:
    """`policy.Device` over the cloud's vocabulary, with a small model of another."""

    def __init__(
        self,
        branches: Branches,
        prompts: Prompts,
        ours: Text,
        theirs: Text,
        method: Method,
        sampler: Sampler = GREEDY,
        *,
        our_ends: Sequence[int],
        end_ids: Iterable[int],
        how: How = "map",
        names: Sequence[int] = (),
    ) -> None:
        """`names`: the cloud's tokens for the note's names, for rules that treat them apart (by
        bytes there are no tokens to treat)."""
        self.branches = branches
        self.prompts = prompts
        self.method = method
        self.sampler = sampler
        self.end_ids = frozenset(end_ids)
        self.how = how
        self._ours = ours
        self._names = np.asarray(names, np.int64)
        self.words = token_bytes(theirs.tokenizer)
        """The bytes of each of the cloud's tokens; None: it has none."""
        own = token_bytes(ours.tokenizer)
        ends = sorted(self.end_ids)
        self.token_map = TokenMap.between(own, self.words, (our_ends, ends))
        self.tree = ByteTree(own, our_ends)
        self._answer: list[int] = []
        self._read: list[int] = []
        """Our ids of the answer so far, as they are in the branches."""
        if not self.token_map.shared:
            raise UsageError(
                "vocabulary", "the two models share no token", todo="Use another pair of models"
            )

    @property
    def decisions(self) -> list[str]:
        """What was given up for a budget: nothing."""
        return []

    @property
    def shared(self) -> int:
        """Tokens of the cloud that the small model has too."""
        return self.token_map.shared

    @property
    def length(self) -> int:
        """Answer tokens, in the cloud's ids."""
        return len(self._answer)

    def prefill(self) -> None:
        """Both prompts into the caches."""
        self._answer, self._read = [], []
        prompts = self.prompts
        self.branches.prefill(prompts.aware, prompts.agnostic, note=prompts.note)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens (the cloud's ids) to both rows."""
        self._answer += tokens
        self._reread()

    def rollback(self, length: int) -> None:
        """Forget all answer tokens from `length` on."""
        del self._answer[length:]
        self._reread()

    def head(self, candidates: CandidateSet, position: int | None = None) -> Scores:
        """Logits [2, V] of the small model over its own vocabulary."""
        if position is None or position == self.length:
            return self.branches.logits()
        kept = list(self._answer)
        self.rollback(position)
        scores = np.array(self.branches.logits())
        self.extend(kept[position:])
        return scores

    def choose(
        self,
        position: int,
        candidates: CandidateSet,
        scores: Scores | None,
        token: int | None = None,
    ) -> Decision:
        """The token for `position` (a cloud id), or the record of `token`."""
        if scores is None:
            return choose(self.method, self.sampler, position, candidates, None, token)
        if self.how == "byte" and token is None:
            return self._by_bytes(position, candidates, scores)
        narrowed, logits = self._narrow(candidates, scores)
        if not len(narrowed.ids):
            return choose(self.method, self.sampler, position, candidates, None, token)
        local = CandidateSet(np.arange(len(narrowed.ids)), narrowed.logprobs, full=True)
        at = None if token is None else int(np.searchsorted(narrowed.ids, token))
        if at is not None and (at == len(narrowed.ids) or narrowed.ids[at] != token):
            return choose(self.method, self.sampler, position, candidates, None, token)
        rule = self._about(narrowed)
        decision = choose(rule, self.sampler, position, local, logits, at)
        return replace(
            decision, token=int(narrowed.ids[decision.token]), base_token=candidates.best
        )

    def policy(
        self, position: int, candidates: CandidateSet, scores: Scores | None
    ) -> CandidateSet:
        """The distribution that `choose` draws from (for `byte`: that of `map`)."""
        if scores is None:
            return self.sampler.distribution(candidates.ids, log_softmax(candidates.logprobs))
        narrowed, logits = self._narrow(candidates, scores)
        if not len(narrowed.ids):
            return self.policy(position, candidates, None)
        local = CandidateSet(np.arange(len(narrowed.ids)), narrowed.logprobs, full=True)
        steered = policy(self._about(narrowed), local, logits, position)
        return self.sampler.distribution(narrowed.ids, steered.policy)

    def alone(self, position: int, base: CandidateSet | None = None) -> CandidateSet:
        """What the rule makes of `base`. Raises `UsageError` without one: the small model's own
        tokens are not the cloud's."""
        if base is None:
            raise UsageError(
                "device",
                "a small model with another tokenizer cannot draft",
                todo="Use another schedule, or a pair of one family",
            )
        return self.policy(position, base, self.head(base))

    def uniform(self, position: int, use: Use = "choose") -> float:
        """The random number in [0, 1) for one use at one position."""
        return self.sampler.uniform(position, use)

    def load(self, kind: Kind, tokens: int = 0, candidates: int = 0) -> Load:
        """How big that piece of work would be now; a cloud token is about one of ours."""
        if kind == "prefill":
            return Load(rows=2, tokens=max(len(self.prompts.aware), len(self.prompts.agnostic)))
        if kind == "head":
            candidates = self.branches.vocabulary_size
        return Load(rows=2, tokens=tokens, past=self.branches.past, candidates=candidates)

    def _about(self, narrowed: CandidateSet) -> Method:
        """The rule, with the names' places among the candidates."""
        named = np.flatnonzero(np.isin(narrowed.ids, self._names))
        return self.method.about(tuple(named.tolist()))

    def _narrow(self, candidates: CandidateSet, scores: Scores) -> tuple[CandidateSet, Scores]:
        """The candidates that we have too, and our logits [2, C] of them."""
        # A model's output may be wider than its tokenizer: ids beyond it mean nothing.
        ours = np.full(len(candidates.ids), -1, np.int64)
        known = candidates.ids < len(self.token_map.to_ours)
        ours[known] = self.token_map.to_ours[candidates.ids[known]]
        both = ours >= 0
        kept = CandidateSet(candidates.ids[both], candidates.logprobs[both], candidates.left_out)
        return kept, scores[:, ours[both]]

    def _by_bytes(self, position: int, candidates: CandidateSet, scores: Scores) -> Decision:
        words: dict[bytes, int] = {}
        for at in np.argsort(-candidates.logprobs, kind="stable"):
            token = int(candidates.ids[at])
            raw = b"" if token in self.end_ids else self._word(token)
            if raw is not None:
                words.setdefault(raw, int(at))
        if not words:
            return choose(self.method, self.sampler, position, candidates, None)
        index = np.array(list(words.values()))
        logprobs = log_softmax(candidates.logprobs.astype(np.float64))
        own = log_softmax(scores.astype(np.float64))
        aware, agnostic = (Opinion.of(self.tree, own[row]) for row in (AWARE, AGNOSTIC))
        left = self.uniform(position)

        def pick(
            symbols: npt.NDArray[np.int64],
            cloud: npt.NDArray[np.floating],
            own_aware: npt.NDArray[np.floating],
            own_agnostic: npt.NDArray[np.floating],
        ) -> tuple[int, float]:
            nonlocal left
            local = CandidateSet(np.arange(len(symbols)), cloud, full=True)
            logits = np.stack([own_aware, own_agnostic])
            chances = policy(self.method, local, logits, position).policy
            if self.sampler.temperature == 0:
                at = int(np.argmax(chances))
                return at, float(chances[at])
            drawn = self.sampler.distribution(local.ids, chances)
            # One uniform number serves all bytes: what is left of it after each draw is uniform.
            steps = np.cumsum(np.exp(drawn.logprobs.astype(np.float64)))
            steps /= steps[-1]
            here = min(int(np.searchsorted(steps, left, side="right")), len(steps) - 1)
            low = float(steps[here - 1]) if here else 0.0
            left = min((left - low) / max(float(steps[here]) - low, 1e-12), 1 - 1e-12)
            return int(drawn.ids[here]), float(drawn.logprobs[here])

        chosen, logprob = choose_bytes(list(words), logprobs[index], aware, agnostic, pick)
        at = int(index[chosen])
        return Decision(
            token=int(candidates.ids[at]),
            base_token=candidates.best,
            policy_logprob=logprob,
            base_logprob=float(logprobs[at]),
            source="steered" if self.method.steers else "cloud",
        )

    def _word(self, token: int) -> bytes | None:
        return self.words[token] if token < len(self.words) else None

    def _reread(self) -> None:
        """Bring the branches to the answer's text, from the first token that differs."""
        raw = b"".join(self._word(token) or b"" for token in self._answer)
        # A character that is cut short is read when it is whole.
        wanted = self._ours.encode(raw.decode("utf-8", errors="ignore"))
        same = 0
        while same < min(len(wanted), len(self._read)) and wanted[same] == self._read[same]:
            same += 1
        if same < len(self._read):
            self.branches.rollback(same)
        if same < len(wanted):
            self.branches.extend(wanted[same:])
        self._read = wanted
