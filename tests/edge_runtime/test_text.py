"""Tokens, templates and prompts, on small tokenizers built here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edge_runtime.errors import BundleError
from edge_runtime.text import Text
from edge_runtime.vocabulary import fingerprint

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """Every byte a token, a few merges, chat markers."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), (".", "Ċ"), ("Ċ", "Ċ")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    return tokenizer


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(byte_tokenizer(), TEMPLATE)


def test_the_two_prompts(text: Text) -> None:
    prompts = text.prompts("Where to eat?", "I am vegetarian.")
    assert text.decode(prompts.agnostic, skip_special=False) == (
        "<|im_start|>user\nWhere to eat?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text.decode(prompts.aware, skip_special=False) == (
        "<|im_start|>user\nI am vegetarian.\n\nWhere to eat?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_without_a_note_both_prompts_are_the_query(text: Text) -> None:
    prompts = text.prompts("Where to eat?")
    assert prompts.aware == prompts.agnostic
    assert prompts.note == 0


words = st.from_regex(r"[A-Z][a-z]{0,8}( [a-z]{1,8}){0,3}\?", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=40), words, words)
def test_the_notes_tokens_are_the_same_for_every_query(note: str, one: str, two: str) -> None:
    text = Text(byte_tokenizer(), TEMPLATE)
    first, second = text.prompts(one, note), text.prompts(two, note)
    assert first.note == second.note == len(text.note(note))
    assert first.aware[: first.note] == second.aware[: second.note]
    assert text.chat(f"{note}\n\n").startswith(
        text.decode(first.aware[: first.note], skip_special=False).rstrip(
            "\N{REPLACEMENT CHARACTER}"
        )
    )


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=20), st.text(max_size=10))
def test_what_counts_as_the_note_is_there_even_under_odd_queries(note: str, query: str) -> None:
    text = Text(byte_tokenizer(), TEMPLATE)
    prompts = text.prompts(query, note)
    assert list(prompts.aware[: prompts.note]) == text.note(note)[: prompts.note]


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=60))
def test_streaming_shows_whole_characters_and_loses_none(words: str) -> None:
    text = Text(byte_tokenizer(), TEMPLATE)
    stream = text.stream()
    pieces = [stream.push(token) for token in text.encode(words)]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces if piece not in words)
    assert "".join(pieces) + stream.flush() == text.decode(text.encode(words))


def test_a_template_that_refuses_is_said_in_one_line() -> None:
    refusing = Text(byte_tokenizer(), "{{ raise_exception('system first') }}")
    with pytest.raises(BundleError, match=r"chat template: it cannot take .*system first"):
        refusing.prompts("hello")


def test_a_template_that_repeats_the_note_is_not_repeated() -> None:
    telling = Text(byte_tokenizer(), "{{ raise_exception('no: ' ~ messages[0].content) }}")
    with pytest.raises(BundleError, match="got TemplateError") as caught:
        telling.prompts("hello", "I am ill")
    assert "ill" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_template_cannot_reach_outside() -> None:
    hostile = Text(byte_tokenizer(), "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(BundleError):
        hostile.prompts("hello")


def test_the_fingerprint_is_the_same_however_the_vocabulary_came(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    expected = fingerprint(tokenizer)
    assert fingerprint(path) == fingerprint(str(path)) == expected
    assert fingerprint(tokenizer.get_vocab(with_added_tokens=True)) == expected
    # Order, merges and normalisers do not matter; one renamed token does.
    shuffled = dict(reversed(list(tokenizer.get_vocab(with_added_tokens=True).items())))
    assert fingerprint(shuffled) == expected
    content = json.loads(path.read_text())
    content["model"]["merges"] = []
    path.write_text(json.dumps(content))
    assert fingerprint(path) == expected
    swapped = dict(shuffled)
    swapped["a"], swapped["b"] = swapped["b"], swapped["a"]
    assert fingerprint(swapped) != expected


def test_a_broken_tokenizer_file_is_a_bundle_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(BundleError, match="not a readable tokenizer"):
        fingerprint(path)
