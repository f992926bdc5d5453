"""Figures for the page, drawn by plotly in the reader's browser from data inside the page."""

from __future__ import annotations

import html
import math
from typing import Any

from scenarios.figures.figure import COLOURS, Figure, Series
from scenarios.pages.draw_fields import fields
from scenarios.pages.labels import Label, extent, labels, ticks

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
"""plotly's names for `figures.MARKS`."""
INK = "#6b6b70"
"""As the page's small print; `style` gives it the dark page's."""
GRID = "rgba(128,128,128,.25)"
DASHES = ("solid", "dash", "dot", "dashdot")
"""Of joined series in turn: where two coincide, both are seen."""
WIDTH, LABEL = 850, 11
"""The plot's width on a wide screen, and the size of names on marks, in pixels."""


def script() -> str:
    """plotly itself, to stand once in the page."""
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def fragment(figure: Figure) -> str:
    """The figure as a piece of HTML that needs `script` before it."""
    import plotly.graph_objects as go

    if figure.kind == "grid":
        return fields(figure)
    drawn, height = go.Figure(), 440
    for index, series in enumerate(figure.series):
        drawn.add_trace(_marks(series, index))
        if series.named and any(_hollow(series)):
            drawn.add_trace(_key(series, index))
    named = sum(series.named for series in figure.series)
    drawn.update_layout(
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=height + (22 * -(-named // 3) if named > 1 else 0),
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        showlegend=named > 1,
        # Above the plot, so that long names neither cover marks nor narrow it.
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis_title=figure.x_label,
        yaxis_title=figure.y_label,
        font={"color": INK},
    )
    drawn.update_xaxes(gridcolor=GRID, automargin=True, zeroline=False)
    drawn.update_yaxes(gridcolor=GRID, automargin=True, zeroline=False)
    if figure.x_log:
        drawn.update_xaxes(**_log(figure, "x"))
    if figure.y_log:
        drawn.update_yaxes(**_log(figure, "y"))
    if figure.y_zero:
        drawn.update_yaxes(rangemode="tozero")
    beside = labels(figure, width=WIDTH, height=height - 100, font=LABEL)
    for label in beside:
        drawn.add_annotation(_annotation(figure, label))
    if figure.x_names:
        places = list(range(len(figure.x_names)))
        drawn.update_xaxes(
            tickvals=places, ticktext=list(figure.x_names), range=[-0.6, len(places) - 0.4]
        )
    text: str = drawn.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=figure.name,
        config={"displayModeBar": False, "responsive": True},
    )
    # Names that stand beside marks need the width that they were placed for: it can be scrolled.
    return f'<div class="wide"><div class="roomy">{text}</div></div>' if beside else text


def _log(figure: Figure, axis: str) -> dict[str, Any]:
    """A logarithmic axis with its ticks as numbers."""
    found = ticks(*extent(figure, axis))
    return {"type": "log", "tickvals": found, "ticktext": [f"{at:,.10g}" for at in found]}


def _annotation(figure: Figure, label: Label) -> dict[str, Any]:
    point, away = label.point, LABEL * 1.15 * label.rows
    return {
        "x": math.log10(point.x) if figure.x_log else point.x,
        "y": math.log10(point.y) if figure.y_log else point.y,
        "text": html.escape(point.label),
        "showarrow": False,
        "font": {"size": LABEL},
        "xanchor": "left" if label.right else "right",
        "xshift": 6 if label.right else -6,
        "yanchor": "bottom" if label.up else "top",
        "yshift": away if label.up else -away,
    }


def _marks(series: Series, index: int) -> Any:
    import plotly.graph_objects as go

    points = series.points
    colour, symbol = _look(series, index)
    front_line = series.joined and not series.named
    hollow = _hollow(series)

    def bars(axis: str) -> dict[str, Any] | None:
        lows = [getattr(p, f"{axis}_low") for p in points]
        if front_line or all(low is None for low in lows):
            return None
        highs = [getattr(p, f"{axis}_high") for p in points]
        at = [getattr(p, axis) for p in points]
        return {
            "type": "data",
            "symmetric": False,
            "array": [0 if h is None else h - v for h, v in zip(highs, at, strict=True)],
            "arrayminus": [0 if low is None else v - low for low, v in zip(lows, at, strict=True)],
            "thickness": 1,
            "width": 3,  # less than a mark: an interval of no length is not seen
        }

    shares = [
        "" if p.front is None else f"<br>on the front in {p.front:.0%} of resamples" for p in points
    ]
    return go.Scatter(
        name=series.name,
        x=[p.x for p in points],
        y=[p.y for p in points],
        text=[p.label + share for p, share in zip(points, shares, strict=True)],
        error_x=bars("x"),
        error_y=bars("y"),
        mode="lines" if front_line else "lines+markers" if series.joined else "markers",
        line={
            "color": colour,
            "dash": "dot" if front_line else DASHES[index % len(DASHES)],
            "width": 1.5,
        },
        marker={
            "color": colour,
            "size": 9,
            "symbol": [f"{symbol}-open" if empty else symbol for empty in hollow],
        },
        # A legend shows a trace's first mark, which may be hollow: there it has a line of its own.
        showlegend=series.named and not any(hollow),
        legendgroup=series.name,
        hoverinfo="skip" if front_line else None,
        hovertemplate=None if front_line else "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
    )


def _look(series: Series, index: int) -> tuple[str, str]:
    """Colour and symbol."""
    look = index if series.colour is None else series.colour
    return COLOURS[look % len(COLOURS)], SYMBOLS[(look + look // len(COLOURS)) % len(SYMBOLS)]


def _hollow(series: Series) -> list[bool]:
    """Which marks are not surely on the front."""
    return [point.front is not None and point.front < 0.5 for point in series.points]


def _key(series: Series, index: int) -> Any:
    """The series' line in the legend, with a full mark."""
    import plotly.graph_objects as go

    colour, symbol = _look(series, index)
    marker = {"color": colour, "size": 9, "symbol": symbol}
    return go.Scatter(
        name=series.name,
        x=[None],
        y=[None],
        mode="markers",
        marker=marker,
        legendgroup=series.name,
    )
