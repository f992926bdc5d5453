"""What a small model says along an answer in the cloud's tokens, when it speaks others.

`map`: its predictions on the tokens that both have; on others it has no opinion, D = 0.
`byte`: every byte of the answer is a position of its own, with the masses of all next bytes in
each model; a token's probability is the product over its bytes and its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edge_runtime.alignment import END, LEAST, ByteTree, Opinion
from edge_runtime.policy import Scores
from edge_runtime.steering import log_softmax
from edge_runtime.translated import TranslatedDevice
from scenarios.models.predictions import CLOUD, LogTable, Predictions, gather

SYMBOLS = END + 1
_NO_OPINION = -30.0


def rows_along(device: TranslatedDevice, answer: Sequence[int]) -> Iterator[Scores]:
    """Before each token of `answer` (the cloud's ids): the small model's two rows [2, V]."""
    device.prefill()
    for at, token in enumerate(answer):
        yield device.branches.logits()
        if at + 1 < len(answer):
            device.extend([token])


def mapped(device: TranslatedDevice, answer: Sequence[int], size: int) -> list[LogTable]:
    """Aware and agnostic log-probabilities [n, size] over the cloud's tokens, among those shared.

    The others get one and the same small value in both rows, so that D = 0 there.
    """
    to_ours = device.token_map.to_ours[:size]
    shared = np.flatnonzero(to_ours >= 0)
    tables = np.full((2, len(answer), size), _NO_OPINION, np.float32)
    for at, rows in enumerate(rows_along(device, answer)):
        tables[:, at, shared] = log_softmax(rows[:, to_ours[shared]].astype(np.float64))
    return list(tables)


def by_bytes(
    device: TranslatedDevice, answer: Sequence[int], cloud: LogTable, upload: LogTable
) -> Predictions:
    """Predictions whose positions are the bytes of `answer`, and the end of each of its tokens.

    `cloud`, `upload`: log-probabilities [n, V] over the cloud's tokens. Where only one symbol can
    follow there is nothing to predict, and no position.
    """
    words = device.words
    theirs = ByteTree(words, sorted(device.end_ids))
    tables: list[list[LogTable]] = []
    symbols: list[int] = []
    for at, rows in enumerate(rows_along(device, answer)):
        word = b"" if answer[at] in device.end_ids else words[answer[at]]
        if word is None:
            continue
        own = log_softmax(rows.astype(np.float64))
        asked = [Opinion.of(theirs, table[at][: len(words)]) for table in (cloud, upload)]
        asked += [Opinion.of(device.tree, row) for row in own]
        for depth, symbol in enumerate((*word, END)):
            masses = [opinion.next(word[:depth]) for opinion in asked]
            able = masses[CLOUD] > 0
            able[symbol] = True
            if np.count_nonzero(able) > 1:
                tables.append([_logs(mass, able) for mass in masses])
                symbols.append(symbol)
    stacked = [np.stack(table) for table in zip(*tables, strict=True)]
    return gather(stacked, symbols, keep={CLOUD: SYMBOLS})


def _logs(mass: LogTable, able: np.ndarray) -> LogTable:
    """Log-probabilities [257] among the symbols that are able to follow."""
    found = np.full(SYMBOLS, 2 * np.log(LEAST))
    found[able] = np.log(np.maximum(mass[able], LEAST))
    logs: LogTable = log_softmax(found)
    return logs
