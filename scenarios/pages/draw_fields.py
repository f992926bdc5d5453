"""A figure of fields as a table of the page: its text can be read, copied and scrolled."""

from __future__ import annotations

import html
from collections.abc import Sequence

from scenarios.figures.figure import Figure

PALE, FULL = (0xFF, 0xF7, 0xE0), (0xF0, 0xA8, 0x30)
"""Of the least and of the greatest value. Pale throughout: the text stands on it."""


def fields(figure: Figure) -> str:
    """The figure's grid, each field in the colour of its value and with its text."""
    down = list(dict.fromkeys(cell[0] for cell in figure.grid))
    right = list(dict.fromkeys(cell[1] for cell in figure.grid))
    colours = _colours([cell[2] for cell in figure.grid])
    found = {
        (cell[0], cell[1]): f'<td style="background:{colour}">{_lines(cell[3])}</td>'
        for cell, colour in zip(figure.grid, colours, strict=True)
    }
    across = (
        f'<tr><td></td><th colspan="{len(right)}">{html.escape(figure.x_label)}</th></tr>'
        if figure.x_label
        else ""
    )
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in right)
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        f"{''.join(found.get((name, other), '<td></td>') for other in right)}</tr>"
        for name in down
    )
    return (
        f'<div class="wide"><table class="fields" id="{html.escape(figure.name)}">{across}'
        f'<tr><th scope="col">{html.escape(figure.y_label)}</th>{head}</tr>{body}</table></div>'
    )


def _lines(text: str) -> str:
    first, *rest = (html.escape(line) for line in text.split("\n"))
    return "<br>".join([f"<b>{first}</b>" if rest else first, *rest])


def _colours(values: Sequence[float]) -> list[str]:
    least, most = min(values, default=0.0), max(values, default=0.0)
    span = (most - least) or 1.0
    return [_between((value - least) / span) for value in values]


def _between(share: float) -> str:
    mixed = (round(a + share * (b - a)) for a, b in zip(PALE, FULL, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
