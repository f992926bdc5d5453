"""Whole greedy answers of each method, made in memory, and what is measured of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cloud_sim.model import Logprobs, ScoreRequest
from cloud_sim.session import session
from edge_runtime.candidates import CandidateSet, codec
from edge_runtime.connections.direct import Exchange
from edge_runtime.device import CloudOnlyDevice, SteeredDevice
from edge_runtime.policy import Decision, Device, Scores
from edge_runtime.sampling import GREEDY
from edge_runtime.schedules.alone import alone
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.steering import Method, gain, policy
from scenarios.datasets import Case
from scenarios.metrics import distinct, facts_of, facts_told, rouge
from scenarios.models.branches import ModelBranches
from scenarios.models.pair import Pair, along

AT_ONCE = 64
"""Answers under way together: rows of a pass, which a processor likes to be many."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One method's answer to one case; logarithms are summed over `tokens`, natural."""

    text: str
    tokens: int
    upload_logp: float
    """Under the cloud model WITH the note."""
    cloud_logp: float
    """Under the cloud model without it; the difference is the personal evidence."""
    diverged: int
    """Tokens that are not the cloud's best."""
    facts: int
    """Of the case's facts, those told."""
    of_facts: int
    note_facts: int
    """Of all names and numbers of the note, those told."""
    rouge1: float | None
    """Against the reference; None where the case has none."""
    rougeL: float | None
    distinct2: float
    downlink_bytes: int = 0
    guessed_logp: float | None = None
    """What the device itself, which steers, takes `upload_logp` to be (`informed_guess`)."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to write."""

    rule: Method
    case: Case


def generate(rule: Method, case: Case, pair: Pair, tokens: int, codec_name: str) -> Answer:
    """The greedy answer of `rule` to `case`, at most `tokens` long, and its measures."""
    [(_, answer)] = write([Job(rule, case)], pair, tokens, codec_name)
    return answer


def write(
    jobs: Iterable[Job], pair: Pair, tokens: int, codec_name: str, at_once: int = AT_ONCE
) -> Generator[tuple[Job, Answer], None, None]:
    """The greedy answers to `jobs`, each at most `tokens` long, as they are complete.

    `at_once` of them are under way together: their cloud sides are asked in one pass, and so is
    a small model that takes several answers (a bundle takes one, so then there is one at a time).
    `upload` sends the note as part of the query, which breaks privacy: an upper bound.
    """
    left = iter(jobs)
    under_way: list[_Writing] = []
    several = at_once if pair.several else 1
    try:
        while True:
            under_way.extend(
                _Writing(job, pair, tokens, codec_name)
                for job in itertools.islice(left, several - len(under_way))
            )
            if not under_way:
                return
            asked = [writing.advance() for writing in under_way]
            done = [one for one, work in zip(under_way, asked, strict=True) if work is None]
            under_way = [one for one, work in zip(under_way, asked, strict=True) if work]
            requests = [work for work in asked if work is not None]
            # Complete answers first: what they are given counts even if the next pass fails.
            for writing in done:
                yield writing.job, writing.measured()
            rows = pair.cloud.score(requests) if requests else []
            for writing, row in zip(under_way, rows, strict=True):
                writing.give(row)
    finally:
        for writing in under_way:
            writing.close()


def informed_guess(rule: Method, candidates: CandidateSet, scores: Scores, token: int) -> float:
    """log p(token) as the device guesses it of the informed cloud: under `light`, nats.

    `scores` are what `rule` asked for: the guess is made over the same tokens.
    """
    tiny = 1e-6
    guess = replace(rule, gain=gain(1), late_gain=None, temper=1.0, rule="linear", clip=None)
    mix = tiny if rule.full_head else 0.0
    steered = policy(replace(guess, copy=min(rule.copy, tiny), mix=mix), candidates, scores)
    at = int(np.searchsorted(steered.ids, token))
    known = at < len(steered.ids) and steered.ids[at] == token
    return float(steered.policy[at]) if known else float(steered.policy.min())


class _Guessing(SteeredDevice):
    """Adds up what it guesses of its own answer."""

    guessed = 0.0

    def choose(
        self,
        position: int,
        candidates: CandidateSet,
        scores: Scores | None,
        token: int | None = None,
    ) -> Decision:
        decision = super().choose(position, candidates, scores, token)
        if scores is not None:
            self.guessed += informed_guess(self.method, candidates, scores, decision.token)
        return decision


class _Writing:
    """One answer under way."""

    def __init__(self, job: Job, pair: Pair, tokens: int, codec_name: str) -> None:
        self.job, self._pair = job, pair
        self._ends = set(pair.cloud.end_ids)
        self._own: list[ModelBranches] = []
        self._device: _Guessing | None = None
        self._row: Logprobs | None = None
        self._base_logp = 0.0
        rule, case = job.rule, job.case
        self._informed = rule.base == "informed-cloud"
        device: Device = CloudOnlyDevice(GREEDY, self._ends, rule)
        if rule.steers:
            # Another tokenizer's last tokens may be read anew.
            branches, self._own = pair.rows(case, 2 if pair.align == "none" else 8)
            device = pair.device(case, rule, branches)
            if isinstance(device, SteeredDevice):
                prompts = device.prompts
                device = self._device = _Guessing(branches, prompts, rule, GREEDY, self._ends)
        if rule.asks_cloud:
            query = case.aware if self._informed else case.query
            schedule = lockstep(device, Request(query, "", codec(codec_name), tokens))
        else:
            schedule = alone(device, pair.branches.vocabulary_size, tokens)
        self._exchange = Exchange(schedule, session(pair.cloud), method=rule.name)

    @property
    def _ids(self) -> list[int]:
        return [record.token for record in self._exchange.transcript.records]

    def advance(self) -> ScoreRequest | None:
        """What the cloud is asked next; None: the answer is complete."""
        before = len(self._ids)
        work = self._exchange.advance()
        if self._row is not None and len(ids := self._ids) > before:
            self._base_logp += float(self._row[ids[before]])
        if work is None:
            self.close()
            return None
        assert isinstance(work.work, ScoreRequest)
        return work.work

    def give(self, rows: Logprobs) -> None:
        """What the cloud predicts."""
        self._row = rows[-1]
        self._exchange.give(rows)

    def close(self) -> None:
        """Free what the answer holds."""
        self._exchange.close()
        while self._own:
            self._own.pop().close()

    def measured(self) -> Answer:
        """The complete answer."""
        transcript, pair = self._exchange.transcript, self._pair
        ids = self._ids
        diverged = sum(bool(one.decision and one.decision.diverged) for one in transcript.records)
        text = pair.spoken.decode([token for token in ids if token not in self._ends])
        known = None if self._row is None else self._base_logp
        upload, cloud = (known, None) if self._informed else (None, known)
        measured = measure(self.job.case, pair, ids, text, diverged, upload, cloud)
        guessed = self._device.guessed if self._device is not None else None
        return replace(measured, downlink_bytes=transcript.downlink_bytes, guessed_logp=guessed)


def measure(
    case: Case,
    pair: Pair,
    ids: Sequence[int],
    text: str,
    diverged: int,
    upload: float | None = None,
    cloud: float | None = None,
) -> Answer:
    """What is measured of the answer `ids`, whoever made it.

    `upload`, `cloud`: its log-likelihood with and without the note, where it is known.
    """
    upload, cloud = (
        _logp(pair, message, ids) if known is None else known
        for message, known in ((case.aware, upload), (case.query, cloud))
    )
    facts = case.facts or facts_of(case.reference, case.context, case.query)
    note = facts_of(case.context, case.context, case.query)
    rouge1, rouge_l = rouge(text, case.reference) if case.reference else (None, None)
    return Answer(
        text,
        len(ids),
        upload,
        cloud,
        diverged,
        facts_told(text, facts),
        len(facts),
        facts_told(text, note),
        rouge1,
        rouge_l,
        distinct(text.lower().split(), 2),
    )


def _logp(pair: Pair, message: str, ids: Sequence[int]) -> float:
    rows = along(pair.cloud, message, ids)
    return float(sum(row[token] for row, token in zip(rows, ids, strict=True)))
