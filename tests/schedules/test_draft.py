"""Drafts: lockstep's tokens when greedy, lockstep's distribution when sampling."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cloud_sim.session import Limits, session
from edge_runtime import wire
from edge_runtime.candidates import CandidateSet, codec
from edge_runtime.connections.direct import Faults, run_direct
from edge_runtime.errors import Refused
from edge_runtime.schedules.actions import Arrival, Compute, Receive, Send
from edge_runtime.schedules.draft import Draft, Drafter, accept_or_resample, draft
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from tests.fakes import FakeCloud, FakeDevice
from tests.schedules.test_runahead import faults


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.sampled_from([2, 5, 32]),
    name=st.sampled_from(["full", "topk:1", "topk:4"]),
    gain=st.sampled_from([0.0, 0.3, 1.8]),
    end_ids=st.sampled_from([None, []]),
    n=st.integers(1, 40),
    tokens=st.sampled_from([0, 1, 4, 12]),
    line=faults,
)
def test_greedy_drafts_are_lockstep(
    seed: int,
    vocabulary: int,
    name: str,
    gain: float,
    end_ids: list[int] | None,
    n: int,
    tokens: int,
    line: Faults,
) -> None:
    cloud = FakeCloud(vocabulary, seed)
    request = Request("a query", "", codec(name), n)

    def device() -> FakeDevice:
        return FakeDevice(vocabulary, gain=gain, end_ids=end_ids)

    plain = run_direct(lockstep(device(), request), session(cloud))
    drafted = run_direct(
        draft(device(), request, draft_tokens=tokens),
        lambda: session(cloud),
        faults=line,
        max_actions=200_000,
    )
    assert drafted.tokens == plain.tokens
    assert drafted.finish == plain.finish
    assert not cloud.open_sequences


def test_drafts_that_agree_save_round_trips() -> None:
    cloud = FakeCloud(32, spread=0.1)  # the cloud has no opinion, so the aware policy is followed
    cloud.end_ids = ()
    request = Request("q", "", codec("full"), 100)

    def device() -> FakeDevice:
        return FakeDevice(32, gain=1.0, end_ids=[], spread=4.0)

    plain = run_direct(lockstep(device(), request), session(cloud))
    drafted = run_direct(draft(device(), request, draft_tokens=4), session(cloud))
    assert drafted.tokens == plain.tokens
    assert drafted.counters["accepted"] > 0.4 * drafted.counters["drafted"]
    assert drafted.round_trips < 0.6 * plain.round_trips
    kept_share = drafted.counters["wasted_cloud_tokens"] / drafted.counters["scored_cloud_tokens"]
    assert 0 < kept_share < 0.6


def test_sampled_drafts_have_locksteps_distribution() -> None:
    """Chi-square over all answers of 3 tokens from 3: the same counts, up to chance."""
    cloud = FakeCloud(3, 5, spread=1.0)
    cloud.end_ids = ()
    request = Request("q", "", codec("full"), 3)

    def answers(draft_tokens: int) -> Counter[tuple[int, ...]]:
        counts: Counter[tuple[int, ...]] = Counter()
        for seed in range(1500):
            device = FakeDevice(3, gain=1.0, temperature=1.0, seed=seed, end_ids=[], spread=1.5)
            schedule = (
                draft(device, request, draft_tokens=draft_tokens)
                if draft_tokens
                else lockstep(device, request)
            )
            counts[tuple(run_direct(schedule, session(cloud)).tokens)] += 1
        return counts

    plain = answers(0)
    for drafted in (answers(1), answers(3)):
        kinds = [kind for kind in plain | drafted if plain[kind] + drafted[kind] >= 10]
        table = np.array([[plain[kind] for kind in kinds], [drafted[kind] for kind in kinds]])
        assert len(kinds) > 10
        assert stats.chi2_contingency(table).pvalue > 1e-3


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_accept_or_resample_draws_from_the_policy(seed: int) -> None:
    """Integrated over the draft and both uniforms on a grid, the result is p."""
    rng = np.random.default_rng(seed)
    ids = np.arange(4)
    p, q = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4))
    grid = (np.arange(100) + 0.5) / 100
    got = np.zeros(4)
    for token in range(4):
        guess = Draft(token, CandidateSet(ids, np.log(q)))
        kept = (
            np.mean(
                [
                    accept_or_resample(CandidateSet(ids, np.log(p)), guess, u, 0.5) == token
                    for u in grid
                ]
            )
            if p[token] >= q[token]
            else p[token] / q[token]
        )
        got[token] += q[token] * kept
        if kept < 1:
            for u in grid:
                token_again = accept_or_resample(CandidateSet(ids, np.log(p)), guess, 1.0, u)
                got[token_again] += q[token] * (1 - kept) / len(grid)
    np.testing.assert_allclose(got, p, atol=0.02)


def test_the_number_of_drafts_follows_acceptance_and_distance() -> None:
    near, far, poor = Drafter(), Drafter(), Drafter()
    near.step_ms, near.wait_ms = 20.0, 10.0
    far.step_ms, far.wait_ms = 20.0, 300.0
    poor.step_ms, poor.wait_ms = 20.0, 300.0
    for _ in range(50):
        poor.judged(poor.source, False)
    assert near.count() < far.count()
    assert poor.count() < far.count()
    assert Drafter(7).count() == 7


def test_a_drafter_that_was_held_up_once_tries_again() -> None:
    """One step that took ten seconds must not turn the rest of the answer into lockstep."""
    drafter = Drafter()
    drafter.step_ms, drafter.wait_ms = 10_000.0, 60.0
    counts = [drafter.count() for _ in range(24)]
    assert counts == [0] * 7 + [1] + [0] * 7 + [1] + [0] * 7 + [1]
    drafter.step_ms = 10.0
    assert drafter.count() > 1


def test_the_cloud_refuses_too_many_drafts() -> None:
    device = FakeDevice(32, end_ids=[])
    with pytest.raises(Refused, match="more tokens at once than this server scores"):
        run_direct(
            draft(device, Request("q", "", codec("full"), 30), draft_tokens=9),
            session(FakeCloud(32), Limits(draft_tokens=4)),
        )


def test_drafts_that_overtake_the_opening_are_scored_when_it_has_come() -> None:
    opening = wire.Open(wire.PROTOCOL, "q", "", "topk:4", "score", 8)
    drafts = wire.Extend(1, 0, (3, 1))

    def answered(frames: list[wire.Up]) -> list[wire.Down]:
        """What a session sends until it wants more than there is."""
        coming, moves = list(frames), session(FakeCloud(32), new_id=lambda: "id")
        said: list[wire.Down] = []
        action = next(moves)
        while not isinstance(action, Receive) or coming:
            if isinstance(action, Receive):
                action = moves.send(Arrival(coming.pop(0), 0.0, bool(coming)))
            elif isinstance(action, Compute):
                action = moves.send(action.work())
            else:
                assert isinstance(action, Send)
                assert isinstance(action.frame, wire.Down)
                said.append(action.frame)
                action = moves.send(0.0)
        moves.close()
        return said

    in_order = answered([opening, drafts])
    assert isinstance(in_order[-1], wire.Scores)
    assert answered([drafts, opening]) == in_order
