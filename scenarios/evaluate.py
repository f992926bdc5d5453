"""Quality without a network: methods on cases, from predictions that are computed once.

Teacher-forced figures need two passes of each model a case, kept in a `Store`; a further method
costs none. Generated figures need an answer per method and case, kept likewise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_runtime.candidates import codec
from edge_runtime.errors import UsageError
from edge_runtime.rules import PRESETS
from edge_runtime.steering import Method
from scenarios.answers_row import answers_row
from scenarios.datasets import Case
from scenarios.methods import Score, score
from scenarios.metrics import LEVEL, Estimate, gap_captured, ratio
from scenarios.models.aligned import by_bytes, mapped
from scenarios.models.pair import Lengths, Pair, along, both_along
from scenarios.models.predictions import CLOUD, UPLOAD, Predictions, Store, gather
from scenarios.models.written import Answer, Job, write

RULES = 1
"""Part of every answer's key: raised when a rule of the same numbers writes other answers."""
BLOCK = 50
"""Cases whose prompts stay in memory while all rules answer them."""
Progress = Callable[[str, int, int], None]
"""What is being done, how many are done, of how many."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure and how."""

    methods: Sequence[Method]
    lengths: Lengths = field(default_factory=Lengths)
    generate: int = 0
    """Longest generated answer, in tokens; 0: none."""
    codec: str = "full"
    """What crosses the wire; `full` (fp16) loses nothing worth counting in references."""
    level: float = LEVEL


@dataclass(slots=True)
class Result:
    """One method on all cases."""

    method: Method
    scores: list[Score] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


@dataclass(slots=True)
class Evaluation:
    """All methods on the same cases, with the two ends of the gap."""

    cases: list[Case]
    kept: list[Predictions]
    results: dict[str, Result]
    level: float
    codec: str = "full"

    def gap(self, scores: Sequence[Score]) -> Estimate:
        """Share of the gap captured (docs/metrics.md)."""
        cloud = [one.nll(CLOUD) for one in self.kept]
        upload = [one.nll(UPLOAD) for one in self.kept]
        return gap_captured([s.nll for s in scores], cloud, upload, level=self.level)

    def _codec(self, scores: Sequence[Score], tokens: Sequence[float]) -> dict[str, Any]:
        """What the codec costs: points of the gap, and best tokens that are others."""
        gap = [one.nll(CLOUD) - one.nll(UPLOAD) for one in self.kept]
        parts = {
            "gap_lost": ([s.lost for s in scores], gap),
            "gap_lost_sent": ([s.lost_sent for s in scores], gap),
            "sent": ([s.sent for s in scores], tokens),
            "same_token": ([s.same for s in scores], tokens),
        }
        return {
            key: ratio(above, below, level=self.level).dict()
            for key, (above, below) in parts.items()
        }

    def row(self, name: str) -> dict[str, Any]:
        """The figures of method `name`, as `costeer evaluate --json` prints them."""
        result = self.results[name]
        row: dict[str, Any] = {"gain": result.method.gain, "level": self.level}
        intervals: dict[str, list[float]] = {}

        def put(key: str, estimate: Estimate) -> None:
            row[key] = estimate.value
            intervals[key] = [estimate.low, estimate.high]

        if result.scores:
            tokens = [float(s.tokens) for s in result.scores]
            put("nll", ratio([s.nll for s in result.scores], tokens, level=self.level))
            row["gap_captured"] = self.gap(result.scores).dict()
            put("kl_upload", ratio([s.kl_upload for s in result.scores], tokens, level=self.level))
            put(
                "top1_upload",
                ratio([s.top1_upload for s in result.scores], tokens, level=self.level),
            )
            put("diverged", ratio([s.diverged for s in result.scores], tokens, level=self.level))
            row |= {"cases": len(result.scores), "tokens": int(sum(tokens))}
            if self.codec != "full":
                row |= self._codec(result.scores, tokens)
        if result.answers:
            row |= answers_row(result.answers, self.level)
        row["intervals"] = intervals
        return row


def chosen(result: Evaluation, names_worth: float) -> Result:
    """Of each case's steered answers, the one that the device would choose: a search over a few
    continuations, with nothing but what the device knows.

    Its measure is what it guesses of `upload_logp` per token, and `names_worth` nats for each name
    of the note that is told. Raises `UsageError` with fewer than two answers of a steering rule.
    """
    steered = [
        one.answers
        for one in result.results.values()
        if one.answers and all(a.guessed_logp is not None for a in one.answers)
    ]
    if len(steered) < 2:
        raise UsageError(
            "--choose",
            "there is nothing to choose from",
            todo="Name two methods that steer, and --generate N",
        )

    def worth(answer: Answer) -> float:
        return (answer.guessed_logp or 0.0) / answer.tokens + names_worth * answer.note_facts

    best = [max(of_case, key=worth) for of_case in zip(*steered, strict=True)]
    return Result(Method("chosen"), answers=best)


def evaluate(
    cases: Sequence[Case],
    pair: Pair,
    plan: Plan,
    store: Store,
    progress: Progress = lambda what, done, of: None,
) -> Evaluation:
    """Every method of `plan` on every case that has what it needs.

    Cases without a reference have no teacher-forced figures; without any, only `generate` is
    left. Raises `UsageError` when that leaves nothing to measure.
    """
    for rule in plan.methods:
        pair.takes(rule)
    cut = [pair.cut(case, plan.lengths) for case in cases]
    told = [case for case in cut if case.reference]
    if not told and not plan.generate:
        raise UsageError(
            "evaluate", "this data set has no reference answers", todo="Ask for answers: --generate"
        )
    kept = []
    for number, case in enumerate(told):
        progress("reading references", number, len(told))
        kept.append(predictions(case, pair, plan.lengths, store))
    wire = codec(plan.codec) if plan.codec != "full" else None
    results = {rule.name: Result(rule) for rule in plan.methods}
    for rule in plan.methods:
        results[rule.name].scores = [score(rule, one, wire) for one in kept]
    if plan.generate:
        found = answers(plan.methods, cut, pair, plan, store, progress)
        for rule in plan.methods:
            results[rule.name].answers = [found[_answer_key(rule, c, pair, plan)] for c in cut]
    return Evaluation(told, kept, results, plan.level, plan.codec)


def predictions(case: Case, pair: Pair, lengths: Lengths, store: Store) -> Predictions:
    """What both models say along the reference of `case`, from the store if it is there."""
    key = store.key(
        what="predictions",
        query=case.query,
        context=case.context,
        aware=case.aware,
        apart=_apart(case, pair),
        reference=case.reference,
        reference_tokens=lengths.reference_tokens,
        **pair.identity,
    )
    kept = store.predictions(key)
    if kept is None:
        tokens = pair.reference(case, lengths)
        kept = _predict(case, pair, tokens)
        store.keep_predictions(key, kept)
    names = () if pair.align == "byte" else pair.names(case)
    return dataclasses.replace(kept, names=names)


def _predict(case: Case, pair: Pair, tokens: Sequence[int]) -> Predictions:
    cloud = along(pair.cloud, case.query, tokens)
    upload = along(pair.cloud, case.aware, tokens)
    branches, to_close = pair.rows(case)
    try:
        if pair.align == "byte":
            return by_bytes(
                pair.translated(case, PRESETS["light"], branches), tokens, cloud, upload
            )
        if pair.align == "map":
            device = pair.translated(case, PRESETS["light"], branches)
            own = mapped(device, tokens, cloud.shape[1])
        else:
            own = both_along(branches, pair.prompts(case), tokens)
    finally:
        for one in to_close:
            one.close()
    size = min(cloud.shape[1], own[0].shape[1])
    note = pair.spoken.encode(case.context)
    tables = [np.asarray(table[:, :size]) for table in (cloud, upload, *own)]
    return gather(tables, tokens, note)


def answers(
    rules: Sequence[Method],
    cases: Sequence[Case],
    pair: Pair,
    plan: Plan,
    store: Store,
    progress: Progress,
) -> dict[str, Answer]:
    """The greedy answer of each rule to each case, by its key in the store; what is missing there
    is written."""
    found: dict[str, Answer] = {}
    missing: dict[str, Job] = {}
    # Rule by rule, so that the first rules are complete first, over as many cases as prompts are
    # remembered for.
    for first in range(0, len(cases), BLOCK):
        for rule in rules:
            for case in cases[first : first + BLOCK]:
                key = _answer_key(rule, case, pair, plan)
                record = store.record(key)
                if record is None:
                    missing.setdefault(key, Job(rule, case))
                else:
                    found[key] = Answer(**record)
    keys = {id(job): key for key, job in missing.items()}
    total = len(found) + len(missing)
    progress("writing answers", len(found), total)
    for job, made in write(list(missing.values()), pair, plan.generate, plan.codec):
        found[keys[id(job)]] = made
        store.keep_record(keys[id(job)], made.record())
        progress("writing answers", len(found), total)
    return found


def _apart(case: Case, pair: Pair) -> tuple[str, ...]:
    """The notes that have a delta each: how one text is cut into them matters then."""
    return case.notes if pair.notes == "apart" else ()


def _answer_key(rule: Method, case: Case, pair: Pair, plan: Plan) -> str:
    if not (rule.mix or rule.copy):
        rule = dataclasses.replace(rule, temper=1.0)  # the best token stays the best
    numbers = {k: v for k, v in dataclasses.asdict(rule).items() if k != "name"}
    return Store.key(
        what="answer",
        rules=RULES,
        query=case.query,
        context=case.context,
        aware=case.aware,
        apart=_apart(case, pair),
        reference=case.reference,
        facts=case.facts,
        tokens=plan.generate,
        codec=plan.codec,
        rule=numbers,
        **pair.identity,
    )
