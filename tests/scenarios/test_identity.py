"""What results are kept under: other content or other code is another key, another place is not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_runtime.candidates import CandidateSet
from edge_runtime.names import names_of
from edge_runtime.steering import Method, log_softmax, policy
from scenarios.cells.measures import Measures
from scenarios.evaluate import RULES
from scenarios.identity import code, content_of
from scenarios.models import written
from scenarios.models.pair import open_pair
from scenarios.spec import Cell, scenario
from scenarios.sweep import key_of
from tests.tiny import write_model


def cell(**more: Any) -> Cell:
    return next(scenario({"name": "t", "case": {"query": "q"}, **more}).cells())


@pytest.mark.parametrize(
    ("table", "axis", "name"),
    [
        ("cloud", "model", "{}/big.gguf"),
        ("cloud", "model", "{}"),
        ("device", "bundle", "float:{}/big.gguf"),
        ("device", "bundle", "float:{}"),
        ("device", "bundle", "{}"),
    ],
)
def test_a_cells_key_follows_the_weights_and_not_only_their_name(
    tmp_path: Path, table: str, axis: str, name: str
) -> None:
    weights = tmp_path / "big.gguf"
    weights.write_bytes(b"one")
    asked = cell(**{table: {axis: name.format(tmp_path)}})
    first = key_of(asked)
    assert key_of(asked) == first
    weights.write_bytes(b"two")
    assert key_of(asked) != first
    weights.write_bytes(b"one")
    assert key_of(asked) == first


def test_content_is_the_same_wherever_it_is(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights.bin").write_bytes(b"same")
    assert content_of(str(tmp_path / "a")) == content_of(str(tmp_path / "b"))
    wanted = f"sha256:{hashlib.sha256(b'same').hexdigest()}"
    assert content_of(str(tmp_path / "a" / "weights.bin")) == wanted
    assert content_of(f"float:{tmp_path / 'a' / 'weights.bin'}") == f"float:{wanted}"
    assert content_of("someone/a-model") == "someone/a-model"


def test_a_large_file_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    path.write_bytes(b"\0" * (1 << 20))
    first = content_of(str(path))
    path.write_bytes(b"\1" * ((1 << 20) + 1))
    assert content_of(str(path)) != first


def test_what_other_code_made_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = key_of(cell())
    assert code() == code()
    monkeypatch.setattr("scenarios.sweep.code", lambda: "other code")
    assert key_of(cell()) != first


def test_predictions_of_another_model_under_the_same_name_are_other_predictions(
    tmp_path: Path,
) -> None:
    found = []
    for seed in (1, 2):
        folder = write_model(tmp_path / "model", seed=seed)
        found.append(open_pair(f"float:{folder}", str(folder), cloud_dtype="float32").identity)
    first, second = found
    assert first["cloud"] != second["cloud"]
    assert first["device"] != second["device"]


def test_what_an_answer_tells_is_counted_anew_for_other_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSTEER_CACHE_DIR", str(tmp_path / "cache"))
    made = written.Answer("x", 1, -1.0, -2.0, 0, 0, 0, 0, None, None, 1.0)
    monkeypatch.setattr(
        written, "measure", lambda case, *_: replace(made, of_facts=len(case.facts))
    )
    measures = Measures(tmp_path)
    monkeypatch.setattr(measures, "_pair", lambda cell: SimpleNamespace(identity={}))
    answer: Any = SimpleNamespace(transcript=SimpleNamespace(tokens=[1]), row={"text": "x"})
    asked = cell()
    for facts in ((), ("Ada",), ("Ada", "Graz")):
        one = replace(asked, case=replace(asked.case, facts=facts))
        assert measures._told(one, answer)["of_facts"] == len(facts)


FORMS = (
    Method("plain"),
    Method("linear", 0.5, temper=1.2),
    Method("clipped", 1.5, clip=0.8, late_gain=0.2, decay_tokens=4),
    Method("positive", 0.75, rule="positive", mix=0.15),
    Method("copy", 0.5, copy=1.0, temper=1.2),
    Method("own", 1.0, base="aware"),
)
NOTE = (
    "My name is Ada Lovelace, I am 36, from Graz. We met on 3/4 at O'Hara's. I paid 12.50, or 7%."
)
PINNED = {1: "8da2c2ef1662858e"}
"""What the forms of rules make of one prediction, by `scenarios.evaluate.RULES`."""


def test_rules_that_choose_otherwise_have_another_number() -> None:
    said: dict[str, Any] = {}
    for number, rule in enumerate(FORMS):
        for size in (8, 60):
            draw = np.random.default_rng(np.random.SeedSequence((number, size)))
            ids = np.sort(draw.permutation(60)[:size]).astype(np.int64)
            logits = draw.normal(0, 2, (3, 60))
            sent = CandidateSet(ids, log_softmax(logits[2])[ids], full=size == 60)
            placed = rule.about((3, 17, 40))
            own = logits[:2] if placed.full_head else logits[:2, placed.support(sent)]
            # What changes behind the third digit of a probability is rounding.
            said[f"{rule.name} {size}"] = np.round(
                np.exp(policy(placed, sent, own, 2).policy), 3
            ).tolist()
    said["names"] = names_of(NOTE, NOTE, "Is Graz nice?")
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    assert found == PINNED[RULES], "answers would be others: raise scenarios.evaluate.RULES"
