"""What a codec study puts through codecs: the predictions of both models along one reference.

whole   every token's log-probability, from the models: exact, and a pass of each model a case
kept    what `models.predictions` keeps on disk: no model pass once a case is there. Of the
        cloud the 1,024 best tokens and all that a rule can need; the rest of its mass is
        spread nearly evenly, so that sizes and encode times are nearly those of whole
        vectors: only `full8`, and `nucleus` beyond the kept tokens, look better than they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_runtime.steering import Method
from scenarios.datasets import Case
from scenarios.evaluate import predictions
from scenarios.methods import about_names, steered
from scenarios.models.pair import Lengths, Pair, along, both_along
from scenarios.models.predictions import CLOUD, Predictions, Store

Floats = npt.NDArray[np.floating]
Kind = Literal["whole", "kept"]

POSITIONS = 96
"""Of each reference, at most: whole vectors take 0.8 MB a position."""
_ENTROPY = 0xC0DEC
REST = -27.6
"""log 1e-12: nothing is left out of a whole vector."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """Predictions along one reference of n tokens."""

    tables: Sequence[Floats]
    """For each position [4, C + 1], rows as in `models.predictions`, the last column for all
    other tokens: what steering sees."""
    places: Sequence[int]
    """Where among its columns each position's own token is."""
    cloud: Floats
    """What would be sent, [n, V]."""
    ids: Sequence[npt.NDArray[np.integer]] = ()
    """For each position its columns' tokens [C]; none: a column for each token in order."""
    names: tuple[int, ...] = ()
    """Tokens of the note's names (`edge_runtime.names`)."""
    _steered: dict[Method, list[tuple[float, int]]] = field(default_factory=dict)

    @classmethod
    def whole(cls, tokens: Sequence[int], tables: Floats, names: tuple[int, ...] = ()) -> Vectors:
        """From tables [4, n, V + 1]."""
        cloud = np.ascontiguousarray(tables[CLOUD, :, :-1])
        rows = [tables[:, at] for at in range(len(tokens))]
        return cls(rows, list(tokens), cloud, names=names)

    @classmethod
    def kept(cls, found: Predictions, size: int) -> Vectors:
        """From what was kept of predictions over `size` tokens."""
        tables, places, columns = [], [], []
        cloud = np.empty((len(found), size), np.float32)
        # Nearly evenly: equal numbers would take a codec's partition longer than any real ones.
        spread = np.random.default_rng(np.random.SeedSequence(_ENTROPY)).uniform(0.75, 1, size)
        for at in range(len(found)):
            ids, table = found.position(at)
            whole = spread.sum() - spread[ids[:-1]].sum()
            cloud[at] = table[CLOUD, -1] + np.log(spread / max(whole, 1e-9))
            cloud[at, ids[:-1]] = table[CLOUD, :-1]
            tables.append(table)
            places.append(found.target(at))
            columns.append(ids)
        return cls(tables, places, cloud, columns, found.names)

    def __len__(self) -> int:
        return len(self.places)

    def nll(self, row: int) -> float:
        """Of the reference under one of the four, nats, summed."""
        pairs = zip(self.tables, self.places, strict=True)
        return -float(sum(np.float64(table[row, place]) for table, place in pairs))

    def about(self, rule: Method, at: int) -> Method:
        """`rule` with the note's names, as columns of position `at`'s table."""
        return about_names(rule, self.names, self.ids[at] if self.ids else None)

    def steered(self, rule: Method) -> list[tuple[float, int]]:
        """For each position, where nothing is lost: log policy of its token, and the best one."""
        if rule not in self._steered:
            found = []
            for at, place in enumerate(self.places):
                policy = steered(self.about(rule, at), self.tables[at], at)
                found.append((float(policy[place]), int(np.argmax(policy[:-1]))))
            self._steered[rule] = found
        return self._steered[rule]


def vectors(pair: Pair, case: Case, lengths: Lengths, kind: Kind, store: Store) -> Vectors:
    """Both models along the case's reference."""
    case = pair.cut(case, lengths)
    if kind == "kept":
        found = predictions(case, pair, lengths, store)
        return Vectors.kept(found, pair.cloud.vocabulary_size)
    positions = min(POSITIONS, lengths.reference_tokens)
    tokens = pair.reference(case, Lengths(reference_tokens=positions))[:positions]
    found_tables = [along(pair.cloud, message, tokens) for message in (case.query, case.aware)]
    found_tables += both_along(pair.branches, pair.prompts(case), tokens)
    size = min(table.shape[1] for table in found_tables)
    tables = np.full((len(found_tables), len(tokens), size + 1), REST, np.float32)
    for row, table in enumerate(found_tables):
        tables[row, :, :size] = table[:, :size]
    return Vectors.whole(tokens, tables, pair.names(case))
