"""A finished study as one page that a decision can be read from, and its figures as files.

The page needs no network: plotly stands inside it. Beside it: every figure as PNG, SVG and CSV, and
the tokens' times as a Perfetto trace. What shows an answer is for its owner alone.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.files import write_whole
from scenarios.figures.arms import column, none, shown, too_few
from scenarios.figures.figure import Figure
from scenarios.figures.joined import joined, read_quality
from scenarios.figures.which import of_study
from scenarios.pages import draw_page, draw_print, perfetto, timeline
from scenarios.pages.answer_figures import moved, spent
from scenarios.pages.page import COLOUR_KEY, coloured
from scenarios.pages.rows import row_table
from scenarios.pages.style import STYLE
from scenarios.store import Store

ANSWERS = 6
"""So many answers are shown in full."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was written."""

    page: Path
    figures: tuple[Path, ...]
    trace: Path | None


def write_report(
    folder: Path,
    told: Callable[[str], None] = lambda what: None,
    *,
    quality: Path | None = None,
) -> Report:
    """The report of the study in `folder`. Raises `EnvironmentFailure` if there is none.

    `quality`: a file with the last line of `costeer evaluate --json`, to set beside times.
    """
    store = Store(folder)
    study, rows = store.study(), store.rows()
    figures = of_study(rows, study["measure"], study["varied"])
    if quality is not None:
        figures = joined(rows, study["varied"], read_quality(quality)) + figures
    paths: list[Path] = []
    for figure in figures:
        told(f"drawing {figure.title}")
        paths += draw_print.save(figure, folder / "figures")
    answers = _answers(store, study)
    for number, (name, answer) in enumerate(answers, 1):
        told(f"drawing answer {number}")
        for made in (spent(number, name, answer["tokens"]), moved(number, name, answer["tokens"])):
            paths += draw_print.save(made, folder / "figures", private=True)
    trace = None
    if answers:
        trace = folder / "trace.json"
        text = perfetto.trace((name, answer["tokens"]) for name, answer in answers)
        write_whole(trace, text, private=True)
    told("writing the page")
    page = folder / "report.html"
    write_whole(page, _page(study, rows, figures, answers), private=True)
    return Report(page, tuple(paths), trace)


def _answers(store: Store, study: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Some answers token by token, as different from each other as the axes allow."""
    keys: list[str] = study["cells"]
    if study["measure"] not in ("time", "both"):
        return []
    texts: dict[str, str] = {}
    for key in keys:
        texts.setdefault(store.answer(key)["row"]["text"], key)
    first = store.answer(keys[0])["row"]["case"]
    same = [key for key in keys if store.answer(key)["row"]["case"] == first]
    # Half of them say different things; the rest are one question over all that varies.
    spread = same[:: max(1, len(same) // ANSWERS)][::-1]
    chosen = dict.fromkeys([*list(texts.values())[: ANSWERS // 2], *spread, *keys])
    axes = ["case", *(column(name) for name in study["varied"])]
    found = []
    for key in list(chosen)[:ANSWERS]:
        answer = store.answer(key)
        values = [(answer["row"].get(axis), axis) for axis in axes]
        found.append((" · ".join(shown(*value) for value in values if not none(value[0])), answer))
    return found


def _page(
    study: dict[str, Any],
    rows: Any,
    figures: list[Figure],
    answers: list[tuple[str, dict[str, Any]]],
) -> str:
    varied = ", ".join(study["varied"]) or "nothing"
    sections = [
        f"<h1>{html.escape(study['name'])}</h1>",
        f"<p>{html.escape(study['about'])}</p>",
        f'<p class="small">{len(rows)} cells; varied: {html.escape(varied)}. {too_few(rows)}</p>',
    ]
    sections += [
        f"<h2>{html.escape(figure.title)}</h2>{draw_page.fragment(figure)}"
        f'<p class="small">{html.escape(figure.note)} {_links(figure.name)}</p>'
        for figure in figures
    ]
    sections += _shown(answers)
    sections.append(f"<h2>All rows</h2>{row_table(rows, study['varied'])}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(study['name'])}</title><style>{STYLE}</style>"
        f"<script>{draw_page.script()}</script></head><body><main>{''.join(sections)}"
        "</main></body></html>"
    )


def _links(name: str) -> str:
    """Where the figure's files are."""
    return " ".join(
        f'<a href="figures/{name}.{ending}">{name}.{ending}</a>' for ending in ("png", "svg", "csv")
    )


def _shown(answers: list[tuple[str, dict[str, Any]]]) -> list[str]:
    if not answers:
        return []
    parts = [
        name
        for name in timeline.PARTS
        if any(name in timeline.used(answer["tokens"]) for _, answer in answers)
    ]
    sections = [
        "<h2>Answers, token by token</h2>",
        f'<p class="small">{COLOUR_KEY} Bars: where each token\'s time went, '
        "from below in the order of the keys; the same as a "
        '<a href="trace.json">trace</a> for Perfetto.</p>',
        timeline.legend(parts),
    ]
    for number, (name, answer) in enumerate(answers, 1):
        files = _links(f"answer-{number}") + " · " + _links(f"timeline-{number}")
        sections.append(
            f"<figure><figcaption>{html.escape(name)}</figcaption>"
            f'<p class="answer">{coloured(answer["tokens"])}</p>'
            f"{timeline.bars(answer['tokens'])}"
            f'<p class="small">{files}</p></figure>'
        )
    return sections
