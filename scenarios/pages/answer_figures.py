"""One answer's figures as files: where its tokens' time went, and what steering did to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scenarios.figures.figure import Figure, Point, Series
from scenarios.pages import timeline

Tokens = Sequence[Mapping[str, Any]]
"""`scenarios.answers.token_row`."""


def spent(number: int, name: str, tokens: Tokens) -> Figure:
    """A bar a token after the first, cut into its parts."""
    rest = list(enumerate(tokens))[1:]
    series = []
    for part in timeline.used(tokens):
        marks = (
            Point(float(at + 1), token["parts"].get(part, 0.0), token["text"]) for at, token in rest
        )
        series.append(Series(timeline.PARTS[part][1], tuple(marks)))
    return Figure(
        f"timeline-{number}",
        f"Where each token's time went: {name}",
        "token",
        "ms",
        tuple(series),
        kind="bars",
    )


def moved(number: int, name: str, tokens: Tokens) -> Figure:
    """The answer; y is how far steering moved a token (nats), x whether it changed it."""
    changed = [bool(token["instead"]) for token in tokens]
    said = tuple(
        Point(float(other), token["moved"], token["text"])
        for token, other in zip(tokens, changed, strict=True)
    )
    cloud = tuple(
        Point(float(at), 0.0, token["instead"])
        for at, token in enumerate(tokens)
        if token["instead"]
    )
    return Figure(
        f"answer-{number}",
        f"What steering did: {name}\n"
        "orange: made likelier; blue: less likely; bold: the cloud alone would say another",
        "",
        "",
        (Series("answer", said), Series("instead, by position", cloud)),
        kind="text",
    )
