"""One GPU (or group) that serves many sessions by continuous batching, in virtual time.

    waiting ──▶ [ pass: who waits first; guesses if there is room; prompts in chunks between ] ──▶
                  time = roofline(rows, cached tokens, prompt tokens)

A session's keys and values stay in memory while it waits for its device. When a session needs
memory that is not free, idle sessions are evicted, longest idle first; an evicted one pays its
whole cache again as a prefill when it comes back. A session that does not fit even so waits.

Modelled: the above, with `Batching.chunk_tokens` new tokens a pass at most (None: any number, as
in `cloud_sim.live.engine`). Not modelled: a prefix cache shared between sessions, swapping to host
memory, priorities between users.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from cloud_sim.sim.engine import Served
from cloud_sim.sim.roofline import Roofline
from cloud_sim.sim.waiting import Clock
from edge_runtime.schedules.actions import Load


@dataclass(frozen=True, slots=True)
class Batching:
    """How large a pass may get."""

    rows: int = 64
    chunk_tokens: int | None = 2048
    """New tokens of all rows in one pass."""
    kv_tokens: int | None = None
    """Tokens whose keys and values fit in memory; None: any number."""


STANDARD = Batching()


@dataclass(slots=True)
class Totals:
    """Since the clock began."""

    passes: int = 0
    rows: int = 0
    busy_ms: float = 0.0
    evictions: int = 0
    most_waiting: int = 0
    most_kv_tokens: int = 0


class _Job:
    """One forward pass that a session asked for; several passes if it is a long prompt."""

    __slots__ = ("computed_ms", "done", "left", "load", "session", "submitted_ms")

    def __init__(
        self,
        session: object,
        load: Load,
        left: int,
        now_ms: float,
        done: Callable[[Served], None],
    ) -> None:
        self.session, self.load, self.left = session, load, left
        self.submitted_ms, self.computed_ms = now_ms, 0.0
        self.done = done


class Serving:
    """An `Engine` that batches."""

    def __init__(self, clock: Clock, roofline: Roofline, batching: Batching = STANDARD) -> None:
        self._clock, self._roofline, self._batching = clock, roofline, batching
        self._waiting: deque[_Job] = deque()
        self._guesses: deque[_Job] = deque()
        self._pending: dict[object, _Job] = {}
        self._running = False
        self._held: OrderedDict[object, int] = OrderedDict()
        """KV tokens of each session, the longest idle first."""
        self._lost: dict[object, int] = {}
        """Tokens that an evicted session has to compute again."""
        self._kv = 0
        self.totals = Totals()

    def score(self, session: object, load: Load, done: Callable[[Served], None]) -> None:
        """See `Engine`."""
        again = self._lost.pop(session, 0)
        tokens = load.rows * load.tokens + again
        job = _Job(session, load, tokens, self._clock.now, done)
        self._pending[session] = job
        queue = self._guesses if load.speculative else self._waiting
        queue.append(job)
        totals = self.totals
        totals.most_waiting = max(totals.most_waiting, len(self._waiting) + len(self._guesses))
        if not self._running:
            self._running = True
            self._soon()

    def leave(self, session: object) -> None:
        """See `Engine`."""
        self._kv -= self._held.pop(session, 0)
        self._lost.pop(session, None)

    def _soon(self) -> None:
        """Begin a pass when all that happens at this instant has happened."""
        self._clock.after(0.0, self._pass)

    def _pass(self) -> None:
        """Choose a batch, let its time go by, answer, and go on."""
        chosen = self._choose()
        if not chosen:
            self._running = False
            return
        rows = sum(job.load.rows for job, _ in chosen)
        cached = sum(job.load.rows * job.load.past for job, _ in chosen)
        new = sum(new for _, new in chosen)
        spent = self._roofline.step_ms(rows, cached, max(0, new - rows))
        totals = self.totals
        totals.passes += 1
        totals.rows += rows
        totals.busy_ms += spent
        self._clock.after(spent, lambda: self._finish(chosen, spent))

    def _finish(self, chosen: list[tuple[_Job, int]], spent: float) -> None:
        for job, new in reversed(chosen):
            job.computed_ms += spent
            job.left -= new
            if job.left > 0:
                (self._guesses if job.load.speculative else self._waiting).appendleft(job)
        now = self._clock.now
        for job, _ in chosen:
            if job.left <= 0:
                del self._pending[job.session]
                job.done((now - job.submitted_ms - job.computed_ms, job.computed_ms))
        # Those just answered may ask again at this instant: they come before the next pass.
        self._soon()

    def _choose(self) -> list[tuple[_Job, int]]:
        """Who is in the next pass, and with how many new tokens: first come, first served, but a
        prompt takes what the steps behind it leave."""
        batching = self._batching
        room = batching.chunk_tokens or 1 << 60
        rows = 0
        chosen: list[tuple[_Job, int]] = []
        for queue in (self._waiting, self._guesses):
            while queue and room > 0:
                job = queue[0]
                if chosen and rows + job.load.rows > batching.rows:
                    break
                if not self._hold(job, alone=not chosen):
                    break
                queue.popleft()
                steps = 0 if job.left <= job.load.rows else self._steps(batching.rows - rows)
                new = min(job.left, max(1, room - steps))
                chosen.append((job, new))
                rows += job.load.rows
                room -= new
        return chosen

    def _steps(self, rows: int) -> int:
        """Tokens of a pass that a prompt leaves to those who wait for one step behind it."""
        steps = (job.load.rows for job in self._waiting if job.left <= job.load.rows)
        return min(rows, sum(steps))

    def _hold(self, job: _Job, *, alone: bool) -> bool:
        """Memory for the job's tokens, if need be by evicting others.

        Idle sessions go first. The first of a pass (`alone`) may push out waiting ones too, else
        all could wait for each other's memory; a job that is too large even so runs all the same.
        """
        needs = job.load.rows * (job.load.past + job.load.tokens)
        most = self._batching.kv_tokens
        while most is not None and self._kv - self._held.get(job.session, 0) + needs > most:
            others = (s for s in self._held if s is not job.session)
            victim = next((s for s in others if s not in self._pending), None)
            if victim is None and not alone:
                return False
            if victim is None:
                victim = next((s for s in reversed(self._held) if s is not job.session), None)
            if victim is None:
                break
            self._evict(victim)
        self._kv += needs - self._held.get(job.session, 0)
        self._held[job.session] = needs
        self._held.move_to_end(job.session)
        self.totals.most_kv_tokens = max(self.totals.most_kv_tokens, self._kv)
        return True

    def _evict(self, session: object) -> None:
        tokens = self._held.pop(session)
        self._kv -= tokens
        self.totals.evictions += 1
        job = self._pending.get(session)
        if job is not None:
            job.left += tokens
        else:
            self._lost[session] = tokens
