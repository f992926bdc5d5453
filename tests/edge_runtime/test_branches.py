"""Two rows in one cache: against each row alone, and against a plain float model."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.branches import TwoBranches, open_branches
from edge_runtime.bundle import Bundle
from edge_runtime.errors import CosteerError, UsageError
from edge_runtime.graphs.decoder import CHUNK
from edge_runtime.graphs.memory import MappedPages, mapped_tables

LENGTH = 400


def tokens(bundle: Bundle, count: int, seed: int = 0) -> list[int]:
    size = bundle.manifest.architecture.vocabulary_size
    return [int(t) for t in np.random.default_rng(seed).integers(0, size, count)]


def apart(bundle: Bundle) -> Bundle:
    """The same bundle, whose rows are run one after the other."""
    manifest = bundle.manifest.model_copy(update={"branches": "separate"})
    return dataclasses.replace(bundle, manifest=manifest)


@pytest.fixture(scope="module")
def together(tiny_bundle: Bundle) -> TwoBranches:
    return TwoBranches.open(tiny_bundle, max_length=LENGTH)


@pytest.fixture(scope="module")
def alone(tiny_bundle: Bundle) -> TwoBranches:
    return TwoBranches.open(apart(tiny_bundle), max_length=LENGTH)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 99))
def test_two_rows_in_one_call_equal_each_alone_to_the_bit(
    together: TwoBranches, alone: TwoBranches, aware: int, agnostic: int, seed: int
) -> None:
    prompts = tokens(together.bundle, aware, seed), tokens(together.bundle, agnostic, seed + 1)
    for branches in (together, alone):
        branches.prefill(*prompts)
    for token in tokens(together.bundle, 6, seed + 2):
        np.testing.assert_array_equal(together.logits(), alone.logits())
        together.extend([token])
        alone.extend([token])
    np.testing.assert_array_equal(together.logits(), alone.logits())


@pytest.mark.parametrize("lengths", [(CHUNK - 1, 3), (CHUNK, CHUNK), (CHUNK + 1, 1), (300, 129)])
def test_at_the_edges_of_a_chunk_too(
    together: TwoBranches, alone: TwoBranches, lengths: tuple[int, int]
) -> None:
    prompts = [tokens(together.bundle, n, n) for n in lengths]
    for branches in (together, alone):
        branches.prefill(*prompts)
        branches.extend([3])
    np.testing.assert_array_equal(together.logits(), alone.logits())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=8), st.integers(0, 99))
def test_rolling_back_equals_never_having_stepped(
    together: TwoBranches, alone: TwoBranches, depths: list[int], seed: int
) -> None:
    """A walk of steps and rollbacks ends where the straight way ends."""
    prompts = tokens(together.bundle, 40, seed), tokens(together.bundle, 9, seed + 1)
    together.prefill(*prompts)
    kept: list[int] = []
    for turn, depth in enumerate(depths):
        for token in tokens(together.bundle, depth, 100 * seed + turn):
            together.extend([token])
            kept.append(token)
        back = max(0, len(kept) - depth // 2)
        together.rollback(back)
        del kept[back:]
    alone.prefill(*prompts)
    for token in kept:
        alone.extend([token])
    assert together.length == alone.length == len(kept)
    np.testing.assert_array_equal(together.logits(), alone.logits())


def test_a_rolled_back_position_needs_no_pass_of_the_model(together: TwoBranches) -> None:
    together.prefill(tokens(together.bundle, 20), tokens(together.bundle, 5))
    seen = [together.logits()]
    for token in tokens(together.bundle, 5, 3):
        together.extend([token])
        seen.append(together.logits())
    for earlier in range(6):
        np.testing.assert_array_equal(together.logits(position=earlier), seen[earlier])
    for length in (3, 2, 0):
        together.rollback(length)
        np.testing.assert_array_equal(together.logits(), seen[length])


def test_the_candidate_head_equals_the_full_head_to_the_bit(together: TwoBranches) -> None:
    together.prefill(tokens(together.bundle, 20), tokens(together.bundle, 5))
    whole = together.logits()
    size = whole.shape[1]
    for count in (1, 2, 20, 64, size):
        ids = np.sort(np.random.default_rng(count).permutation(size)[:count])
        some = together.logits(ids)
        np.testing.assert_array_equal(some, whole[:, ids])
        np.testing.assert_array_equal(together.delta(ids), (whole[0] - whole[1])[ids])


def test_several_tokens_in_one_go_are_as_good_as_one_by_one(together: TwoBranches) -> None:
    prompts = tokens(together.bundle, 30), tokens(together.bundle, 7)
    answer = tokens(together.bundle, CHUNK + 5, 5)
    together.prefill(*prompts)
    for token in answer:
        together.extend([token])
    one_by_one = together.logits()
    together.prefill(*prompts)
    together.extend(answer)
    # Not to the bit: a product over many rows adds up in another order than one over two.
    np.testing.assert_allclose(together.logits(), one_by_one, atol=2e-2)
    assert together.length == len(answer)
    assert together.past == 30 + len(answer)


def test_a_second_answer_starts_afresh(together: TwoBranches) -> None:
    first = tokens(together.bundle, 50), tokens(together.bundle, 60)
    together.prefill(*first)
    expected = together.logits()
    together.extend(tokens(together.bundle, 9, 1))
    together.prefill(tokens(together.bundle, 350, 2), tokens(together.bundle, 3, 2))
    together.extend([1])
    together.prefill(*first)
    assert together.length == 0
    np.testing.assert_array_equal(together.logits(), expected)


def test_where_the_note_ends_the_prompt_is_cut(together: TwoBranches) -> None:
    """So that a note from a snapshot gives the same numbers as a note that is prefilled."""
    aware, agnostic = tokens(together.bundle, 200), tokens(together.bundle, 5)
    together.prefill(aware, agnostic)
    whole = together.logits()
    together.prefill(aware, agnostic, note=150)
    np.testing.assert_allclose(together.logits(), whole, atol=2e-2)


def test_two_threads_give_the_same_numbers(tiny_bundle: Bundle, together: TwoBranches) -> None:
    prompts = tokens(tiny_bundle, 140), tokens(tiny_bundle, 5)
    two = open_branches(tiny_bundle, max_length=LENGTH, threads=2)
    for branches in (together, two):
        branches.prefill(*prompts)
        branches.extend([1])
    np.testing.assert_array_equal(two.logits(), together.logits())


@pytest.mark.parametrize(
    ("do", "text"),
    [
        (
            lambda b: TwoBranches.open(b.bundle, max_length=10**6),
            "context length: the model of this bundle does not go that far "
            "(got 1000000 tokens; allowed 1 to {max}).",
        ),
        (
            lambda b: b.prefill([1] * 401, [1]),
            "context length: the prompt with the note does not fit (got 401 tokens; allowed 400).",
        ),
        (
            lambda b: b.prefill([1], [1] * 401),
            "context length: the query does not fit (got 401 tokens; allowed 400).",
        ),
        (lambda b: b.prefill([1], []), "prompt: the query is empty."),
        (
            lambda b: (b.prefill([1] * 399, [1]), b.extend([1]), b.extend([1])),
            "context length: the answer does not fit (got 401 tokens; allowed 400).",
        ),
        (
            lambda b: (b.prefill([1], [1]), b.rollback(1)),
            "rollback: no such length (got 1; allowed 0 to 0).",
        ),
        (
            lambda b: (b.prefill([1], [1]), b.logits(np.array([0, 10**7]))),
            "candidates: ids outside the small model's vocabulary, or none at all "
            "(got 2 ids up to 10000000; allowed 0 to {last}).",
        ),
        (
            lambda b: TwoBranches.open(b.bundle, max_length=8, threads=0),
            "threads: not a possible number (got 0; allowed 1 to 64).",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(together: TwoBranches, do, text: str) -> None:  # type: ignore[no-untyped-def]
    shape = together.bundle.manifest.architecture
    with pytest.raises(UsageError) as caught:
        do(together)
    expected = text.format(max=shape.max_context, last=shape.vocabulary_size - 1)
    assert str(caught.value).startswith(expected.removesuffix("."))


def test_an_answer_before_its_prompt_is_refused(tiny_bundle: Bundle) -> None:
    fresh = TwoBranches.open(tiny_bundle, max_length=8)
    with pytest.raises(CosteerError, match="there is no prompt yet"):
        fresh.logits()
    fresh.prefill([1], [2])
    with pytest.raises(UsageError):
        fresh.prefill([1] * 9, [2])


def test_mapped_pages_given_back_come_back_the_same(
    together: TwoBranches, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = partial(mapped_tables, at_least=1)
    monkeypatch.setattr("edge_runtime.graphs.memory.mapped_tables", everything)
    pages = MappedPages(together.bundle.path / "weights.bin")
    if not everything(together.bundle.path / "weights.bin"):
        pytest.skip("this system does not tell what is mapped")
    together.prefill(tokens(together.bundle, 20), tokens(together.bundle, 5))
    expected = together.logits()
    pages.give_back()
    np.testing.assert_array_equal(together.logits(), expected)
    together.extend([1])
    stepped = together.logits()
    pages.give_back()
    together.rollback(0)
    together.extend([1])
    np.testing.assert_array_equal(together.logits(), stepped)


def test_it_does_not_matter_which_row_is_the_longer(
    together: TwoBranches, alone: TwoBranches
) -> None:
    """The mask is kept from step to step: answers in turns, long and short, either way round."""
    for aware, agnostic in ((30, 5), (5, 30), (12, 12), (4, 9), (60, 2)):
        prompts = tokens(together.bundle, aware), tokens(together.bundle, agnostic, 1)
        for branches in (together, alone):
            branches.prefill(*prompts)
            for token in (1, 2, 3):
                branches.extend([token])
            branches.rollback(1)
            branches.extend([4])
        np.testing.assert_array_equal(together.logits(), alone.logits())
