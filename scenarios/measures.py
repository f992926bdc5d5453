"""What a cell of a study measures: times in virtual time, quality without a network, a fleet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from scenarios.models import Models
from scenarios.run import run
from scenarios.spec import Cell


def run_cells(cells: Sequence[Cell], models: Models) -> Iterator[dict[str, Any]]:
    """Each cell's result as plain values: `row`, and `tokens` where there is an answer."""
    for result in run(cells, models):
        yield {"row": result.row, "tokens": result.tokens}
