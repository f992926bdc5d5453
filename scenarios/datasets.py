"""Cases to judge a method on: what the cloud may see, what only the device knows, what was wanted.

Readers for the eight sets of the CoSteer paper in the form its authors released them (one JSON
object a line; arXiv 2507.04756, section 4.1), for PrefEval (arXiv 2502.09597; JSON arrays by
topic), and for our own form, `notes`, of which one file ships with the package. A reader takes a
path: nothing is downloaded here.

Messages are those of the authors' release but for white space at the ends of queries, CoGenesis
prompts (each ends in a line break) and references, which is left out. It does NOT tokenize,
truncate or score: see `scenarios.evaluate` and `scenarios.metrics`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge_runtime.checked import check
from edge_runtime.errors import SpecError, UsageError, did_you_mean

PREFERENCES = ("concise", "creative", "uplifting", "verbose")
"""The four attributes of the paper's preference sets, each an answer of its own."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question. `query` is public; `context` never leaves the device."""

    id: str
    query: str
    context: str
    """The private note (all of them, joined, when there are several)."""
    aware: str
    """The user message of the aware branch: the note and the query, as the set's authors join
    them. The agnostic branch and the cloud see `query`."""
    reference: str = ""
    """The answer that was wanted; empty where the set has none (then only generation is scored)."""
    facts: tuple[str, ...] = ()
    """Names and numbers of the reference that only the note holds, where the set lists them."""
    kind: str = ""
    notes: tuple[str, ...] = ()
    """The private notes one by one, where there are several to be weighed."""


class _Released(BaseModel):
    # Released files carry metadata of their sources (authors, reviewers): not ours to judge.
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)
    id: str
    input: str = Field(min_length=1)


class _CoGenesis(_Released):
    personalized_input: str = Field(min_length=1)
    output: str = ""

    def cases(self) -> Iterator[Case]:
        query = self.input.strip()
        aware = self.personalized_input.rstrip()
        context = aware.removesuffix(query).rstrip().removesuffix("## Task").rstrip()
        yield Case(self.id, query, context, aware, self.output.strip(), kind="profile")


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)


class _Abstract(_Record):
    title: str
    abstract: str


class _Review(_Record):
    description: str
    reviewText: str


class _Writing(_Record):
    summary: str
    content: str


class _LongLamp(_Released):
    output: str = ""

    def _cases(
        self, heading: str, labels: tuple[str, str], pairs: list[list[str]]
    ) -> Iterator[Case]:
        sections = [heading]
        for number, (first, second) in enumerate(pairs[:5], start=1):
            sections.append(f"{labels[0]}[{number}]: {first}\n{labels[1]}[{number}]: {second}\n")
        context = "\n".join([*sections, "Now it's your turn\n"])
        query = self.input.strip()
        aware = f"{context}\n{query}"
        yield Case(self.id, query, context.rstrip(), aware, self.output.strip(), kind="history")


class _LongLampAbstract(_LongLamp):
    top_5: list[_Abstract]

    def cases(self) -> Iterator[Case]:
        yield from self._cases(
            "The following are five titles with their abstracts.",
            ("Title", "Abstract"),
            [[r.title, r.abstract] for r in self.top_5],
        )


class _LongLampReview(_LongLamp):
    top_5: list[_Review]

    def cases(self) -> Iterator[Case]:
        yield from self._cases(
            "The following are product descriptions with their user reviews.",
            ("Product", "Review"),
            [[r.description, r.reviewText] for r in self.top_5],
        )


class _LongLampWriting(_LongLamp):
    top_5: list[_Writing]

    def cases(self) -> Iterator[Case]:
        yield from self._cases(
            "The following are reddit post summaries with their content.",
            ("Summary", "Content"),
            [[r.summary, r.content] for r in self.top_5],
        )


class _Preference(_Released):
    def cases(self) -> Iterator[Case]:
        query = self.input
        for attribute in PREFERENCES:
            wish = f"Your answer should be as {attribute} as possible"
            yield Case(f"{self.id}/{attribute}", query, wish, f"{query}\n{wish}", kind=attribute)


class _PrefEval(BaseModel):
    model_config = ConfigDict(extra="ignore")
    preference: str = Field(min_length=1)
    question: str = Field(min_length=1)

    def cases(self) -> Iterator[Case]:
        aware = f"{self.preference}\n\n{self.question}"
        yield Case("", self.question, self.preference, aware, kind="preference")


class Note(BaseModel):
    """One line of our own form. Exactly one of `note` and `notes` holds what is private."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(min_length=1)
    kind: Literal["profile", "history", "preference", "constraint"]
    note: str = ""
    notes: list[str] = []
    query: str = Field(min_length=1)
    reference: str = ""
    facts: list[str] = []

    @model_validator(mode="after")
    def _one_form(self) -> Note:
        if bool(self.note) == bool(self.notes):
            raise ValueError("give either note (a text) or notes (a list of texts)")
        return self

    def cases(self) -> Iterator[Case]:
        """The case of this line: the note, an empty line, the query."""
        context = self.note or "\n\n".join(self.notes)
        yield Case(
            self.id,
            self.query,
            context,
            f"{context}\n\n{self.query}",
            self.reference,
            tuple(self.facts),
            self.kind,
            tuple(self.notes),
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """A form of file: how a row is checked, and what the set is."""

    name: str
    row: Any
    about: str
    array: bool = False
    """The file is one JSON array, not one object a line."""
    shipped: str = ""
    """The package's own file, read when no path is given."""
    suffixes: tuple[str, ...] = field(default=(".jsonl",))


_ALL = (
    Dataset("cogenesis", _CoGenesis, "personal writing from a profile and earlier texts"),
    Dataset("longlamp_abstract", _LongLampAbstract, "abstracts in an author's manner"),
    Dataset("longlamp_review", _LongLampReview, "product reviews in a buyer's manner"),
    Dataset("longlamp_writing", _LongLampWriting, "posts in a writer's manner"),
    Dataset("helpsteer", _Preference, "questions, each under four wishes of style"),
    Dataset("personal_preference_eval", _Preference, "questions, each under four wishes of style"),
    Dataset("truthfulqa", _Preference, "questions, each under four wishes of style"),
    Dataset("ultrachat", _Preference, "questions, each under four wishes of style"),
    Dataset("prefeval", _PrefEval, "a stated preference and a question that tempts against it",
            array=True, suffixes=(".json",)),
    Dataset("notes", Note, "our own: a private note, a query, an answer, and the note's facts",
            shipped="notes.jsonl"),
)  # fmt: skip
DATASETS = {one.name: one for one in _ALL}


def read(name: str, path: Path | None = None, limit: int | None = None) -> list[Case]:
    """The cases of data set `name` at `path` (a file, or a folder of them), at most `limit`.

    A `name` that is a path to a ``.jsonl`` file is read as our own form, `notes`.

    Raises `UsageError` for a name that is none or a path that is missing, and `SpecError`, which
    names file, line and field, for a row that is not of the set's form.
    """
    if name not in DATASETS and path is None and name.endswith(".jsonl"):
        name, path = "notes", Path(name)
    if name not in DATASETS:
        raise UsageError("dataset", "no such data set", got=name, todo=did_you_mean(name, DATASETS))
    form = DATASETS[name]
    cases: list[Case] = []
    seen: set[str] = set()
    for where, row in _rows(form, path):
        for case in _check(form.row, where, row):
            case_id = case.id or f"{Path(where.rpartition(':')[0]).stem}/{len(cases)}"
            if case_id in seen:
                raise SpecError(where, "field id: the same id appears twice", got=case_id)
            seen.add(case_id)
            cases.append(case if case.id else _renamed(case, case_id))
            if limit is not None and len(cases) >= limit:
                return cases
    if not cases:
        raise SpecError(
            str(path), "the data set is empty", todo="Give a file with at least one row"
        )
    return cases


def _renamed(case: Case, case_id: str) -> Case:
    return Case(case_id, case.query, case.context, case.aware, kind=case.kind)


def _rows(form: Dataset, path: Path | None) -> Iterator[tuple[str, Any]]:
    if path is None and form.shipped:
        text = resources.files("scenarios.data").joinpath(form.shipped).read_text("utf-8")
        yield from _lines(form.shipped, text)
        return
    if path is None:
        raise UsageError(
            "dataset", f"{form.name} is not shipped with the package", todo="Name its file: --data"
        )
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in form.suffixes)
        files = [p for p in files if form.array or p.stem == form.name] or files
    else:
        files = [path]
    for file in files:
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError("dataset", f"{file} cannot be read: {error}") from error
        yield from _items(str(file), text) if form.array else _lines(str(file), text)


def _lines(name: str, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): a JSON text may hold U+2028, which that would split at.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name}:{number}", _json(f"{name}:{number}", line)


def _items(name: str, text: str) -> Iterator[tuple[str, Any]]:
    rows = _json(f"{name}:1", text)
    if not isinstance(rows, list):
        raise SpecError(f"{name}:1", "the file holds no JSON array", got=type(rows).__name__)
    for number, row in enumerate(rows, start=1):
        yield f"{name}:{number}", row


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(where, f"not JSON: {error.msg} at column {error.colno}") from error


def _check(kind: Any, where: str, row: Any) -> Iterator[Case]:
    if not isinstance(row, dict):
        raise SpecError(where, "a row must be a JSON object", got=type(row).__name__)
    yield from check(row, kind, where=where).cases()
