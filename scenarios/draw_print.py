"""Figures as PNG, SVG and CSV, for papers and for comparing by eye."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from edge_runtime.files import write_whole
from scenarios.figures import Figure


def save(figure: Figure, folder: Path) -> list[Path]:
    """Write `figure` as NAME.png, NAME.svg and NAME.csv; the paths."""
    import matplotlib

    matplotlib.use("Agg")
    # Ids in an SVG are random unless salted: the same figure shall be the same bytes.
    matplotlib.rcParams["svg.hashsalt"] = figure.name
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    if figure.kind == "grid":
        _grid(figure, axes)
    else:
        _marks(figure, axes)
    axes.set_title(figure.title, loc="left", fontsize=11)
    axes.set_xlabel(figure.x_label, fontsize=9)
    axes.set_ylabel(figure.y_label, fontsize=9)
    paths = []
    for ending in ("png", "svg"):
        sink = io.BytesIO()
        drawn.savefig(sink, format=ending, metadata={"Date": None} if ending == "svg" else None)
        paths.append(folder / f"{figure.name}.{ending}")
        write_whole(paths[-1], sink.getvalue())
    pyplot.close(drawn)
    paths.append(folder / f"{figure.name}.csv")
    write_whole(paths[-1], numbers(figure))
    return paths


def numbers(figure: Figure) -> str:
    """The figure's numbers as CSV."""
    rows = figure.table()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _marks(figure: Figure, axes: object) -> None:
    for series in figure.series:
        x = [point.x for point in series.points]
        y = [point.y for point in series.points]
        below = [p.y - p.y_low if p.y_low is not None else 0.0 for p in series.points]
        above = [p.y_high - p.y if p.y_high is not None else 0.0 for p in series.points]
        axes.errorbar(  # type: ignore[attr-defined]
            x,
            y,
            yerr=[[max(0.0, b) for b in below], [max(0.0, a) for a in above]],
            fmt="o-" if series.joined else "o",
            markersize=4,
            capsize=2,
            linewidth=1.2,
            label=series.name,
        )
        if not series.joined and len(series.points) <= 12 and len(figure.series) <= 2:
            for point in series.points:
                axes.annotate(  # type: ignore[attr-defined]
                    point.label, (point.x, point.y), (4, 4), textcoords="offset points", fontsize=7
                )
    if figure.x_names:
        places = range(len(figure.x_names))
        axes.set_xticks(places, figure.x_names, fontsize=8)  # type: ignore[attr-defined]
    if figure.x_log:
        axes.set_xscale("log")  # type: ignore[attr-defined]
    axes.grid(alpha=0.3)  # type: ignore[attr-defined]
    if len(figure.series) > 1:
        axes.legend(fontsize=8)  # type: ignore[attr-defined]


def _grid(figure: Figure, axes: object) -> None:
    down = list(dict.fromkeys(cell[0] for cell in figure.grid))
    right = list(dict.fromkeys(cell[1] for cell in figure.grid))
    values = [[float("nan")] * len(right) for _ in down]
    for row, column, value, text in figure.grid:
        y, x = down.index(row), right.index(column)
        values[y][x] = value
        axes.text(x, y, text, ha="center", va="center", fontsize=8)  # type: ignore[attr-defined]
    axes.imshow(values, aspect="auto", cmap="YlOrBr", alpha=0.6)  # type: ignore[attr-defined]
    axes.set_xticks(range(len(right)), right)  # type: ignore[attr-defined]
    axes.set_yticks(range(len(down)), down)  # type: ignore[attr-defined]
