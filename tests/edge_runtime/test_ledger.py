"""The ledger: bits against their definition, and the bound against every answer there is."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_sim.session import session
from edge_runtime.candidates import CandidateSet, codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.ledger import bound_bits, ledger
from edge_runtime.rules import method
from edge_runtime.sampling import GREEDY, Sampler
from edge_runtime.schedules.draft import draft
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.steering import Method, policy
from tests.fakes import FakeCloud, FakeDevice

REQUEST = Request("q", "", codec("full"), 30)


def test_bits_are_the_log_likelihood_ratio_of_the_answer() -> None:
    device = FakeDevice(32, gain=1.0, temperature=1.0, end_ids=[])
    transcript = run_direct(lockstep(device, REQUEST), session(FakeCloud(32)))
    account = ledger(transcript, method("light"), Sampler(1.0))
    expected = 0.0
    for record in transcript.records:
        assert record.decision is not None
        expected += record.decision.policy_logprob - record.decision.base_logprob
    assert account.bits == pytest.approx(expected / math.log(2))
    assert account.bits > 1
    assert account.bytes_up == transcript.uplink_bytes > 0
    assert len(account.token_bits) == account.tokens == 30


def test_an_unsteered_answer_tells_nothing() -> None:
    device = FakeDevice(32, gain=0.0, end_ids=[])
    transcript = run_direct(lockstep(device, REQUEST), session(FakeCloud(32)))
    assert ledger(transcript, method("cloud-only"), GREEDY).bits == pytest.approx(0, abs=0.01)
    assert bound_bits(method("cloud-only"), GREEDY, 30) == 0


def test_drafts_that_were_not_kept_count() -> None:
    device = FakeDevice(32, gain=0.5, temperature=1.0, end_ids=[])
    transcript = run_direct(draft(device, REQUEST, draft_tokens=4), session(FakeCloud(32)))
    account = ledger(transcript, method("light"), Sampler(1.0))
    assert transcript.counters["accepted"] < transcript.counters["drafted"]
    assert account.draft_bits != 0
    assert account.bits == pytest.approx(sum(account.token_bits) + account.draft_bits)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    gain=st.sampled_from([0.3, 1.0, 2.0]),
    clip=st.sampled_from([0.2, 1.0]),
    temperature=st.sampled_from([0.7, 1.0]),
)
def test_no_two_contexts_are_further_apart_than_the_bound(
    seed: int, gain: float, clip: float, temperature: float
) -> None:
    """Over all answers of two tokens: the worst ratio between any two contexts' policies."""
    rng = np.random.default_rng(seed)
    size, rule = 4, Method("clipped", gain, clip=clip)
    base = rng.normal(size=(1 + size, size))
    base -= np.log(np.exp(base).sum(-1, keepdims=True))
    ids = np.arange(size)

    def answers(context: int) -> np.ndarray:
        scores = np.random.default_rng([seed, context]).normal(0, 5, (1 + size, 2, size))
        steered = [
            policy(rule, CandidateSet(ids, base[at].astype(np.float32)), scores[at]).policy
            / temperature
            for at in range(1 + size)
        ]
        logs = [x - np.log(np.exp(x).sum()) for x in steered]
        return np.array([logs[0][a] + logs[1 + a][b] for a, b in itertools.product(ids, ids)])

    bound = bound_bits(rule, Sampler(temperature), 2)
    assert bound is not None
    worst = np.abs(answers(1) - answers(2)).max() / math.log(2)
    assert worst <= bound + 1e-6


@pytest.mark.parametrize(
    ("rule", "sampler"),
    [
        (Method("m", 1.0), Sampler(1.0)),
        (Method("m", 1.0, clip=1.0), GREEDY),
        (Method("m", 1.0, clip=1.0), Sampler(1.0, 0.9)),
        (replace(method("blend"), clip=1.0), Sampler(1.0)),
        (method("upload"), Sampler(1.0)),
    ],
)
def test_where_there_is_no_bound_none_is_claimed(rule: Method, sampler: Sampler) -> None:
    assert bound_bits(rule, sampler, 10) is None
