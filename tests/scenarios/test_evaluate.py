"""`evaluate` on tiny real models: predictions, the store, methods against whole-vector oracles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from cloud_sim.live.llm import TransformersModel
from cloud_sim.model import Logprobs, ScoreRequest
from edge_runtime.branches import open_branches
from edge_runtime.bundle import Bundle
from edge_runtime.candidates import codec
from edge_runtime.errors import UsageError
from edge_runtime.rules import PRESETS, method
from edge_runtime.steering import Method, log_softmax
from edge_runtime.text import Text
from scenarios.datasets import Case, read
from scenarios.evaluate import Evaluation, Plan, evaluate, predictions
from scenarios.fit import fit, halves
from scenarios.methods import parse_all, score, steered
from scenarios.metrics import kl
from scenarios.models.branches import ModelBranches
from scenarios.models.pair import Lengths, Pair, along, both_along
from scenarios.models.predictions import AGNOSTIC, AWARE, CLOUD, UPLOAD, Predictions, Store, gather
from tests.tiny import write_model

LENGTHS = Lengths(note_tokens=60, reference_tokens=12)


def notes(count: int) -> list[Case]:
    return [replace(c, query=c.query[:60], aware=f"{c.context}\n\n{c.query[:60]}")
            for c in read("notes", limit=count)]  # fmt: skip


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    folder = write_model(tmp_path_factory.mktemp("big") / "tiny-cloud", seed=11)
    return TransformersModel.open_source(str(folder))


@pytest.fixture(scope="module")
def pair(cloud: TransformersModel, tiny_bundle: Bundle) -> Pair:
    branches = open_branches(tiny_bundle, max_length=400)
    return Pair(cloud, branches, Text.open(tiny_bundle), {"device": "tiny", "cloud": "tiny"})


class Counted:
    """A cloud that says how often it was asked."""

    def __init__(self, model: TransformersModel) -> None:
        self._model, self.asked = model, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def score(self, requests: list[ScoreRequest]) -> list[Logprobs]:
        self.asked += 1
        return self._model.score(
            [msgspec.structs.replace(one, model=self._model) for one in requests]
        )


def test_several_small_models_cost_the_cloud_one_reading(cloud: TransformersModel) -> None:
    counted: Any = Counted(cloud)
    alone, informed = (along(counted, text, [5, 9, 7]) for text in ("Where?", "Note. Where?"))
    asked = counted.asked
    assert along(counted, "Where?", [5, 9, 7]) is alone
    assert along(counted, "Note. Where?", [5, 9, 7]) is informed
    assert counted.asked == asked
    along(counted, "Where?", [5, 9])
    assert counted.asked > asked
    # Another model's reading is not taken for this one's.
    again = along(cloud, "Note. Where?", [5, 9, 7])
    assert again is not informed
    np.testing.assert_array_equal(again, informed)


@pytest.fixture(scope="module")
def evaluation(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    plan = Plan(parse_all("cloud-only,light,costeer,blend,upload"), LENGTHS)
    return evaluate(notes(6), pair, plan, Store(tmp_path_factory.mktemp("store")))


def test_along_is_the_model_fed_one_token_at_a_time(cloud: TransformersModel) -> None:
    answer = [5, 9, 200, 7]
    whole = along(cloud, "Where to?", answer)
    for at in range(len(answer)):
        alone = along(cloud, "Where to?", answer[: at + 1])[-1]
        assert whole[at] == pytest.approx(alone, abs=1e-4)
    assert np.exp(whole).sum(axis=1) == pytest.approx(np.ones(4), abs=1e-4)
    assert not cloud.held


def test_both_rows_along_an_answer_are_those_of_single_steps(pair: Pair) -> None:
    prompts = pair.prompts(notes(1)[0])
    answer = [5, 9, 200, 7, 8]
    aware, agnostic = both_along(pair.branches, prompts, answer)
    pair.branches.prefill(prompts.aware, prompts.agnostic)
    for at, token in enumerate(answer):
        now = log_softmax(pair.branches.logits().astype(np.float64))
        assert aware[at] == pytest.approx(now[0], abs=2e-3)
        assert agnostic[at] == pytest.approx(now[1], abs=2e-3)
        pair.branches.extend([token])


def test_a_float_model_serves_as_branches(cloud: TransformersModel, pair: Pair) -> None:
    branches = ModelBranches(cloud)
    prompts = pair.prompts(notes(1)[0])
    aware, agnostic = both_along(branches, prompts, [5, 9, 200])
    assert branches.length == 2
    branches.rollback(0)
    message = notes(1)[0].query
    assert agnostic == pytest.approx(along(cloud, message, [5, 9, 200]), abs=1e-4)
    branches.extend([5])
    assert branches.logits(np.array([3, 4]))[0] == pytest.approx(aware[1, [3, 4]], abs=1e-3)


def whole_tables(rng: np.random.Generator, n: int, size: int) -> list[np.ndarray]:
    return [log_softmax(rng.normal(0, 4, (n, size))) for _ in range(4)]


def test_gathered_predictions_keep_what_a_rule_needs() -> None:
    rng = np.random.default_rng(0)
    tables, tokens = whole_tables(rng, 7, 5000), rng.integers(0, 5000, 7).tolist()
    kept = gather(tables, tokens, note=[17, 4999])
    assert len(kept) == 7
    assert kept.nll(CLOUD) == pytest.approx(-sum(tables[CLOUD][range(7), tokens]), rel=1e-5)
    for at in range(7):
        ids, table = kept.position(at)
        assert ids[-1] == -1
        assert {17, 4999, tokens[at]} <= set(ids.tolist())
        assert np.exp(table.astype(float)).sum(axis=1) == pytest.approx(np.ones(4), abs=1e-5)
        best = np.argsort(tables[CLOUD][at])[-1024:]
        assert np.isin(best, ids).all()


@pytest.mark.parametrize("name", ["light", "costeer", "blend", "cloud-only", "upload"])
def test_a_method_on_kept_predictions_is_the_method_on_whole_vectors(name: str) -> None:
    rng = np.random.default_rng(1)
    n, size = 6, 4000
    tables, tokens = whole_tables(rng, n, size), rng.integers(0, size, n).tolist()
    rule = PRESETS[name]
    found = score(rule, gather(tables, tokens))
    delta = tables[AWARE] - tables[AGNOSTIC]
    bent = np.maximum(delta, 0) if rule.rule == "positive" else delta
    base = tables[UPLOAD] if name == "upload" else tables[CLOUD]
    policy = log_softmax(base + rule.gain * bent)
    if rule.mix:
        policy = np.log((1 - rule.mix) * np.exp(policy) + rule.mix * np.exp(tables[AWARE]))
    exact = -policy[range(n), tokens].sum()
    assert found.nll == pytest.approx(exact, rel=0.01)
    assert found.diverged == (policy.argmax(1) != tables[CLOUD].argmax(1)).sum()
    assert found.top1_upload == (policy.argmax(1) == tables[UPLOAD].argmax(1)).sum()
    assert found.tokens == n


@pytest.mark.parametrize("name", ["light", "tempered", "blend", "upload", "device-only"])
@pytest.mark.parametrize("wire", ["full", "full8", "topk:8", "packed:300", "nucleus:0.9"])
def test_a_codec_leaves_a_distribution_and_more_bytes_lose_less(name: str, wire: str) -> None:
    rng = np.random.default_rng(5)
    kept = gather(whole_tables(rng, 3, 2500), [5, 6, 7])
    for at in range(3):
        table = kept.position(at)[1]
        seen = steered(PRESETS[name], table, at, codec(wire))
        assert np.exp(seen.astype(float)).sum() == pytest.approx(1.0, abs=1e-6)
        whole = steered(PRESETS[name], table, at)
        few = steered(PRESETS[name], table, at, codec("topk:2"))
        if name == "light":
            assert kl(whole, seen) < kl(whole, few)
        if wire.startswith("full"):
            assert kl(whole, seen) < 1e-3


def test_the_ends_of_the_gap_are_0_and_1(evaluation: Evaluation) -> None:
    assert evaluation.row("cloud-only")["gap_captured"]["value"] == pytest.approx(0.0, abs=1e-3)
    upload = evaluation.row("upload")
    assert upload["gap_captured"]["value"] == pytest.approx(1.0, abs=1e-3)
    assert upload["kl_upload"] == pytest.approx(0.0, abs=1e-5)
    assert upload["top1_upload"] == 1.0
    for name in ("light", "costeer", "blend"):
        row = evaluation.row(name)
        assert row["cases"] == 6
        assert row["tokens"] == sum(len(kept) for kept in evaluation.kept)
        assert row["gap_captured"]["low"] <= row["gap_captured"]["value"]
        assert row["intervals"]["nll"][0] <= row["nll"] <= row["intervals"]["nll"][1]


def test_a_second_run_asks_no_model(pair: Pair, tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = Plan(parse_all("light"), LENGTHS, generate=4)
    first = evaluate(notes(2), pair, plan, store)
    deaf = replace(pair, cloud=silenced(pair.cloud), branches=silenced(pair.branches))
    again = evaluate(notes(2), deaf, replace(plan, methods=parse_all("light,costeer@0.9"),
                                             generate=0), store)  # fmt: skip
    assert again.row("light")["nll"] == first.row("light")["nll"]
    assert "costeer@0.9" in again.results
    assert evaluate(notes(2), deaf, plan, store).row("light") == first.row("light")


class _Deaf:
    """A model that may be looked at but not asked."""

    def __init__(self, real: object) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        assert name not in ("score", "open", "prefill", "extend"), "a model was asked"
        return getattr(self._real, name)


def silenced(model: object) -> Any:
    return _Deaf(model)


def test_a_torn_file_in_the_store_is_made_again(pair: Pair, tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = predictions(notes(1)[0], pair, LENGTHS, store)
    [file] = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:1000])
    again = predictions(notes(1)[0], pair, LENGTHS, store)
    assert again.logprobs == pytest.approx(one.logprobs, abs=1e-5)
    assert isinstance(Store(tmp_path).predictions(file.stem), Predictions)


def test_answers_are_likelier_under_the_policy_that_wrote_them(pair: Pair, tmp_path: Path) -> None:
    plan = Plan(parse_all("cloud-only,upload,costeer"), LENGTHS, generate=10)
    result = evaluate(notes(3), pair, plan, Store(tmp_path))
    cloud, upload, costeer = (result.row(n) for n in ("cloud-only", "upload", "costeer"))
    assert cloud["cloud_logp"]["value"] > costeer["cloud_logp"]["value"]
    assert upload["evidence"]["value"] > cloud["evidence"]["value"]
    for row in (cloud, upload, costeer):
        assert {"low", "high", "value"} == set(row["facts"]) == set(row["rouge1"])
        assert 0 <= row["facts"]["value"] <= 1
        assert row["length"]["value"] <= 10


def test_a_long_note_is_cut_in_the_message_too(pair: Pair) -> None:
    case = notes(1)[0]
    cut = pair.cut(case, Lengths(note_tokens=9))
    assert len(pair.text.encode(cut.context)) <= 10
    assert cut.aware == f"{cut.context}\n\n{cut.query}"
    assert pair.cut(case, Lengths(note_tokens=10_000)) == case


def test_sets_without_references_need_generate(pair: Pair, tmp_path: Path) -> None:
    case = replace(notes(1)[0], reference="")
    with pytest.raises(UsageError, match="--generate"):
        evaluate([case], pair, Plan(parse_all("light"), LENGTHS), Store(tmp_path))


def test_two_vocabularies_are_refused(cloud: TransformersModel, pair: Pair) -> None:
    stranger = silenced(cloud)
    stranger.vocabulary = "f" * 64
    with pytest.raises(UsageError, match="different vocabularies"):
        replace(pair, cloud=stranger)


def test_methods_are_named_with_or_without_a_gain() -> None:
    assert method("light") == PRESETS["light"]
    assert method("costeer@1.2").gain == 1.2
    assert [m.name for m in parse_all("light, costeer,light")] == ["light", "costeer"]
    for wrong in ("lihgt", "light@x", "upload@2", ","):
        with pytest.raises(UsageError):
            parse_all(wrong)


def test_fit_finds_the_gain_that_made_the_data() -> None:
    """References drawn from softmax(L + 0.6 D): the fitted gain is the grid's 0.6."""
    rng = np.random.default_rng(4)
    kept = []
    for _ in range(8):
        tables = whole_tables(rng, 40, 60)
        tables[AGNOSTIC] = log_softmax(tables[AWARE] + rng.normal(0, 2.0, (40, 60)))
        made = log_softmax(tables[CLOUD] + 0.6 * (tables[AWARE] - tables[AGNOSTIC]))
        tables[UPLOAD] = made
        tokens = [int(rng.choice(60, p=np.exp(row) / np.exp(row).sum())) for row in made]
        kept.append(gather(tables, tokens))
    found = fit(kept, Method("start", 0.2))
    assert found.method.gain == 0.6
    assert found.method.mix == 0.0
    assert found.expected.value == pytest.approx(1.0, abs=0.05)
    assert found.expected.low <= found.expected.value <= found.expected.high


def test_halves_are_disjoint_and_whole() -> None:
    one, two = halves(41)
    assert sorted(one + two) == list(range(41))
    assert abs(len(one) - len(two)) <= 1
    assert halves(41) == (one, two)
    assert halves(41, seed=1) != (one, two)


def test_the_command_ends_with_one_json_object(
    tiny_bundle: Bundle, cloud: TransformersModel, tmp_path: Path
) -> None:
    import costeer

    folder = write_model(tmp_path / "tiny-cloud", seed=11)
    result = CliRunner().invoke(
        costeer.app("evaluate"),
        ["evaluate", "notes", "--device", str(tiny_bundle.path), "--cloud-model", str(folder),
         "--cloud-dtype", "float32", "--methods", "light,costeer,blend", "--limit", "4",
         "--reference-tokens", "8", "--note-tokens", "40", "--generate", "4", "--fit",
         "--cache", str(tmp_path / "cache"), "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout.strip().splitlines()[-1])
    assert set(rows) == {"light", "costeer", "blend", "fitted"}
    for name in ("light", "costeer", "blend"):
        row = rows[name]
        assert {"nll", "kl_upload", "top1_upload", "cases", "tokens"} <= set(row)
        for figure in ("gap_captured", "upload_logp", "cloud_logp", "facts", "rouge1", "rougeL"):
            assert {"low", "high"} <= set(row[figure])
    assert {"low", "high"} <= set(rows["fitted"]["gap_expected"])
    assert rows["fitted"]["gap_captured"] == rows["fitted"]["gap_expected"]
    assert (rows["light"]["cases"], rows["fitted"]["cases"]) == (4, 2), "only those it never saw"
    assert rows["light"]["level"] == 0.9


def test_what_no_case_can_have_is_null_and_the_line_is_json(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    import costeer

    folder = write_model(tmp_path / "tiny-cloud", seed=11)
    own = tmp_path / "own.jsonl"
    row = {"id": "1", "kind": "preference", "note": "be brief", "query": "why is the sky blue?"}
    own.write_text(json.dumps(row) + "\n")
    result = CliRunner().invoke(
        costeer.app("evaluate"),
        ["evaluate", str(own), "--device", str(tiny_bundle.path), "--cloud-model", str(folder),
         "--cloud-dtype", "float32", "--methods", "light", "--generate", "3",
         "--cache", str(tmp_path / "cache"), "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output

    def refused(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    row = json.loads(result.stdout.strip().splitlines()[-1], parse_constant=refused)["light"]
    for nothing in ("facts", "rouge1", "rougeL"):
        assert row[nothing] == {"value": None, "low": None, "high": None}
    assert row["upload_logp"]["value"] < 0
