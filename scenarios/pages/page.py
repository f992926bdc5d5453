"""The demo's page: both answers, where the time went, and the same answer over other links.

One HTML file that needs nothing else: no script, no font, no picture from anywhere.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_runtime.files import write_whole
from scenarios.answers import diverged
from scenarios.pages import timeline
from scenarios.pages.style import STYLE

STRONG_NATS = 4.0
"""A token that steering made e^4 = 55 times likelier gets the full colour."""

_UP, _DOWN = "color-mix(in srgb,var(--up) {}%,transparent)", "var(--down)"
COLOUR_KEY = (
    "Colour: how much likelier steering made a token "
    f'(<span style="background:{_UP.format(25)}"> e </span> '
    f'<span style="background:{_UP.format(50)}"> e² </span> '
    f'<span style="background:{_UP.format(100)}"> e⁴ times </span>), or less likely '
    f'(<span style="background:{_DOWN}"> e⁻⁴ </span>). '
    '<span class="other">Underlined</span>: the cloud alone would have said something else; '
    "point at it to see what."
)
"""What the colours of `coloured` mean."""


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of a demo's `result` to `path`, all or nothing, for its owner alone."""
    write_whole(path, page(result), private=True)


def page(result: Mapping[str, Any]) -> str:
    """The page as text."""
    answers, simulated = result["answers"], result["simulated"]
    sections = [
        _question(result),
        f'<div class="pair">{"".join(_answer(answer) for answer in answers)}</div>',
        f'<p class="small">{COLOUR_KEY}</p>',
        "<h2>What it cost on this machine</h2>",
        _figures(answers),
        _timelines(answers),
    ]
    if simulated:
        sections += [
            "<h2>The same answer over other links</h2>",
            f"<p>{html.escape(result['simulated_note'])}</p>",
            _links(simulated),
            _timelines(simulated),
        ]
    title = f"costeer: {html.escape(result['query'])}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>"
        f"{''.join(sections)}<footer>{html.escape(result['about'])}</footer></main></body></html>"
    )


def coloured(tokens: Sequence[Mapping[str, Any]]) -> str:
    """An answer's text; each token's background says how far steering moved it."""
    spans = []
    for token in tokens:
        text = html.escape(token["text"])
        moved, instead = token["moved"], token["instead"]
        strength = min(1.0, abs(moved) / STRONG_NATS)
        if strength < 0.02 and not instead:
            spans.append(text)
            continue
        hue = "var(--up)" if moved >= 0 else "var(--down)"
        tip = f"{moved:+.2f} nats ({_times(moved)})"
        tip += f"\nthe cloud alone: {instead!r}" if instead else ""
        kind = ' class="other"' if instead else ""
        spans.append(
            f'<span{kind} style="background:color-mix(in srgb,{hue} {strength * 100:.0f}%,'
            f'transparent)" title="{html.escape(tip)}">{text}</span>'
        )
    return "".join(spans)


def _times(nats: float) -> str:
    factor = 2.718281828**nats
    return f"{factor:.3g} times as likely as for the cloud alone"


def _question(result: Mapping[str, Any]) -> str:
    return (
        f"<h1>{html.escape(result['query'])}</h1>"
        f'<p class="note"><b>Only on the device:</b> {html.escape(result["context"])}</p>'
    )


def _answer(answer: Mapping[str, Any]) -> str:
    changed = diverged(answer["tokens"])
    count = len(answer["tokens"])
    told = (
        f"{count} tokens; {changed} of them are not what the cloud alone would have said there."
        if answer["steered"]
        else f"{count} tokens."
    )
    return (
        f"<section><h2>{html.escape(answer['label'])}</h2>"
        f'<p class="answer">{coloured(answer["tokens"])}</p><p class="small">{told}</p></section>'
    )


def _figures(answers: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{html.escape(answer['label'])}</th>" for answer in answers)
    rows = [
        _row("tokens per second", answers, lambda a: _number(a["row"]["tokens_per_s"], 1)),
        _row("time to first token, ms", answers, lambda a: _number(a["row"]["ttft_ms"], 0)),
        _row("time per token, ms", answers, lambda a: f"{a['row']['ms_per_token']['total']:.1f}"),
        *(
            _row(
                f"— {label}",
                answers,
                lambda a, name=name: f"{a['row']['ms_per_token'].get(name, 0.0):.2f}",
            )
            for name, (_, label) in timeline.PARTS.items()
            if any(a["row"]["ms_per_token"].get(name, 0.0) >= 0.005 for a in answers)
        ),
        _row("bytes up per token", answers, lambda a: f"{_each(a, 'uplink_bytes'):.0f}"),
        _row("bytes down per token", answers, lambda a: f"{_each(a, 'downlink_bytes'):.0f}"),
        _row("peak memory of the device process, MB", answers, lambda a: _memory(a)),
    ]
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _links(simulated: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{html.escape(run['label'])}</th>" for run in simulated)
    rows = [
        _row("time to first token, ms", simulated, lambda a: _number(a["row"]["ttft_ms"], 0)),
        _row("time per token p50, ms", simulated, lambda a: _number(a["row"]["token_ms_p50"], 1)),
        _row("time per token p95, ms", simulated, lambda a: _number(a["row"]["token_ms_p95"], 1)),
        _row("tokens per second", simulated, lambda a: _number(a["row"]["tokens_per_s"], 1)),
        _row("same tokens as live", simulated, lambda a: "yes" if a["same"] else "no"),
    ]
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _timelines(runs: Sequence[Mapping[str, Any]]) -> str:
    times = [sum(token["parts"].values()) for run in runs for token in run["tokens"][1:]]
    ceiling = timeline.nice(max(times)) if times else None
    parts = [
        name for name in timeline.PARTS if any(name in timeline.used(r["tokens"]) for r in runs)
    ]
    figures = "".join(
        f"<figure><figcaption>{html.escape(run['label'])}</figcaption>"
        f"{timeline.bars(run['tokens'], ceiling_ms=ceiling)}</figure>"
        for run in runs
    )
    return timeline.legend(parts) + figures


def _row(name: str, runs: Sequence[Mapping[str, Any]], show: Any) -> str:
    cells = "".join(f"<td>{html.escape(show(run))}</td>" for run in runs)
    return f"<tr><th>{html.escape(name)}</th>{cells}</tr>"


def _number(value: float | None, digits: int) -> str:
    """A dash where it is no number: an answer of one token has no time per token."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _each(answer: Mapping[str, Any], what: str) -> float:
    return float(answer["row"][what]) / max(1, len(answer["tokens"]))


def _memory(answer: Mapping[str, Any]) -> str:
    peak = answer["row"].get("peak_rss_mb")
    return _number(peak, 0)
