"""Where single tokens' time went, drawn: one stacked bar a token, as SVG without any library."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

PARTS: Mapping[str, tuple[str, str]] = {
    "device": ("#4c78a8", "device model"),
    "steer": ("#72b7b2", "steering"),
    "uplink": ("#f2a541", "uplink"),
    "queue": ("#9d755d", "cloud queue"),
    "cloud": ("#b279a2", "cloud model"),
    "downlink": ("#e45756", "downlink"),
    "wait": ("#bab0ac", "waiting"),
    "host": ("#d5d5d5", "driver"),
}
"""Part of a token's time (`edge_runtime.timing.Parts`): its colour and its name for people."""

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 150, 46, 22, 8


def legend(names: Sequence[str]) -> str:
    """A line of colour keys for the parts called `names`."""
    keys = "".join(
        f'<span class="key"><i style="background:{PARTS[name][0]}"></i>{PARTS[name][1]}</span>'
        for name in names
    )
    return f'<p class="legend">{keys}</p>'


def used(tokens: Sequence[Mapping[str, Any]]) -> list[str]:
    """Parts that take at least 0.1 % of the time, in the fixed order."""
    sums = {name: sum(token["parts"].get(name, 0.0) for token in tokens) for name in PARTS}
    total = sum(sums.values()) or 1.0
    return [name for name, spent in sums.items() if spent >= total / 1000]


def bars(tokens: Sequence[Mapping[str, Any]], *, ceiling_ms: float | None = None) -> str:
    """One bar a token after the first (whose time is the prompt's); hovering names the parts.

    `ceiling_ms` fixes the top of the axis, so that several figures compare; bars above it are cut.
    """
    rest = list(tokens[1:])
    if not rest:
        return "<p>Only one token: nothing to draw.</p>"
    totals = [sum(token["parts"].values()) for token in rest]
    top = ceiling_ms or nice(max(totals))
    across, up = WIDTH - LEFT, HEIGHT - BOTTOM - TOP
    step = across / len(rest)
    shapes = [_axis(top, up)]
    for index, token in enumerate(rest):
        x, y = LEFT + index * step, float(HEIGHT - BOTTOM)
        title = html.escape(f"{index + 2}: {token['text']!r} {totals[index]:.1f} ms")
        told = "".join(
            f"\n{PARTS[name][1]} {ms:.2f} ms"
            for name, ms in token["parts"].items()
            if name in PARTS and ms >= 0.005
        )
        shapes.append(f"<g><title>{title}{told}</title>")
        for name, (colour, _) in PARTS.items():
            tall = min(token["parts"].get(name, 0.0) / top * up, y - TOP)
            if tall <= 0.05:
                continue
            y -= tall
            shapes.append(
                f'<rect x="{x:.1f}" y="{y:.2f}" width="{max(0.6, step - 1):.1f}" '
                f'height="{tall:.2f}" fill="{colour}"/>'
            )
        shapes.append("</g>")
    return (
        f'<div class="wide"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="time per token, by part">{"".join(shapes)}</svg></div>'
    )


def nice(value: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below `value`."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value)


def _axis(top: float, up: float) -> str:
    lines = []
    for share in (0.0, 0.5, 1.0):
        y = TOP + up * (1 - share)
        lines.append(
            f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * share:g}</text>'
        )
    lines.append(f'<text x="{LEFT}" y="{HEIGHT - 4}">token by token, ms each</text>')
    return "".join(lines)
