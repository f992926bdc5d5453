"""Figures as PNG, SVG and CSV, for papers and for comparing by eye."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from edge_runtime.files import write_whole
from scenarios.figures.figure import COLOURS, MARKS, Figure
from scenarios.pages.labels import labels, ticks

DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
"""Of joined series in turn: where two coincide, both are seen."""
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "+++", "---")
"""Of stacked series, for a print without colours."""


def save(figure: Figure, folder: Path, *, private: bool = False) -> list[Path]:
    """Write `figure` as NAME.png, NAME.svg and NAME.csv, `private` if it shows an answer; the
    paths."""
    import matplotlib

    matplotlib.use("Agg")
    # Ids in an SVG are random unless salted: the same figure shall be the same bytes.
    matplotlib.rcParams["svg.hashsalt"] = figure.name
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=_size(figure), dpi=150, layout="constrained")
    {"grid": _grid, "marks": _marks, "bars": _bars, "text": _text}[figure.kind](figure, axes)
    axes.set_xlabel(figure.x_label, fontsize=9)
    axes.set_ylabel(figure.y_label, fontsize=9)
    # Over the whole picture: a title of the axes would lie upon a legend above them.
    drawn.suptitle(figure.title, x=0.01, ha="left", fontsize=10)
    paths = []
    for ending in ("png", "svg"):
        sink = io.BytesIO()
        drawn.savefig(sink, format=ending, metadata={"Date": None} if ending == "svg" else None)
        paths.append(folder / f"{figure.name}.{ending}")
        write_whole(paths[-1], sink.getvalue(), private=private)
    pyplot.close(drawn)
    paths.append(folder / f"{figure.name}.csv")
    write_whole(paths[-1], numbers(figure), private=private)
    return paths


def numbers(figure: Figure) -> str:
    """The figure's numbers as CSV."""
    rows = figure.table()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _size(figure: Figure) -> tuple[float, float]:
    if figure.kind == "grid":
        down = len({cell[0] for cell in figure.grid})
        right = len({cell[1] for cell in figure.grid})
        widest = max(len(line) for cell in figure.grid for line in cell[3].split("\n"))
        side = max(len(cell[0]) for cell in figure.grid)
        return max(7.2, 0.6 + 0.075 * side + (0.3 + 0.062 * widest) * right), 1.3 + 0.55 * down
    if figure.kind == "text":
        return 7.2, 1.1 + 0.24 * len(_lines(figure))
    named = sum(series.named for series in figure.series)
    return 7.2, 4.2 + (0.2 * -(-named // _columns(figure)) if named > 1 else 0)


def _columns(figure: Figure) -> int:
    """Of the legend: as many as fit."""
    return max(1, min(4, 96 // (8 + max(len(series.name) for series in figure.series))))


def _marks(figure: Figure, axes: Any) -> None:
    for index, series in enumerate(figure.series):
        points = series.points
        x, y = [point.x for point in points], [point.y for point in points]
        look = index if series.colour is None else series.colour
        colour, mark = (
            COLOURS[look % len(COLOURS)],
            MARKS[(look + look // len(COLOURS)) % len(MARKS)],
        )
        if series.joined and not series.named:
            axes.plot(x, y, ":", color=colour, linewidth=1.2)
            continue
        bars = {
            f"{axis}err": [
                [max(0.0, _of(p, axis) - _of(p, f"{axis}_low", axis)) for p in points],
                [max(0.0, _of(p, f"{axis}_high", axis) - _of(p, axis)) for p in points],
            ]
            for axis in ("x", "y")
        }
        axes.errorbar(x, y, fmt="none", ecolor=colour, elinewidth=0.8, capsize=2, **bars)
        axes.plot(
            x,
            y,
            marker=mark,
            linestyle=DASHES[index % len(DASHES)] if series.joined else "none",
            color=colour,
            markersize=5,
            linewidth=1.2,
            # Hollow where the arm is not surely on the front.
            fillstyle="none" if points and all(_weak(p) for p in points) else "full",
            label=series.name if series.named else None,
        )
        for point in points:
            if _weak(point):
                axes.plot(point.x, point.y, mark, color=colour, markersize=3, mfc="white")
    if figure.x_names:
        turned = max(len(name) for name in figure.x_names) * len(figure.x_names) > 80
        axes.set_xticks(
            range(len(figure.x_names)),
            figure.x_names,
            fontsize=8,
            rotation=20 if turned else 0,
            ha="right" if turned else "center",
        )
        axes.set_xlim(-0.6, len(figure.x_names) - 0.4)
    _scales(figure, axes)
    if figure.y_zero:
        axes.set_ylim(bottom=0)
    _names(figure, axes)
    axes.grid(alpha=0.3)
    if sum(series.named for series in figure.series) > 1:
        axes.legend(
            fontsize=7.5,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=_columns(figure),
            frameon=False,
        )


def _of(point: Any, name: str, instead: str = "") -> float:
    value = getattr(point, name)
    return float(getattr(point, instead) if value is None else value)


def _weak(point: Any) -> bool:
    return point.front is not None and point.front < 0.5


def _names(figure: Figure, axes: Any) -> None:
    """Each arm's name at its mark, where there is room."""
    inches = axes.figure.get_size_inches()
    for label in labels(figure, width=64 * inches[0], height=54 * inches[1], font=6.5):
        point, away = label.point, 7.2 * label.rows
        axes.annotate(
            point.label,
            (point.x, point.y),
            (5 if label.right else -5, 3 + away if label.up else -3 - away),
            textcoords="offset points",
            ha="left" if label.right else "right",
            va="bottom" if label.up else "top",
            fontsize=6.5,
        )


def _scales(figure: Figure, axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    for log, which in ((figure.x_log, "x"), (figure.y_log, "y")):
        if not log:
            continue
        getattr(axes, f"set_{which}scale")("log")
        axis = getattr(axes, f"{which}axis")
        shown = getattr(axes, f"get_{which}lim")()
        # As numbers: powers of ten alone say too little over one decade.
        axis.set_ticks([at for at in ticks(*shown) if shown[0] <= at <= shown[1]])
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_tick_params(labelsize=8)


def _grid(figure: Figure, axes: Any) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    down = list(dict.fromkeys(cell[0] for cell in figure.grid))
    right = list(dict.fromkeys(cell[1] for cell in figure.grid))
    values = [[float("nan")] * len(right) for _ in down]
    for row, column, value, text in figure.grid:
        y, x = down.index(row), right.index(column)
        values[y][x] = value
        axes.text(x, y, text, ha="center", va="center", fontsize=7)
    pale = LinearSegmentedColormap.from_list("pale", ["#fff7e0", "#f0a830"])
    axes.imshow(values, aspect="auto", cmap=pale)
    axes.set_xticks(range(len(right)), right, fontsize=8)
    axes.set_yticks(range(len(down)), down, fontsize=8)
    axes.set_xticks([place - 0.5 for place in range(1, len(right))], minor=True)
    axes.set_yticks([place - 0.5 for place in range(1, len(down))], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)


def _bars(figure: Figure, axes: Any) -> None:
    bottom = [0.0] * max((len(series.points) for series in figure.series), default=0)
    for index, series in enumerate(figure.series):
        colour = COLOURS[(index if series.colour is None else series.colour) % len(COLOURS)]
        high = [point.y for point in series.points]
        axes.bar(
            [p.x for p in series.points],
            high,
            bottom=bottom,
            color=colour,
            label=series.name,
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor="white",
            linewidth=0,
        )
        bottom = [low + more for low, more in zip(bottom, high, strict=True)]
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=7.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)


LINE = 88
"""Characters in a line of `text`."""


def _lines(figure: Figure) -> list[list[tuple[int, Any]]]:
    """The marks of a text by line, each with its column."""
    lines: list[list[tuple[int, Any]]] = [[]]
    at = 0
    for point in figure.series[0].points:
        text = point.label.replace("\n", "⏎")
        if at + len(text) > LINE:
            lines.append([])
            at = 0
        lines[-1].append((at, point))
        at += len(text)
        if "\n" in point.label:
            lines.append([])
            at = 0
    return lines


def _text(figure: Figure, axes: Any) -> None:
    lines = _lines(figure)
    axes.set_xlim(0, LINE)
    axes.set_ylim(len(lines), 0)
    axes.axis("off")
    for row, line in enumerate(lines):
        for column, point in line:
            text = point.label.replace("\n", "⏎")
            strength = min(1.0, abs(point.y) / 4)
            if strength >= 0.02:
                colour = "#e69f00" if point.y > 0 else "#56b4e9"
                box = {"color": colour, "alpha": strength, "linewidth": 0}
                axes.fill_between([column, column + len(text)], row, row + 0.9, **box)
            axes.text(
                *(column, row + 0.68),
                text.replace("$", r"\$"),
                family="monospace",
                fontsize=8.8,
                weight="bold" if point.x else "normal",
            )
