"""Readers: what each released form becomes, our own cases, and errors that name the spot."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from edge_runtime.errors import SpecError, UsageError
from scenarios.datasets import DATASETS, PREFERENCES, Case, read
from scenarios.metrics import facts_told

SHARED = Path(
    os.environ.get("COSTEER_DATA_DIR", Path(__file__).parents[2] / ".." / "shared" / "data")
)
needs_data = pytest.mark.skipif(
    not (SHARED / "cogenesis_dev.jsonl").exists(),
    reason="needs the development data: set COSTEER_DATA_DIR",
)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


NOTES = read("notes")


def test_our_own_set_is_large_and_even() -> None:
    assert len(NOTES) >= 60
    assert Counter(case.kind for case in NOTES) == dict.fromkeys(
        ("profile", "history", "preference", "constraint"), 16
    )
    assert sum(bool(case.notes) for case in NOTES) >= 4, "some hold several notes"
    assert len({case.query for case in NOTES}) == len(NOTES)


@pytest.mark.parametrize("case", NOTES, ids=lambda case: case.id)
def test_every_fact_is_private_and_told_by_the_reference(case: Case) -> None:
    assert 4 <= len(case.facts) <= 8
    assert facts_told(case.context, case.facts) == len(case.facts)
    assert facts_told(case.query, case.facts) == 0
    assert facts_told(case.reference, case.facts) == len(case.facts)


def test_cogenesis_keeps_the_authors_prompt_and_finds_the_note(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.jsonl",
        {"id": "1_2", "input": "Plan it.", "output": "Done.", "other": 1,
         "personalized_input": "Be kind.\n\n## User Profile\nName: Ada\n\n## Task\nPlan it.\n"},
    )  # fmt: skip
    [case] = read("cogenesis", path)
    assert case.query == "Plan it."
    assert case.aware == "Be kind.\n\n## User Profile\nName: Ada\n\n## Task\nPlan it."
    assert case.context == "Be kind.\n\n## User Profile\nName: Ada"
    assert case.reference == "Done."


@pytest.mark.parametrize(
    ("name", "keys", "heading", "labels"),
    [
        ("longlamp_abstract", ("title", "abstract"), "five titles", ("Title", "Abstract")),
        ("longlamp_review", ("description", "reviewText"), "product desc", ("Product", "Review")),
        ("longlamp_writing", ("summary", "content"), "reddit post", ("Summary", "Content")),
    ],
)
def test_longlamp_puts_five_records_before_the_query(
    tmp_path: Path, name: str, keys: tuple[str, str], heading: str, labels: tuple[str, str]
) -> None:
    records = [{keys[0]: f"a{i}", keys[1]: f"b{i}", "more": i} for i in range(7)]
    path = write(tmp_path / "l.jsonl", {"id": 3, "input": "Write.", "top_5": records})
    [case] = read(name, path)
    assert heading in case.aware.splitlines()[0]
    assert f"{labels[0]}[1]: a0\n{labels[1]}[1]: b0\n\n{labels[0]}[2]: a1" in case.aware
    assert "a4" in case.aware
    assert "a5" not in case.aware
    assert case.aware.endswith("Now it's your turn\n\nWrite.")
    assert case.query == "Write."
    assert case.id == "3"


@pytest.mark.parametrize(
    "name", ["helpsteer", "personal_preference_eval", "truthfulqa", "ultrachat"]
)
def test_a_question_under_four_wishes_is_four_cases(tmp_path: Path, name: str) -> None:
    cases = read(name, write(tmp_path / "p.jsonl", {"id": 7, "input": "Why?"}))
    assert [case.id for case in cases] == [f"7/{p}" for p in PREFERENCES]
    assert cases[0].aware == "Why?\nYour answer should be as concise as possible"
    assert all(case.query == "Why?" for case in cases)


def test_prefeval_reads_a_folder_of_topics(tmp_path: Path) -> None:
    for topic in ("hotels", "pets"):
        rows = [{"preference": f"I hate {topic}.", "question": "Any tips?", "explanation": "x"}]
        (tmp_path / f"{topic}.json").write_text(json.dumps(rows * 2), "utf-8")
    cases = read("prefeval", tmp_path)
    assert len(cases) == 4
    assert len({case.id for case in cases}) == 4
    assert cases[0].context == "I hate hotels."
    assert "hotels" not in cases[0].query


def test_a_users_own_file_is_named_by_its_path(tmp_path: Path) -> None:
    row = {"id": "a", "kind": "profile", "notes": ["One.", "Two."], "query": "Who?", "facts": []}
    [case] = read(str(write(tmp_path / "mine.jsonl", row)))
    assert case.notes == ("One.", "Two.")
    assert case.context == "One.\n\nTwo."


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "a", "kind": "profile", "note": "n"}, "query: this key is needed"),
        ({"id": "a", "kind": "profil", "note": "n", "query": "q"}, "kind: no such choice"),
        (
            {"id": "a", "kind": "profile", "note": "n", "query": "q", "fact": []},
            "unknown key 'fact'. Did you mean facts?",
        ),
        ({"id": "a", "kind": "profile", "query": "q"}, "give either note"),
        ([1], "a row must be a JSON object (got list)"),
    ],
)
def test_an_error_names_file_line_and_field(tmp_path: Path, row: object, said: str) -> None:
    good = {"id": "0", "kind": "profile", "note": "n", "query": "q"}
    path = write(tmp_path / "bad.jsonl", good, row)
    with pytest.raises(SpecError) as caught:
        read("notes", path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert said in str(caught.value)


def test_broken_json_twice_the_same_id_and_unknown_sets_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 1, "input": "q"}\n{"id": 2,,}\n', "utf-8")
    with pytest.raises(SpecError, match=r"x\.jsonl:2: not JSON: .* at column 10"):
        read("helpsteer", path)
    twice = {"id": "1", "input": "q", "personalized_input": "n\nq"}
    with pytest.raises(SpecError, match="same id appears twice"):
        read("cogenesis", write(path, twice, twice))
    with pytest.raises(UsageError, match="Did you mean cogenesis"):
        read("cogenesys", path)
    with pytest.raises(UsageError, match="not shipped"):
        read("ultrachat")
    with pytest.raises(SpecError, match="empty"):
        read("cogenesis", write(path))


def test_every_set_of_the_paper_has_a_reader() -> None:
    assert set(DATASETS) >= {
        "cogenesis", "longlamp_abstract", "longlamp_review", "longlamp_writing",
        "helpsteer", "personal_preference_eval", "truthfulqa", "ultrachat",
    }  # fmt: skip


@needs_data
def test_the_development_files_are_read_whole() -> None:
    cases = read("cogenesis", SHARED / "cogenesis_dev.jsonl")
    assert len(cases) == 150
    assert all(case.context and case.query not in case.context[-200:] for case in cases)
    assert len(read("personal_preference_eval", SHARED / "personal_preference_eval.jsonl")) == 800
    assert len(read("prefeval", SHARED / "prefeval")) == 1000
