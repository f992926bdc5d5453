"""Names and numbers that only a private note holds: what a cloud cannot guess.

Found by form alone (capitals inside a sentence, digits), without a model: for rules that treat such
tokens apart (`Method.copy`), and for counting which of them an answer tells (`scenarios.metrics`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*%?")
WORD = re.compile(r"[^\W_][\w'’&-]*", re.UNICODE)
_POSSESSIVE = re.compile(r"['’]s$|['’-]+$")
# A capital inside a sentence: after a small letter, a digit, a comma or a closing quote.
_NAME = re.compile(r"(?<=[a-z,0-9’')] )[A-Z][\w'’&-]*")
# Words that have a capital for other reasons: the pronoun, titles of sections, abbreviations.
_COMMON = frozenset(
    word
    for line in (
        "i i'm i've i'll i'd a an the and but or if so as at by for from in into of on to with we",
        "you he she it they my our your his her their this that these those there here what when",
        "where which who why how all let's it's that's here's we're you're ai am pm ok tv profile",
        "user writing history task content name age dear subject",
    )
    for word in line.split()
)


def _words(text: str) -> list[str]:
    return [w for w in (_POSSESSIVE.sub("", w) for w in WORD.findall(text)) if w]


def names_of(text: str, context: str, query: str) -> tuple[str, ...]:
    """Names and numbers of `text` that the `context` holds and the `query` does not.

    A name is a word that has a capital in the middle of a sentence somewhere in the two texts.
    In order of appearance, each once.
    """
    names = set(_words(" ".join(_NAME.findall(text) + _NAME.findall(context))))
    private = set(_words(context)) | set(NUMBER.findall(context))
    public = {w.lower() for w in (*_words(query), *NUMBER.findall(query))}
    found: dict[str, None] = {}
    for word in (*_words(text), *NUMBER.findall(text)):
        plain = word.lower().replace("’", "'")
        if word not in private or plain in public or plain in _COMMON:
            continue
        if word in names or NUMBER.fullmatch(word):
            found.setdefault(word)
    return tuple(found)


def name_ids(
    encode: Callable[[str], Iterable[int]], context: str, query: str = ""
) -> tuple[int, ...]:
    """The tokens that names and numbers of the note `context` are made of, ascending, as `encode`
    cuts them behind a blank and at a beginning."""
    ids: set[int] = set()
    for name in names_of(context, context, query):
        ids.update(encode(f" {name}"))
        ids.update(encode(name))
    return tuple(sorted(ids))
