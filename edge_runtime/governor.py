"""What a device gives up, and in which order, when it cannot keep its budget; and when it recovers.

    as asked          the method as it is
    candidate head    no rule that needs the full head: the plain delta on the candidates instead
    fewer candidates  the cloud's best 16 only
    gated steering    positions where the cloud is sure are the cloud's; their tokens go through the
                      small model later, as one chunk
    cloud only        no work on the device (only if the user allows it)

While the cloud is what is late, the device may go on alone, likewise only if the user allows it:
the schedule's deadline sees to that (`edge_runtime.schedules.deadlines`), and `alone_spans` says
when it began and when the cloud was back.

Dropping the oldest paragraphs of the note (`edge_runtime.shorten`) comes before an answer, when
its first token would be late or its memory too much: a prompt cannot shrink while it is being
answered. One step down when the median token time of a window exceeds the budget, one step up when
it would keep it with room to spare; each change is recorded. An answer under a governor depends on
time: without one it does not.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edge_runtime.budget import Budget, Meter
from edge_runtime.candidates import CandidateSet
from edge_runtime.device import SteeredDevice, choose
from edge_runtime.graphs.memory import rss_mb
from edge_runtime.policy import Decision, Scores
from edge_runtime.steering import Method, policy
from edge_runtime.transcript import TokenRecord

AS_ASKED, CANDIDATE_HEAD, FEWER, GATED, CLOUD_ONLY = range(5)
LEVELS = ("as asked", "candidate head", "fewer candidates", "gated steering", "cloud only")
FEW = 16
SURE = math.log(0.9)
ROOM = 0.6
"""Recover when the recent tokens took less than this share of what is allowed."""
MEMORY_EVERY = 16
"""Tokens between looks at the resident memory: a look costs tens of microseconds."""


@dataclass(slots=True)
class Governor:
    """Decides the level from the meter; knows nothing of models."""

    budget: Budget
    levels: tuple[int, ...]
    """Those that mean something for the method, in order; the first is `AS_ASKED`."""
    meter: Meter = field(default_factory=Meter)
    decisions: list[str] = field(default_factory=list)
    """One line each, for the transcript."""
    worst: int = 0
    """The furthest level it went to."""
    _at: int = 0
    _patience: int = 1
    """Windows to wait before recovering; doubles when a recovery did not hold."""
    _quiet: int = 0
    _recovered: bool = False
    """The last window ended in a recovery: will it hold?"""

    @property
    def level(self) -> int:
        """The present level."""
        return self.levels[self._at]

    def token(self, position: int, milliseconds: float, resident_mb: float | None = None) -> None:
        """The device spent that long on the token at `position`; decides at a window's end."""
        meter = self.meter
        meter.token(milliseconds)
        limit = self.budget.memory_mb
        if limit is not None and resident_mb is not None and resident_mb > limit:
            self._move(position, +1, f"{resident_mb:.0f} MB, allowed {limit:g} MB")
            return
        allowed = self.budget.token_ms
        if allowed is None or len(meter.steps_ms) < meter.window:
            return
        recent = meter.recent_ms
        if recent > allowed:
            if self._recovered:
                self._patience = min(64, 2 * self._patience)
            self._move(position, +1, f"{recent:.1f} ms a token, allowed {allowed:g} ms")
        elif self._at and recent < ROOM * allowed:
            self._quiet += 1
            meter.forget()
            self._recovered = False
            if self._quiet >= self._patience:
                self._move(position, -1, f"{recent:.1f} ms a token, allowed {allowed:g} ms")
        else:
            meter.forget()
            self._recovered = False

    def _move(self, position: int, by: int, why: str) -> None:
        self.meter.forget()
        self._quiet = 0
        at = min(max(0, self._at + by), len(self.levels) - 1)
        if at == self._at:
            return
        self._at, self._recovered = at, by < 0
        self.worst = max(self.worst, self.level)
        self.decisions.append(f"token {position}: {LEVELS[self.level]} ({why})")


def levels_for(method: Method, allow_cloud_only: bool) -> tuple[int, ...]:
    """The levels that change anything for `method`."""
    found = [AS_ASKED]
    if method.full_head and method.asks_cloud:
        found.append(CANDIDATE_HEAD)
    if method.asks_cloud:
        found += [FEWER, GATED]
        if allow_cloud_only:
            found.append(CLOUD_ONLY)
    return tuple(found)


class GovernedDevice(SteeredDevice):
    """A steered device that keeps its budget as far as it may."""

    def __init__(
        self,
        device: SteeredDevice,
        budget: Budget,
        *,
        allow_cloud_only: bool = True,
        clock: Callable[[], float] = time.perf_counter,
        resident: Callable[[], float] = rss_mb,
    ) -> None:
        super().__init__(
            device.branches, device.prompts, device.method, device.sampler, device.end_ids
        )
        self.governor = Governor(budget, levels_for(device.method, allow_cloud_only))
        self._clock, self._resident = clock, resident
        self._plain = replace(device.method, rule="linear", mix=0.0, copy=0.0)
        self._pending: list[int] = []
        """Answer tokens that the small model has not seen yet."""
        self._spent_ms = 0.0
        self._position = 0

    def may_end_as(self, last_resort: str) -> None:
        """Who may answer alone: `cloud`, `device`, `both` or `none` (before the answer begins)."""
        allowed = last_resort in ("cloud", "both")
        self.governor.levels = levels_for(self.method, allowed)

    @property
    def decisions(self) -> list[str]:
        """What was given up and when, one line each."""
        return self.governor.decisions

    @property
    def length(self) -> int:
        """Answer tokens, those included that wait for the small model."""
        return self.branches.length + len(self._pending)

    def prefill(self) -> None:
        """Both prompts; the first token's time is judged by it."""
        self._pending.clear()
        began = self._clock()
        super().prefill()
        spent = (self._clock() - began) * 1e3
        self.governor.meter.first_token_ms = spent
        allowed = self.governor.budget.first_token_ms
        if allowed is not None and spent > allowed:
            self.governor.decisions.append(
                f"prefill: {spent:.0f} ms, allowed {allowed:g} ms; keep the note for the next query"
            )

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens; when steering is gated, only note them down."""
        self._pending += tokens
        if self.governor.level < GATED:
            self._timed(self._flush)

    def rollback(self, length: int) -> None:
        """Forget answer tokens, waiting ones first."""
        kept = length - self.branches.length
        if kept >= 0:
            del self._pending[kept:]
        else:
            self._pending.clear()
            self.branches.rollback(length)

    def head(self, candidates: CandidateSet, position: int | None = None) -> Scores:
        """Logits over as many candidates as the level has; none at all where it is gated."""
        level = self.governor.level
        gated = level == GATED and float(candidates.logprobs.max()) > SURE
        if level == CLOUD_ONLY or gated:
            nothing: Any = None  # what `choose` takes for the cloud's own token
            return nothing
        if position is None or position > self.branches.length:
            self._timed(self._flush)
        rule = self._rule
        few = self._narrowed(candidates)
        whole = rule.full_head or few.full
        ids = None if whole else rule.support(few)
        scores: Scores = self._timed(lambda: self.branches.logits(ids, position))
        return scores

    def choose(
        self,
        position: int,
        candidates: CandidateSet,
        scores: Scores | None,
        token: int | None = None,
    ) -> Decision:
        """The token for `position`, by the rule that the scores were computed for."""
        rule, seen = self._as_scored(candidates, scores)
        decision: Decision = self._timed(
            lambda: choose(rule, self.sampler, position, seen, scores, token)
        )
        if position >= self._position:
            self._position = position + 1
            look = position % MEMORY_EVERY == 0 and self.governor.budget.memory_mb is not None
            self.governor.token(position, self._spent_ms, self._resident() if look else None)
            self._spent_ms = 0.0
        return decision

    def policy(
        self, position: int, candidates: CandidateSet, scores: Scores | None
    ) -> CandidateSet:
        """The distribution that `choose` draws from."""
        if scores is None:
            return super().policy(position, candidates, None)
        rule, seen = self._as_scored(candidates, scores)
        steered = policy(rule, seen, scores, position)
        return self.sampler.distribution(steered.ids, steered.policy)

    def alone(self, position: int, base: CandidateSet | None = None) -> CandidateSet:
        """The device's own distribution; the small model catches up first."""
        self._timed(self._flush)
        return super().alone(position, base)

    @property
    def _rule(self) -> Method:
        return self.method if self.governor.level == AS_ASKED else self._plain

    def _narrowed(self, candidates: CandidateSet) -> CandidateSet:
        if self.governor.level < FEWER or len(candidates.ids) <= FEW:
            return candidates
        return narrowed(candidates, FEW)

    def _as_scored(
        self, candidates: CandidateSet, scores: Scores | None
    ) -> tuple[Method, CandidateSet]:
        """The rule and the candidates that `scores` belong to, whatever the level is by now."""
        if scores is None:
            return self.method, candidates
        width = scores.shape[1]
        if width == self.branches.vocabulary_size and self.method.full_head:
            return self.method, candidates
        if self.method.copy and not self.method.full_head:
            if width == len(self.method.support(candidates)):
                return self.method, candidates
            return self._plain, narrowed(candidates, min(width, len(candidates.ids)))
        if width < len(candidates.ids):
            return self._plain, narrowed(candidates, width)
        return (self._plain if self.method.full_head else self.method), candidates

    def _flush(self) -> None:
        if self._pending:
            waiting, self._pending = self._pending, []
            self.branches.extend(waiting)

    def _timed(self, work: Callable[[], Any]) -> Any:
        began = self._clock()
        try:
            return work()
        finally:
            self._spent_ms += (self._clock() - began) * 1e3


def narrowed(candidates: CandidateSet, count: int) -> CandidateSet:
    """The `count` most probable of `candidates`, ids ascending; the rest's mass is left out."""
    order = np.argsort(-candidates.logprobs, kind="stable")
    kept, rest = np.sort(order[:count]), order[count:]
    lost = float(np.exp(candidates.logprobs[rest].astype(np.float64)).sum())
    return CandidateSet(
        candidates.ids[kept], candidates.logprobs[kept], left_out=candidates.left_out + lost
    )


def alone_spans(records: Sequence[TokenRecord]) -> list[str]:
    """One line for each stretch of an answer that the device wrote alone, the cloud being late."""
    sources = [record.decision.source if record.decision else "" for record in records]
    lines, start = [], 0
    for source, same in itertools.groupby(sources):
        end = start + len(list(same))
        if source == "device":
            back = f"the cloud was back at token {end}" if end < len(sources) else "to the end"
            lines.append(f"token {start}: device alone (the cloud was late; {back})")
        start = end
    return lines
