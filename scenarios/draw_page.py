"""Figures for the page, drawn by plotly in the reader's browser from data inside the page."""

from __future__ import annotations

from typing import Any

from scenarios.figures import Figure, Series


def script() -> str:
    """plotly itself, to stand once in the page."""
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def fragment(figure: Figure) -> str:
    """The figure as a piece of HTML that needs `script` before it."""
    import plotly.graph_objects as go

    drawn = go.Figure()
    if figure.kind == "grid":
        _grid(drawn, figure)
    else:
        for series in figure.series:
            drawn.add_trace(_marks(series))
    drawn.update_layout(
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=420,
        margin={"l": 60, "r": 20, "t": 20, "b": 60},
        legend={"orientation": "h", "y": 1.12},
        xaxis_title=figure.x_label,
        yaxis_title=figure.y_label,
        font={"color": "#77777d"},
    )
    drawn.update_xaxes(type="log" if figure.x_log else None, gridcolor="rgba(128,128,128,.25)")
    drawn.update_yaxes(gridcolor="rgba(128,128,128,.25)")
    if figure.x_names:
        places = list(range(len(figure.x_names)))
        drawn.update_xaxes(tickvals=places, ticktext=list(figure.x_names))
    text: str = drawn.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=figure.name,
        config={"displayModeBar": False, "responsive": True},
    )
    return text


def _marks(series: Series) -> Any:
    import plotly.graph_objects as go

    points = series.points

    def bars(axis: str) -> dict[str, Any] | None:
        lows = [getattr(p, f"{axis}_low") for p in points]
        if all(low is None for low in lows):
            return None
        highs = [getattr(p, f"{axis}_high") for p in points]
        at = [getattr(p, axis) for p in points]
        return {
            "type": "data",
            "symmetric": False,
            "array": [0 if h is None else h - v for h, v in zip(highs, at, strict=True)],
            "arrayminus": [0 if low is None else v - low for low, v in zip(lows, at, strict=True)],
            "thickness": 1,
        }

    return go.Scatter(
        name=series.name,
        x=[p.x for p in points],
        y=[p.y for p in points],
        text=[p.label for p in points],
        error_x=bars("x"),
        error_y=bars("y"),
        mode="lines+markers" if series.joined else "markers",
        hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
    )


def _grid(drawn: Any, figure: Figure) -> None:
    import plotly.graph_objects as go

    down = list(dict.fromkeys(cell[0] for cell in figure.grid))
    right = list(dict.fromkeys(cell[1] for cell in figure.grid))
    found = {(cell[0], cell[1]): cell for cell in figure.grid}
    drawn.add_trace(
        go.Heatmap(
            x=right,
            y=down,
            z=[[found[d, r][2] if (d, r) in found else None for r in right] for d in down],
            text=[[found[d, r][3] if (d, r) in found else "" for r in right] for d in down],
            texttemplate="%{text}",
            colorscale="YlOrBr",
            showscale=False,
        )
    )
    drawn.update_xaxes(type="category")
