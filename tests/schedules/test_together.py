"""Many answers at once are the answers one by one: same tokens, same figures, prompts read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloud_sim.live.llm import TransformersModel
from cloud_sim.model import Logprobs, ScoreRequest
from cloud_sim.remembered import RememberedPrompts
from cloud_sim.session import session
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.device import CloudOnlyDevice, SteeredDevice
from edge_runtime.errors import UsageError
from edge_runtime.rules import PRESETS
from edge_runtime.sampling import GREEDY
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.steering import Method
from edge_runtime.text import Text
from scenarios.datasets import Case, read
from scenarios.evaluate import Plan, chosen, evaluate
from scenarios.methods import parse_all
from scenarios.models.branches import ModelBranches
from scenarios.models.pair import Lengths, Pair, along
from scenarios.models.predictions import Store
from scenarios.models.written import Job, write
from tests.tiny import write_model

RULES = [PRESETS[name] for name in ("cloud-only", "upload", "light", "costeer", "blend")]
TOKENS = 12


class Counting(TransformersModel):
    """Counts the passes it was asked for and how often each prompt was read."""

    passes = 0
    prompts: Counter[tuple[int, ...]]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Logprobs]:
        self.passes += 1
        self.prompts.update(one.tokens for one in requests if one.keep == 0)
        return super().score(requests)


def open_tiny(folder: Path, seed: int) -> Counting:
    model = Counting.open_source(str(write_model(folder, seed=seed)), dtype="float64")
    assert isinstance(model, Counting)
    model.prompts = Counter()
    return model


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Counting:
    return open_tiny(tmp_path_factory.mktemp("cloud") / "tiny", 11)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Counting:
    return open_tiny(tmp_path_factory.mktemp("small") / "tiny", 7)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    short = [
        replace(c, query=c.query[:50], context=c.context[:120]) for c in read("notes", limit=4)
    ]
    return [replace(c, aware=f"{c.context}\n\n{c.query}") for c in short]


def pair_of(cloud: TransformersModel, small: TransformersModel) -> Pair:
    branches = ModelBranches(RememberedPrompts(small))
    return Pair(RememberedPrompts(cloud), branches, _text(small), {"device": "s", "cloud": "c"})


def _text(model: TransformersModel) -> Text:
    return model._loaded.text


def one_by_one(rule: Method, case: Case, cloud: Counting, small: Counting) -> list[int]:
    """The oracle: lockstep by itself on models that remember nothing."""
    device: SteeredDevice | CloudOnlyDevice = CloudOnlyDevice(GREEDY, cloud.end_ids, rule)
    pair = Pair(cloud, ModelBranches(small), _text(small))
    if rule.steers:
        device = SteeredDevice(pair.branches, pair.prompts(case), rule, GREEDY, cloud.end_ids)
    query = case.aware if rule.base == "informed-cloud" else case.query
    request = Request(query, "", codec("full"), TOKENS)
    transcript = run_direct(lockstep(device, request), session(cloud))
    return [record.token for record in transcript.records]


def test_answers_written_together_are_those_written_alone(
    cloud: Counting, small: Counting, cases: list[Case]
) -> None:
    pair = pair_of(cloud, small)
    jobs = [Job(rule, case) for case in cases for rule in RULES]
    cloud.passes, cloud.prompts = 0, Counter()
    made = {id(job): answer for job, answer in write(jobs, pair, TOKENS, "full", at_once=7)}
    together, read_twice = cloud.passes, [p for p, n in cloud.prompts.items() if n > 1]
    assert set(made) == {id(job) for job in jobs}
    assert not read_twice
    cloud.passes = 0
    for job in jobs:
        ids = one_by_one(job.rule, job.case, cloud, small)
        answer = made[id(job)]
        shown = [token for token in ids if token not in cloud.end_ids]
        assert answer.text == pair.text.decode(shown)
        assert answer.tokens == len(ids)
        for message, logp in (
            (job.case.aware, answer.upload_logp),
            (job.case.query, answer.cloud_logp),
        ):
            rows = along(cloud, message, ids)
            assert logp == pytest.approx(sum(rows[range(len(ids)), ids]), abs=1e-6)
    assert together < cloud.passes / 3


def test_nothing_is_held_once_answers_are_complete_or_given_up(
    cases: list[Case], tmp_path: Path
) -> None:
    cloud, small = open_tiny(tmp_path / "cloud", 11), open_tiny(tmp_path / "small", 7)
    pair = pair_of(cloud, small)
    jobs = [Job(PRESETS["light"], case) for case in cases]
    assert len(list(write(jobs, pair, 3, "full"))) == len(jobs)
    begun = write(jobs, pair, 9, "full", at_once=2)
    next(begun)
    begun.close()
    assert isinstance(pair.branches, ModelBranches)
    for model in (pair.cloud, pair.branches.model):
        assert isinstance(model, RememberedPrompts)
        model.forget()
    assert not cloud.held
    assert not small.held


def test_a_remembered_prompt_is_forgotten_when_others_were_used_since(tmp_path: Path) -> None:
    small = open_tiny(tmp_path / "small", 7)
    model = RememberedPrompts(small, size=2)
    small.prompts = Counter()
    for prompt in ((5, 6, 7), (8, 9), (5, 6, 7), (10, 11), (8, 9), (10, 11)):
        sequence = model.open()
        [row] = model.score([ScoreRequest(model, sequence, 0, prompt)])
        [more] = model.score([ScoreRequest(model, sequence, len(prompt), (12, 13), every=True)])
        plain = small.open()
        [whole] = small.score([ScoreRequest(small, plain, 0, (*prompt, 12, 13), every=True)])
        assert np.concatenate([row, more]) == pytest.approx(whole[-3:], abs=1e-9)
        small.close(plain)
        model.close(sequence)
    read = {p: n for p, n in small.prompts.items() if len(p) <= 3}
    assert read == {(5, 6, 7): 1, (8, 9): 2, (10, 11): 1}
    model.forget()
    assert not small.held


def test_a_stopped_evaluation_writes_only_what_is_missing(
    cloud: Counting, small: Counting, cases: list[Case], tmp_path: Path
) -> None:
    plan = Plan(parse_all("light,upload"), Lengths(60, 8), generate=5)
    first = evaluate(cases[:2], pair_of(cloud, small), plan, Store(tmp_path))
    small.passes = 0
    small.prompts = Counter()
    again = evaluate(cases, pair_of(cloud, small), plan, Store(tmp_path))
    assert again.results["light"].answers[:2] == first.results["light"].answers
    assert len(small.prompts) == 2 * 2  # the two rows of the two new cases
    before = small.passes
    evaluate(cases, pair_of(cloud, small), plan, Store(tmp_path))
    assert small.passes == before


def test_a_tempered_rule_shares_the_greedy_answer_of_its_gain(
    cloud: Counting, small: Counting, cases: list[Case], tmp_path: Path
) -> None:
    plan = Plan(parse_all("costeer@1,tempered"), Lengths(60, 8), generate=5)
    result = evaluate(cases[:2], pair_of(cloud, small), plan, Store(tmp_path))
    assert result.results["tempered"].answers == result.results["costeer@1"].answers
    [alone] = [a for _, a in write([Job(PRESETS["tempered"], result.cases[0])],
                                   pair_of(cloud, small), 5, "full")]  # fmt: skip
    assert alone.text == result.results["costeer@1"].answers[0].text


def test_the_device_chooses_among_its_answers_by_what_it_knows(
    cloud: Counting, small: Counting, cases: list[Case], tmp_path: Path
) -> None:
    plan = Plan(parse_all("light,costeer,names,upload"), Lengths(60, 8), generate=6)
    result = evaluate(cases, pair_of(cloud, small), plan, Store(tmp_path))
    steered = [result.results[name].answers for name in ("light", "costeer", "names")]
    best = chosen(result, 0.0).answers
    for of_case, one in zip(zip(*steered, strict=True), best, strict=True):
        assert one in of_case
        guesses = [(a.guessed_logp or 0.0) / a.tokens for a in of_case]
        assert (one.guessed_logp or 0.0) / one.tokens == max(guesses)
    talkative = chosen(result, 100.0).answers
    assert sum(a.note_facts for a in talkative) >= sum(a.note_facts for a in best)
    result.results = {"light": result.results["light"]}
    with pytest.raises(UsageError, match="nothing to choose"):
        chosen(result, 0.0)
