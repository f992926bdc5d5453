"""Times of one study beside the quality of another: recorded answers have no references to score.

The quality is what `costeer evaluate --json` printed, saved to a file. A rule is the same rule
under any name: `costeer@1` there is `light` with gain 1 here.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import SpecError, UsageError
from edge_runtime.rules import method
from edge_runtime.steering import Method
from scenarios.figures.arms import arms, drawn, others
from scenarios.figures.figure import Figure, Point, Series
from scenarios.metrics import mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


CHOSEN = ("chosen", "fitted")
"""Rows of `costeer evaluate` for a rule that was made there: their names are no rule's."""
GAP = ("value", "low", "high")


def read_quality(path: Path) -> dict[Method, dict[str, Any]]:
    """Each rule's figures. Raises `SpecError` for a file that is none of `costeer evaluate`."""
    try:
        lines = path.read_text(encoding="utf-8").strip().splitlines()
        rows = json.loads(lines[-1])
    except OSError as error:
        raise SpecError(str(path), f"cannot be read: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise _not_quality(path, str(error)) from error
    if not isinstance(rows, dict):
        raise _not_quality(path, "it is no object of methods")
    if not rows:
        raise _not_quality(path, "it has no method")
    found = {}
    for name, row in rows.items():
        if not isinstance(row, dict):
            raise _not_quality(f"{path}: {name}", "this method has no figures", row)
        if name in CHOSEN or "gap_captured" not in row:
            continue
        try:
            rule = _unnamed(method(name))
        except UsageError as error:
            raise _not_quality(f"{path}: {name}", str(error)) from error
        gap = row["gap_captured"]
        if not isinstance(gap, dict) or not all(_is_figure(gap.get(part)) for part in GAP):
            raise _not_quality(f"{path}: {name}.gap_captured", "this is no figure", gap)
        # Null: no case has a gap to be captured.
        if gap["value"] is not None and math.isfinite(gap["value"]):
            found[rule] = row
    if not found:
        raise _not_quality(path, "no method in it has a gap_captured")
    return found


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _not_quality(where: Path | str, why: str, got: object = None) -> SpecError:
    return SpecError(
        str(where),
        f"not what costeer evaluate --json prints: {why.rstrip('.')}",
        got=None if got is None else json.dumps(got)[:80],
        todo="Save its last line",
    )


def joined(
    rows: pd.DataFrame, varied: Sequence[str], quality: dict[Method, dict[str, Any]]
) -> list[Figure]:
    """Gap captured against time per token, a figure for each link and device, by round trip.

    Raises `UsageError` when no rule of the times has a quality.
    """
    if "token_ms" not in rows or "gain" not in rows:
        raise UsageError(
            "--quality",
            "this study has no times of single answers to set it beside",
            todo="Leave the option out",
        )
    split = [axis for axis in ("network", "device", "cloud") if axis in varied]
    trips = [axis for axis in ("rtt_ms",) if axis in varied]
    figures = []
    for number, (world, within) in enumerate(arms(rows, split), 1):
        lines = {}
        for trip, here in arms(within, trips):
            points = []
            for name, part in arms(here, others(varied, *split, *trips)):
                # Rows say the gain of a method that has none too, so it cannot be asked for.
                rule = replace(
                    method(str(part["method"].iloc[0])), gain=float(part["gain"].iloc[0])
                )
                known = next((row for q, row in quality.items() if _same(q, rule)), None)
                timed = part.dropna(subset=["token_ms"])
                if known is None or timed.empty:
                    continue
                gap = known["gap_captured"]
                spent = mean(timed["token_ms"].to_numpy(), groups=drawn(timed))
                points.append(
                    Point(
                        *(spent.value, gap["value"], name or rule.name, gap["low"], gap["high"]),
                        *(spent.low, spent.high),
                    )
                )
            if points:
                lines["arms" if trip == "all" else trip] = points
        if lines:
            figures.append(_figure(number, "" if world == "all" else f": {world}", lines))
    if not figures:
        raise UsageError(
            "--quality",
            "none of the study's rules is in that file",
            got=", ".join(sorted(set(rows["method"]))),
            todo="Evaluate the same rules, as in --methods light,costeer@1",
        )
    return figures


def _figure(number: int, at: str, lines: dict[str, list[Point]]) -> Figure:
    """A front for each round trip."""
    series = []
    for colour, (name, points) in enumerate(lines.items()):
        front: list[Point] = []
        for point in sorted(points, key=lambda p: (p.x, -p.y)):
            if not front or point.y > front[-1].y:
                front.append(point)
        line = Series(f"{name}: front", tuple(front), joined=True, colour=colour, named=False)
        series += [line, Series(name, tuple(points), colour=colour)]
    return Figure(
        f"quality-joined-{number}",
        f"Quality against time per token{at}",
        "ms per token (mean)",
        "share of the gap captured",
        tuple(series),
        note="Upper left is better. Time and quality are of different cases, so each has its own "
        "90 % interval and the front has none.",
        x_log=True,
    )


def _unnamed(rule: Method) -> Method:
    return replace(rule, name="")


def _same(one: Method, two: Method) -> bool:
    """Equal but for the name, and for a gain written with fewer digits."""
    if abs(one.gain - two.gain) > 1e-3:
        return False
    return _unnamed(replace(one, gain=0.0)) == _unnamed(replace(two, gain=0.0))
