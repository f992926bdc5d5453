"""The demo's page: complete in itself, and nothing in an answer can break out of it."""

from __future__ import annotations

import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from scenarios.pages import timeline
from scenarios.pages.page import coloured, page, write_page

PARTS = dict.fromkeys(timeline.PARTS, 1.0)


def token(text: str, moved: float = 0.0, instead: str = "", ms: float = 1.0) -> dict[str, Any]:
    parts = dict.fromkeys(PARTS, ms)
    return {"token": 1, "text": text, "at_ms": 0.0, "parts": parts, "moved": moved} | {
        "instead": instead,
        "source": "steered",
    }


def row() -> dict[str, Any]:
    return {
        "tokens_per_s": 20.0,
        "ttft_ms": 90.0,
        "ms_per_token": {"total": 8.0, **PARTS},
        "token_ms_p50": 7.0,
        "token_ms_p95": 9.0,
        "uplink_bytes": 300,
        "downlink_bytes": 9000,
        "peak_rss_mb": 300.0,
    }


def result() -> dict[str, Any]:
    tokens = [token("I"), token(" <b>cook</b>", 2.0, " dine"), token(" & eat", -0.5)]
    answers = [
        {"label": "alone", "steered": False, "row": row(), "tokens": tokens},
        {"label": "steered", "steered": True, "row": row(), "tokens": tokens},
    ]
    runs = [{"label": name, "row": row(), "tokens": tokens, "same": True} for name in ("5g", "lte")]
    return {
        "query": "Dinner?</title><script>x</script>",
        "context": "I am a <vegetarian>.",
        "answers": answers,
        "simulated": runs,
        "simulated_note": "note",
        "about": "about",
    }


class Tags(HTMLParser):
    """Fails on tags that do not close in order; collects names and outside references."""

    VOID = frozenset({"meta", "rect", "line", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_complete_in_itself() -> None:
    text = page(result())
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert not tags.references
    assert not re.search(r"https?://|@import|url\(", text)
    assert "script" not in tags.seen


def test_what_an_answer_says_is_only_text() -> None:
    text = page(result())
    assert "<b>cook" not in text
    assert "&lt;vegetarian&gt;" in text


def test_a_changed_token_shows_what_the_cloud_would_have_said() -> None:
    text = coloured([token("I"), token(" cook", 2.0, " dine")])
    assert text.startswith("I<span")
    assert "dine" in text
    assert "7.39 times" in text


def test_bars_are_as_tall_as_their_parts() -> None:
    drawn = timeline.bars([token("a"), token("b", ms=1.0), token("c", ms=2.0)], ceiling_ms=16.0)
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" fill', drawn)]
    count = len(timeline.PARTS)
    short, tall = sum(heights[:count]), sum(heights[count:])
    room = timeline.HEIGHT - timeline.BOTTOM - timeline.TOP
    assert abs(tall - room) < 0.1
    assert abs(short - room / 2) < 0.1


def test_the_page_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "demo.html"
    write_page(path, result())
    assert path.read_text().startswith("<!doctype html>")
    assert [p.name for p in path.parent.iterdir()] == ["demo.html"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "it shows the note"


def test_an_answer_of_one_token_has_no_speed() -> None:
    short = result()
    short["answers"][0]["row"]["tokens_per_s"] = float("nan")
    text = page(short)
    assert "<td>–</td>" in text
    assert "nan" not in text
