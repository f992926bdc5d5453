"""Codecs beside each other: what decodes to the same is the same, and losses are counted right."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.candidates import codec
from edge_runtime.errors import UsageError
from edge_runtime.rules import PRESETS
from scenarios.cells.codec_vectors import REST, Vectors
from scenarios.cells.codecs import DeltaPacked, Trained, frames, measure
from scenarios.methods import score
from scenarios.models.predictions import Predictions, gather
from scenarios.spec import scenario

SIZE, POSITIONS = 300, 40


def walk(seed: int, count: int, size: int = SIZE) -> Any:
    """Log-probabilities [count, size] that change a little from row to row, as answers' do."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 3, size)
    rows = []
    for _ in range(count):
        logits = 0.8 * logits + draw.normal(0, 1.5, size)
        rows.append(logits - np.logaddexp.reduce(logits))
    return np.array(rows, np.float32)


@given(st.integers(0, 10_000), st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_delta_coding_decodes_to_what_packing_does(seed: int, k: int) -> None:
    ends, plain = DeltaPacked(k), codec(f"packed:{k}")
    other = DeltaPacked(k)
    for row in walk(seed, 6):
        ids, logprobs = other.decode(ends.encode(row))
        wanted = plain.decode(plain.encode(row))
        assert ids.tolist() == wanted.ids.tolist()
        np.testing.assert_array_equal(logprobs, wanted.logprobs)


def test_zstd_gives_back_what_it_was_given() -> None:
    rows, plain = walk(1, 60), codec("topk:32")
    trained = Trained(plain, [plain.encode(row) for row in rows[:40]])
    for row in rows[40:]:
        payload = plain.encode(row)
        assert trained.decode(trained.encode(row), len(payload)) == payload


def test_too_short_an_answer_trains_no_dictionary() -> None:
    with pytest.raises(UsageError, match="too short"):
        frames("zstd:4", walk(2, 4))


def vectors() -> Vectors:
    tables = np.full((4, POSITIONS, SIZE + 1), REST, np.float32)
    tables[..., :SIZE] = [walk(seed, POSITIONS) for seed in range(4)]
    return Vectors.whole([int(row.argmax()) for row in tables[1]], tables)


def measured(name: str, kept: Vectors, method: str = "light") -> dict[str, Any]:
    plan = scenario(
        {
            "name": "t",
            "measure": "codec",
            "case": {"query": "q"},
            "answer": {"codec": name, "method": method},
        }
    )
    return measure(next(plan.cells()), kept)[0]


def test_whole_vectors_lose_nothing_and_fewer_candidates_lose_more() -> None:
    kept = vectors()
    rows = {name: measured(name, kept) for name in ("full", "full8", "topk:64", "topk:4")}
    assert rows["full"]["nll"] == pytest.approx(rows["full"]["full_nll"], rel=1e-3)
    assert rows["full"]["same"] == rows["full"]["sent"] == POSITIONS
    assert rows["full"]["payload_bytes"] == 2 * SIZE
    assert rows["topk:4"]["payload_bytes"] == 6 * 4 + 4
    assert rows["topk:4"]["same"] < rows["topk:64"]["same"] <= POSITIONS
    assert rows["topk:4"]["sent"] < rows["topk:64"]["sent"]


def test_codecs_with_a_memory_have_the_quality_of_those_without() -> None:
    kept = vectors()
    delta, packed = measured("delta:32", kept), measured("packed:32", kept)
    assert delta["nll"] == packed["nll"]
    assert delta["payload_bytes"] < packed["payload_bytes"]


def test_the_clock_is_not_in_the_row() -> None:
    kept = vectors()
    assert measured("topk:8", kept) == measured("topk:8", kept)
    assert all(math.isfinite(kept.nll(row)) for row in range(4))


def test_what_is_kept_on_disk_says_what_whole_vectors_say() -> None:
    whole = vectors()
    tables = np.stack([table[:, :-1] for table in whole.tables], axis=1)
    best = gather(list(tables), whole.places, keep=dict.fromkeys(range(4), 60))
    kept = Vectors.kept(best, SIZE)
    for name in ("topk:8", "packed:32", "nucleus:0.5"):
        one, two = measured(name, whole), measured(name, kept)
        assert two["payload_bytes"] == one["payload_bytes"]
        assert (two["same"], two["sent"]) == (one["same"], one["sent"])
        assert two["nll"] == pytest.approx(one["nll"], rel=1e-4)
    np.testing.assert_allclose(np.exp(kept.cloud.astype(np.float64)).sum(axis=1), 1, atol=1e-4)


NAMES = (3, 50, 51, 120, 299)


def predicted() -> Predictions:
    """Predictions along a reference that says names of the note now and then."""
    whole = vectors()
    tables = np.stack([table[:, :-1] for table in whole.tables], axis=1)
    tokens = [NAMES[at % len(NAMES)] if at % 4 == 0 else place
              for at, place in enumerate(whole.places)]  # fmt: skip
    kept = gather(list(tables), tokens, NAMES, keep=dict.fromkeys(range(4), 60))
    return dataclasses.replace(kept, names=NAMES)


@pytest.mark.parametrize("method", [name for name in PRESETS if name != "proxy"])
@pytest.mark.parametrize("wire", ["full", "topk:8", "packed:32"])
def test_a_codec_study_scores_every_method_as_an_evaluation_does(method: str, wire: str) -> None:
    found = predicted()
    row = measured(wire, Vectors.kept(found, SIZE), method)
    through, whole = (score(PRESETS[method], found, lossy) for lossy in (codec(wire), None))
    assert row["nll"] == pytest.approx(through.nll)
    assert row["full_nll"] == pytest.approx(whole.nll)
    assert (row["same"], row["sent"]) == (through.same, through.sent)


def test_whole_vectors_know_the_notes_names_too() -> None:
    whole = vectors()
    tables = np.stack(whole.tables, axis=1)
    told = Vectors.whole(list(whole.places), tables, NAMES)
    first, second = (measured("topk:8", one, "names") for one in (whole, told))
    assert first["nll"] != second["nll"]
    assert measured("topk:8", told)["nll"] == measured("topk:8", whole)["nll"]
