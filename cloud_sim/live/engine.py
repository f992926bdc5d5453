"""One thread that computes for all sessions: whoever waits is served in one forward pass.

Requests that arrive while a pass runs form the next batch, first come first served; requests
marked `speculative` (run-ahead's guesses) ride along when there is room and otherwise wait until
nobody else does. Sessions that were served together come back within moments of each other: the
next pass waits a little for the last of them (`_Muster`), or else they would split into groups
that wait for each other's passes for ever. A long prompt is computed in chunks, so that the
others' next tokens do not wait for all of it. A pass that fails ends the sessions that were in it,
not the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from cloud_sim.model import CloudModel, Logprobs, ScoreBatch, ScoreRequest
from edge_runtime.timing import now_ms


@dataclass(frozen=True, slots=True)
class Scored:
    """What one piece of work gave, and where its time went."""

    result: Any
    queue_ms: float
    """From being handed in to the beginning of its pass."""
    compute_ms: float
    """The whole pass, shared with whoever else was in it."""
    finished_ms: float
    """When the pass ended, on `time.monotonic`'s clock."""


@dataclass(slots=True)
class _Job:
    requests: tuple[ScoreRequest, ...]
    single: bool
    future: Future[Scored]
    submitted_ms: float
    speculative: bool
    began_ms: float = 0.0
    computed_ms: float = 0.0

    def part(self, chunk: int) -> tuple[ScoreRequest, ...]:
        """What the next pass computes of it: all, or the first chunk of a prompt."""
        if self.single and not self.requests[0].every and len(self.requests[0].tokens) > chunk:
            return (replace(self.requests[0], tokens=self.requests[0].tokens[:chunk]),)
        return self.requests

    def advance(self, done: tuple[ScoreRequest, ...]) -> bool:
        """Take `done` off; whether anything is left."""
        if done is self.requests:
            return False
        (request,), count = self.requests, len(done[0].tokens)
        left = replace(request, keep=request.keep + count, tokens=request.tokens[count:])
        self.requests = (left,)
        return True


class Unfinished(Exception):
    """Nobody wants the rest of a prompt, so it was not computed: its cache holds a part of it."""


LINGER = 0.15
"""A pass may begin later by this share of the last one's time, if that makes it larger."""
LINGER_MS = 20.0
"""And by no more than this."""
MOST_SKIPPED = 32
"""Passes that begin at once after waiting has not paid."""


class _Muster:
    """How long to wait for sessions that were served lately; learns whether it pays."""

    def __init__(self) -> None:
        self._lately: list[set[int]] = [set(), set()]
        self._until_ms = 0.0
        self._skip = self._penalty = 0

    def served(self, sequences: set[int], pass_ms: float, ended_ms: float) -> None:
        """A pass over `sequences` has ended."""
        self._lately = [self._lately[1], sequences]
        self._until_ms = ended_ms + min(LINGER * pass_ms, LINGER_MS)

    def left_ms(self, waiting: int, now_ms: float) -> float:
        """How long to wait yet, with `waiting` sequences here; 0: begin."""
        expected = len(self._lately[0] | self._lately[1])
        if waiting >= expected or self._skip:
            return 0.0
        return max(0.0, self._until_ms - now_ms)

    def began(self, waiting: int, lingered: bool) -> None:
        """A pass begins; whether more came after lingering is how it learns."""
        if self._skip:
            self._skip -= 1
        elif lingered:
            came = waiting >= len(self._lately[0] | self._lately[1])
            self._penalty = 0 if came else min(2 * self._penalty + 1, MOST_SKIPPED)
            self._skip = self._penalty


@dataclass(slots=True)
class Totals:
    """Since the engine began."""

    passes: int = 0
    requests: int = 0
    tokens: int = 0
    largest_batch: int = 0
    busy_ms: float = 0.0


@dataclass(slots=True)
class Batching:
    """How large a pass may get."""

    requests: int = 64
    tokens: int = 2048
    """New tokens; a single larger job still runs, alone."""
    chunk: int = 256
    """Tokens of a prompt that one pass takes."""


class Engine:
    """Runs `CloudModel.score` for many sessions; `submit` may be called from any thread."""

    def __init__(
        self,
        model: CloudModel,
        batching: Batching | None = None,
        on_thread: Callable[[], None] | None = None,
    ) -> None:
        self.model = model
        self.totals = Totals()
        self._batching = batching or Batching()
        self._waiting: list[_Job] = []
        self._changed = threading.Condition()
        self._stopped = False
        self._unwanted: set[Future[Scored]] = set()
        self._muster = _Muster()
        self._on_thread = on_thread
        self._thread = threading.Thread(target=self._run, name="costeer-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that no pass has taken up yet."""
        return len(self._waiting)

    def submit(self, work: ScoreRequest | ScoreBatch) -> Future[Scored]:
        """Have `work` computed. Cancelling the future before its pass begins takes it back."""
        single = isinstance(work, ScoreRequest)
        requests = (work,) if isinstance(work, ScoreRequest) else work.requests
        future: Future[Scored] = Future()
        guess = all(request.speculative for request in requests)
        job = _Job(requests, single, future, now_ms(), guess)
        with self._changed:
            if self._stopped:
                raise RuntimeError("the engine has been stopped")
            self._waiting.append(job)
            self._changed.notify()
        return future

    def withdraw(self, future: Future[Scored]) -> bool:
        """Take work back that no pass has begun; whether that was so. Of a prompt that is under way
        the chunks that are left are not computed: `future` then raises `Unfinished`."""
        if future.cancel():
            return True
        with self._changed:
            if not future.done():
                self._unwanted.add(future)
        return False

    def stop(self) -> None:
        """Let the running pass end, cancel the rest, end the thread."""
        with self._changed:
            self._stopped = True
            for job in self._waiting:
                if not job.future.cancel():
                    job.future.set_exception(RuntimeError("the engine has been stopped"))
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        if self._on_thread is not None:
            self._on_thread()
        while True:
            with self._changed:
                while not self._waiting and not self._stopped:
                    self._changed.wait()
                self._gather()
                if self._stopped:
                    return
                jobs = self._next()
            jobs = [
                job for job in jobs if job.began_ms or job.future.set_running_or_notify_cancel()
            ]
            if jobs:
                self._pass(jobs)

    def _gather(self) -> None:
        """Wait a little for sessions that are about to come back. Holds the condition."""
        lingered = False
        while not self._stopped:
            here = sum(len(job.requests) for job in self._waiting)
            left = self._muster.left_ms(here, now_ms())
            if left <= 0:
                self._muster.began(here, lingered)
                return
            lingered = True
            self._changed.wait(left / 1e3)

    def _next(self) -> list[_Job]:
        """The next batch, taken out of the queue: whoever waits before whoever guesses."""
        self._waiting = [job for job in self._waiting if not job.future.cancelled()]
        chosen: list[_Job] = []
        requests = tokens = 0
        for job in sorted(self._waiting, key=lambda job: job.speculative):
            new = sum(len(request.tokens) for request in job.part(self._batching.chunk))
            room = (
                requests + len(job.requests) <= self._batching.requests
                and tokens + new <= self._batching.tokens
            )
            if chosen and not room:
                continue
            chosen.append(job)
            requests += len(job.requests)
            tokens += new
        taken = set(map(id, chosen))
        self._waiting = [job for job in self._waiting if id(job) not in taken]
        return chosen

    def _pass(self, jobs: Sequence[_Job]) -> None:
        parts = [job.part(self._batching.chunk) for job in jobs]
        requests = [request for part in parts for request in part]
        began = now_ms()
        try:
            results: list[Logprobs] = self.model.score(requests)
        except BaseException as error:
            for job in jobs:
                self._settle(job, error)
            return
        ended = now_ms()
        self._count(requests, ended - began)
        self._muster.served({id(r.sequence) for r in requests}, ended - began, ended)
        at = 0
        for job, part in zip(jobs, parts, strict=True):
            mine = results[at : at + len(part)]
            at += len(part)
            job.began_ms = job.began_ms or began
            job.computed_ms += ended - began
            if job.advance(part):
                self._again(job)
            else:
                queued = ended - job.submitted_ms - job.computed_ms
                result = mine[0] if job.single else list(mine)
                self._settle(job, Scored(result, queued, job.computed_ms, ended))

    def _settle(self, job: _Job, outcome: Scored | BaseException) -> None:
        if isinstance(outcome, BaseException):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
        with self._changed:
            self._unwanted.discard(job.future)

    def _again(self, job: _Job) -> None:
        """The rest of a prompt: next in turn, unless nobody wants it or the engine is stopping."""
        with self._changed:
            over: Exception | None = None
            if self._stopped:
                over = RuntimeError("the engine has been stopped")
            elif job.future in self._unwanted:
                over = Unfinished()
            else:
                self._waiting.insert(0, job)
        if over is not None:
            self._settle(job, over)

    def _count(self, requests: Sequence[ScoreRequest], milliseconds: float) -> None:
        totals = self.totals
        totals.passes += 1
        totals.requests += len(requests)
        totals.tokens += sum(len(request.tokens) for request in requests)
        totals.largest_batch = max(totals.largest_batch, len(requests))
        totals.busy_ms += milliseconds
