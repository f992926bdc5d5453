"""Names and numbers of a note, and the tokens that they are made of."""

from __future__ import annotations

from pathlib import Path

from edge_runtime.names import name_ids, names_of
from edge_runtime.text import Text
from edge_runtime.vocabulary import open_tokenizer
from tests.tiny import write_tokenizer

NOTE = "Profile. I am 47, my sister Marisol lives in Porto; she never eats peanuts. Call 555-123."


def test_names_and_numbers_that_only_the_note_holds() -> None:
    assert set(names_of(NOTE, NOTE, "What should we do in Porto?")) == {
        "Marisol",
        "47",
        "555",
        "123",
    }
    assert names_of("In Porto I met Marisol.", NOTE, "") == ("Porto", "Marisol")
    assert names_of("Nothing of it.", NOTE, "") == ()


def test_their_tokens_are_in_the_prompts_of_a_question(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    text = Text(open_tokenizer(tmp_path / "tokenizer.json"))
    prompts = text.prompts("Where does she live?", NOTE)
    assert set(text.encode(" Marisol")) <= set(prompts.names)
    assert set(text.encode("Porto")) <= set(prompts.names)
    assert list(prompts.names) == sorted(set(prompts.names))
    assert text.prompts("Where does she live?").names == ()
    assert name_ids(text.encode, "nothing here is a name", "") == ()
