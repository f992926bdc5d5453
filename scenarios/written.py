"""Whole greedy answers of each method, made in memory, and what is measured of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cloud_sim.session import session
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.device import CloudOnlyDevice, SteeredDevice
from edge_runtime.sampling import GREEDY
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.steering import Method
from scenarios.datasets import Case
from scenarios.metrics import distinct, facts_of, facts_told, rouge
from scenarios.pair import Pair, along


@dataclass(frozen=True, slots=True)
class Answer:
    """One method's answer to one case; logarithms are summed over `tokens`, natural."""

    text: str
    tokens: int
    upload_logp: float
    """Under the cloud model WITH the note."""
    cloud_logp: float
    """Under the cloud model without it; the difference is the personal evidence."""
    diverged: int
    """Tokens that are not the cloud's best."""
    facts: int
    """Of the case's facts, those told."""
    of_facts: int
    note_facts: int
    """Of all names and numbers of the note, those told."""
    rouge1: float
    rougeL: float
    distinct2: float
    downlink_bytes: int = 0

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


def generate(rule: Method, case: Case, pair: Pair, tokens: int, codec_name: str) -> Answer:
    """The greedy answer of `rule` to `case`, at most `tokens` long, and its measures.

    `upload` sends the note as part of the query, which breaks privacy: an upper bound.
    """
    ends = set(pair.cloud.end_ids)
    informed = rule.base == "informed-cloud"
    device: CloudOnlyDevice | SteeredDevice
    if rule.steers:
        device = SteeredDevice(pair.branches, pair.prompts(case), rule, GREEDY, ends)
    else:
        device = CloudOnlyDevice(GREEDY, ends, rule)
    query = case.aware if informed else case.query
    request = Request(query, "", codec(codec_name), tokens)
    transcript = run_direct(lockstep(device, request), session(pair.cloud), method=rule.name)
    ids = [record.token for record in transcript.records]
    diverged = sum(bool(one.decision and one.decision.diverged) for one in transcript.records)
    text = pair.text.decode([token for token in ids if token not in ends])
    measured = measure(case, pair, ids, text, diverged)
    return dataclasses.replace(measured, downlink_bytes=transcript.downlink_bytes)


def measure(case: Case, pair: Pair, ids: Sequence[int], text: str, diverged: int) -> Answer:
    """What is measured of the answer `ids`, whoever made it."""
    upload, cloud = (
        float(sum(row[token] for row, token in zip(along(pair.cloud, m, ids), ids, strict=True)))
        for m in (case.aware, case.query)
    )
    facts = case.facts or facts_of(case.reference, case.context, case.query)
    note = facts_of(case.context, case.context, case.query)
    rouge1, rouge_l = rouge(text, case.reference) if case.reference else (0.0, 0.0)
    return Answer(
        text,
        len(ids),
        upload,
        cloud,
        diverged,
        facts_told(text, facts),
        len(facts),
        facts_told(text, note),
        rouge1,
        rouge_l,
        distinct(text.lower().split(), 2),
    )
