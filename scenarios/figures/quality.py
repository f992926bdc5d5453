"""Figures of what answers are worth: the gap captured, what answers tell, what codecs lose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scenarios.figures.arms import arms, drawn, gap, others
from scenarios.figures.figure import Figure, Point, Series
from scenarios.figures.table import written
from scenarios.metrics import ratio

if TYPE_CHECKING:
    import pandas as pd


def quality(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Share of the gap captured by each arm."""
    # What only times depend on would repeat every mark.
    axes = others(varied, "network", "rtt_ms", "device", "cloud", "schedule", "placement")
    rows = _once(rows, axes)
    by_gain = "gain" in axes
    rest = [name for name in axes if name != "gain"]
    if not by_gain:
        found = [(name, gap(part)) for name, part in arms(rows, rest)]
        points = [Point(i, e.value, name, e.low, e.high) for i, (name, e) in enumerate(found)]
        series = [Series("gap captured", tuple(points))]
        names = tuple(name for name, _ in found)
    else:
        names = ()
        series = []
        for name, part in arms(rows, rest):
            gains = sorted(float(gain) for gain in part["gain"].unique())
            marks = [(x, gap(part[part["gain"] == x])) for x in gains]
            points = [Point(x, e.value, f"{name} gain {x:.3g}", e.low, e.high) for x, e in marks]
            series.append(Series(name, tuple(points), joined=True))
    return Figure(
        "gap-captured",
        "Share of the gap to an informed cloud that is captured",
        "gain" if by_gain else "",
        "share of the gap captured",
        tuple(series),
        x_names=names,
        note="1: as the cloud with the note; 0: as the cloud without. Teacher-forced on "
        f"{rows['case'].nunique()} references; 90 % intervals over cases.",
    )


def answers_told(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """The other yardstick: how likely an informed cloud finds the answer, and what of it is
    personal."""
    if "upload_logp" not in rows:
        return None
    axes = others(varied, "network", "rtt_ms", "device", "cloud", "schedule", "placement")
    points = []
    for name, part in arms(_once(rows, axes), axes):
        tokens = part["answer_tokens"].to_numpy()
        personal = (part["upload_logp"] - part["cloud_logp"]).to_numpy()
        logp = ratio(part["upload_logp"].to_numpy(), tokens, groups=drawn(part))
        shows = ratio(personal, tokens, groups=drawn(part))
        told = f"{int(part['facts'].sum())} of {int(part['of_facts'].sum())} facts"
        points.append(
            Point(
                *(shows.value, logp.value, f"{name}: {told}", logp.low, logp.high),
                *(shows.low, shows.high),
            )
        )
    return Figure(
        "answers-told",
        "The answers themselves: how much is personal, and how likely it is",
        "personal evidence: log-likelihood with the note less that without, nats per token",
        "log-likelihood with the note, nats per token",
        tuple(Series(point.label, (point,)) for point in points),
        note="Greedy answers, judged by the cloud model with and without the note; 90 % intervals "
        "over cases. Upper right is better.",
    )


def sizes(rows: pd.DataFrame, varied: Sequence[str]) -> Figure | None:
    """Bytes of a prediction, the share that keeps its steered token, and the gap lost."""
    cells = []
    for name, part in arms(rows, others(varied)):
        tokens = part["tokens"].to_numpy()
        loss = ratio(
            (part["nll"] - part["full_nll"]).to_numpy(),
            (part["cloud_nll"] - part["upload_nll"]).to_numpy(),
            groups=drawn(part),
        )
        same = ratio(part["same"].to_numpy(), tokens, groups=drawn(part))
        sent = ratio(part["sent"].to_numpy(), tokens, groups=drawn(part))
        size = ratio((part["payload_bytes"] * tokens).to_numpy(), tokens, groups=drawn(part))
        share = size.value / float(part["full_bytes"].iloc[0])
        cells += [
            (name, "bytes a prediction", 0.0, written(size)),
            (name, "of full fp16", 0.0, f"{share:.2%}"),
            (name, "same steered token", 1 - same.value, written(same, percent=True)),
            (name, "reference tokens sent", 1 - sent.value, written(sent, percent=True)),
            (name, "of the gap lost", max(0.0, loss.value), written(loss, percent=True)),
        ]
        if "encode_us" in part:
            cells.append((name, "encode, µs", 0.0, f"{part['encode_us'].median():,.0f}"))
    return Figure(
        "codecs",
        "What each codec keeps",
        "",
        "",
        kind="grid",
        grid=tuple(cells),
        note="90 % intervals over cases; darker: more is lost. Tokens that were not sent keep the "
        "probability that the cloud gives them.",
    )


def _once(rows: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """A row for each arm and sample: over links and machines the figures are the same."""
    return rows.drop_duplicates([name for name in (*axes, "case", "seed") if name in rows])
