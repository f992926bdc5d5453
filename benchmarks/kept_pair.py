"""A real pair along a data set's references, from the store of `costeer evaluate`.

What the store holds for the same models and options is not computed again. Whoever measures
something of a pair's predictions takes its options from here, so that they are evaluate's.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios.datasets import Case, read
from scenarios.evaluate import predictions
from scenarios.metrics import Estimate
from scenarios.models.pair import Lengths, Pair, open_pair
from scenarios.models.predictions import Predictions, Store


def parser(about: str | None, methods: str) -> argparse.ArgumentParser:
    """The options that name pair, data and store; `methods` are compared unless told otherwise."""
    options = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("data", type=Path)
    options.add_argument("--dataset", default="cogenesis")
    options.add_argument("--device", required=True, help="float:MODEL")
    options.add_argument("--cloud", required=True)
    options.add_argument("--cloud-dtype", default="float32")
    options.add_argument("--cache", type=Path, required=True)
    options.add_argument("--methods", default=methods)
    options.add_argument("--limit", type=int, default=40)
    options.add_argument("--note-tokens", type=int, default=600)
    options.add_argument("--reference-tokens", type=int, default=120)
    return options


@dataclass(frozen=True, slots=True)
class KeptPair:
    """The pair, its cases (cut), and where what it says of them is kept."""

    pair: Pair
    cases: list[Case]
    lengths: Lengths
    store: Store

    def predictions(self) -> list[Predictions]:
        """What the pair says along the reference of each case; progress on standard error."""
        kept = []
        for number, case in enumerate(self.cases, 1):
            print(f"references: {number} of {len(self.cases)}", file=sys.stderr, flush=True)
            kept.append(predictions(case, self.pair, self.lengths, self.store))
        return kept


def opened(asked: argparse.Namespace) -> KeptPair:
    """What the options of `parser` ask for."""
    lengths = Lengths(asked.note_tokens, asked.reference_tokens)
    pair = open_pair(asked.device, asked.cloud, cloud_dtype=asked.cloud_dtype)
    cases = [pair.cut(c, lengths) for c in read(asked.dataset, asked.data, asked.limit)]
    return KeptPair(pair, cases, lengths, Store(asked.cache))


def plain(value: Any) -> Any:
    """A table of figures for JSON: estimates with their intervals."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value.dict() if isinstance(value, Estimate) else value
