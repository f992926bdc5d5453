"""Gates, deadlines and faults: what they change, and that they change nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_sim.model import Logprobs, ScoreRequest
from cloud_sim.net.catalogue import network
from cloud_sim.session import Shelf, session
from cloud_sim.session.cache import Cache
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.simulate import simulate
from edge_runtime.candidates import CandidateSet, codec
from edge_runtime.connections.direct import Faults, run_direct
from edge_runtime.errors import ConnectionFailed, UsageError
from edge_runtime.schedules.actions import Arrival, Receive, Schedule, Timeout
from edge_runtime.schedules.answer import Answer
from edge_runtime.schedules.deadlines import Deadline
from edge_runtime.schedules.draft import draft
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.gates import Gate, gate
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.transcript import Transcript
from tests.fakes import FakeCloud, FakeDevice

REQUEST = Request("q", "", codec("full"), 60)


def sure(*probabilities: float) -> list[CandidateSet]:
    ids = np.arange(2)
    return [CandidateSet(ids, np.log([p, 1 - p]).astype(np.float32)) for p in probabilities]


def test_the_latch_closes_for_good_after_three_confident_positions() -> None:
    latch = gate("latch")
    steered = [latch.steers(base) for base in sure(0.95, 0.95, 0.6, 0.95, 0.95, 0.95, 0.5, 0.5)]
    assert steered == [True] * 6 + [False, False]


def test_the_other_gate_opens_again_at_once() -> None:
    reopen = gate("reopen")
    steered = [reopen.steers(base) for base in sure(0.95, 0.95, 0.95, 0.95, 0.95, 0.6, 0.95)]
    assert steered == [True, True, True, False, False, True, True]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="Did you mean reopen"):
        gate("reopn")
    with pytest.raises(UsageError, match="needs a deadline to be late for"):
        Deadline(0, "device")
    with pytest.raises(UsageError, match=r"late tokens are waited for \(got 250\)\. Say what"):
        Deadline(250)
    with pytest.raises(UsageError, match="Did you mean device"):
        Deadline(10, "devise")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="drafts leave nothing for a gate to save"):
        next(draft(FakeDevice(), REQUEST, gate=Gate("latch")))
    with pytest.raises(UsageError, match="drafts wait for the cloud"):
        next(draft(FakeDevice(), REQUEST, deadline=Deadline(10, "device")))


def gated_oracle(cloud: FakeCloud, device: FakeDevice, barrier: Gate) -> list[int]:
    """Lockstep by hand: the cloud's best where the gate is closed, else the steered best."""
    tokens: list[int] = []
    device.prefill()
    for position in range(REQUEST.max_tokens):
        sequence = cloud.open()
        whole = (*cloud.prompt("q"), *tokens)
        (logprobs,) = cloud.score([ScoreRequest(cloud, sequence, 0, whole)])
        cloud.close(sequence)
        base = REQUEST.codec.decode(REQUEST.codec.encode(logprobs[-1]))
        if barrier.steers(base):
            tokens.append(device.choose(position, base, device.head(base)).token)
        else:
            tokens.append(base.best)
        device.extend(tokens[-1:])
    return tokens


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(["latch", "reopen"]),
    branches=st.sampled_from([0, 1, 4]),
    threshold=st.sampled_from([0.3, 0.6, 0.9]),
)
def test_gated_answers_and_the_passes_they_save(
    seed: int, name: str, branches: int, threshold: float
) -> None:
    def device() -> FakeDevice:
        return FakeDevice(32, gain=1.0, end_ids=[])

    cloud, used = FakeCloud(32, seed), device()
    barrier = gate(name, threshold, 2)
    schedule = (
        runahead(used, REQUEST, branches=branches, gate=barrier)
        if branches
        else lockstep(used, REQUEST, gate=barrier)
    )
    transcript = run_direct(schedule, session(cloud), faults=Faults(seed=seed, delay_ticks=20))
    assert transcript.tokens == gated_oracle(cloud, device(), gate(name, threshold, 2))
    gated = sum(r.decision is not None and r.decision.source == "cloud" for r in transcript.records)
    assert transcript.counters["gated"] == gated
    assert used.heads == 60 - gated


def answer(
    make: Callable[..., Schedule], deadline: Deadline, line: Faults, device: FakeDevice
) -> Any:
    cloud = FakeCloud(32)
    schedule = make(device, REQUEST, deadline=deadline)
    return run_direct(schedule, lambda: session(cloud), faults=line)


@pytest.mark.parametrize("make", [lockstep, runahead])
def test_a_late_cloud_is_not_waited_for(make: Callable[..., Schedule]) -> None:
    """Tokens go on at the deadline, each from somewhere; the cloud catches up with the answer."""
    device = FakeDevice(32, gain=1.0, end_ids=[])
    line = Faults(seed=1, delay_ticks=300)
    late = answer(make, Deadline(40, "device"), line, device)
    sources = [record.decision.source for record in late.records]
    assert len(late.tokens) == 60
    assert late.counters["late"] == sources.count("device") > 0
    assert "steered" in sources, "the cloud was heard again"
    waits = np.diff([record.at_ms for record in late.records])
    assert waits.max() < 100, "nobody waited as long as the line takes"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), make=st.sampled_from([lockstep, runahead]))
def test_a_late_cloud_under_cuts_and_delays_never_stops_the_answer(seed: int, make: Any) -> None:
    line = Faults(seed=seed, delay_ticks=80, cut=0.05, shuffle=True, duplicate=0.1, reorder=True)
    transcript = answer(make, Deadline(20, "device"), line, FakeDevice(32, end_ids=[]))
    assert len(transcript.tokens) == 60


def test_without_lateness_a_deadline_changes_nothing() -> None:
    line = Faults(seed=1)
    plain = answer(lockstep, Deadline(), line, FakeDevice(32))
    patient = answer(lockstep, Deadline(10**6, "device"), line, FakeDevice(32))
    assert patient.tokens == plain.tokens
    assert patient.counters["late"] == 0


def test_a_slow_device_lets_the_clouds_token_pass() -> None:
    """Each action is a tick, so a steered token costs the device a few; fewer are allowed."""
    device = FakeDevice(32, gain=1.8, end_ids=[])
    late = answer(runahead, Deadline(3, "cloud"), Faults(), device)
    sources = [record.decision.source for record in late.records]
    assert late.counters["late"] == sources.count("cloud") > 10
    assert sources.count("steered") > 3, "it is tried again now and then"
    assert (
        answer(runahead, Deadline(10**6, "cloud"), Faults(), FakeDevice(32)).counters["late"] == 0
    )


@pytest.mark.parametrize("make", [lockstep, runahead])
def test_a_slow_device_is_not_waited_for(make: Callable[..., Schedule]) -> None:
    """Tokens that it lets pass cost it nothing at once: it catches up in chunks, and what it has
    not seen of the answer is what it is told before it steers again."""

    def speed(deadline: Deadline) -> tuple[Transcript, FakeDevice]:
        device = FakeDevice(32, gain=1.0, end_ids=[])
        up, down = network("lte").with_rtt(20).links(0)
        made = simulate(
            make(device, REQUEST, deadline=deadline),
            session(FakeCloud(32)),
            uplink=up,
            downlink=down,
            device_costs=DeviceCosts(step_ms=100.0),
            cloud_costs=CloudCosts(step_ms=10.0),
        )
        return made, device

    slow, _ = speed(Deadline())
    quick, device = speed(Deadline(30, "cloud"))
    sources = [r.decision.source if r.decision else "" for r in quick.records]
    assert sources.count("steered") > 3
    assert quick.tokens_per_s > 2 * slow.tokens_per_s
    assert device.steps < 60 - 30


def test_one_hold_up_is_soon_forgotten() -> None:
    deadline = Deadline(50, "cloud")
    deadline.steered(3.6e6)
    skipped = 0
    while deadline.device_too_slow:
        deadline.skipped()
        skipped += 1
    assert 0 < skipped < 10


def test_a_deadline_that_has_passed_has_passed_whatever_the_clock_says() -> None:
    """It is set back by an hour while the device waits for a cloud that says nothing."""
    answer = Answer(FakeDevice(32), REQUEST, deadline=Deadline(100, "device"), emitted=[1])
    waiting = answer.prediction()
    assert next(waiting) == Receive(0.0)
    assert waiting.send(Timeout(5000.0)) == Receive(100.0)
    assert waiting.send(Timeout(5100.0 - 3.6e6)) == Receive(0.0)
    with pytest.raises(StopIteration) as stop:
        waiting.send(Timeout(5100.0 - 3.6e6))
    assert stop.value.value is None


@pytest.mark.parametrize("make", [lockstep, runahead, draft])
def test_a_line_cut_at_any_frame_loses_and_repeats_nothing(make: Callable[..., Schedule]) -> None:
    cloud, request = FakeCloud(32), Request("q", "", codec("topk:8"), 16)

    def device() -> FakeDevice:
        return FakeDevice(32, gain=1.0, end_ids=[])

    plain = run_direct(make(device(), request), session(cloud))
    frames = plain.uplink_frames + plain.downlink_frames
    for frame in range(frames):
        for shelf in (None, Shelf()):
            cut = run_direct(
                make(device(), request),
                lambda shelf=shelf: session(cloud, shelf=shelf),  # type: ignore[misc]
                faults=Faults(cut_at=frozenset([frame, frame + 5])),
            )
            assert cut.tokens == plain.tokens, f"cut at frame {frame}"
            assert cut.finish == plain.finish


class CountingCloud(FakeCloud):
    """Counts the tokens it is fed."""

    fed = 0

    def score(self, requests: Sequence[ScoreRequest]) -> list[Logprobs]:
        self.fed += sum(len(request.tokens) for request in requests)
        return super().score(requests)


def test_a_resumed_session_finds_its_cache() -> None:
    fed = {}
    for name, shelf in (("without", None), ("with", Shelf())):
        cloud = CountingCloud(32)
        run_direct(
            lockstep(FakeDevice(32, end_ids=[]), REQUEST),
            lambda cloud=cloud, shelf=shelf: session(cloud, shelf=shelf),  # type: ignore[misc]
            faults=Faults(cut_at=frozenset([60])),
        )
        fed[name] = cloud.fed
    assert fed["without"] >= fed["with"] + 25, "prompt and answer were not computed again"


def test_the_shelf_keeps_the_newest_and_frees_the_rest() -> None:
    cloud, shelf = FakeCloud(32), Shelf(2)
    for number in range(5):
        schedule = lockstep(FakeDevice(32), REQUEST)
        talk = session(cloud, new_id=lambda number=number: str(number), shelf=shelf)  # type: ignore[misc]
        opening = next(schedule)
        next(talk)
        talk.send(Arrival(opening.frame, 0.0))  # type: ignore[union-attr]
        talk.close()
    assert len(shelf) == len(cloud.open_sequences) == 2
    assert shelf.take("0") is None
    kept = shelf.take("4")
    assert kept is not None
    kept.close()
    shelf.clear()
    assert not cloud.open_sequences


def test_a_cache_that_nobody_comes_back_for_is_freed() -> None:
    cloud, shelf = FakeCloud(32), Shelf()
    shelf.put("first", Cache.empty(cloud))
    shelf.age()
    shelf.put("second", Cache.empty(cloud))
    shelf.put("third", Cache.empty(cloud))
    shelf.age()
    assert shelf.take("first") is None
    third = shelf.take("third")
    assert third is not None
    shelf.put("third", third)  # it came, and its connection broke again
    shelf.age()
    assert len(shelf) == len(cloud.open_sequences) == 1
    shelf.age()
    assert not cloud.open_sequences


def test_a_shelf_for_none_keeps_none() -> None:
    cloud, shelf = FakeCloud(32), Shelf(0)
    shelf.put("first", Cache.empty(cloud))
    assert len(shelf) == len(cloud.open_sequences) == 0


def test_a_server_that_comes_back_with_another_model_is_refused() -> None:
    clouds = iter([FakeCloud(32, 0), FakeCloud(32, 1)])
    with pytest.raises(ConnectionFailed, match="came back with another model"):
        run_direct(
            lockstep(FakeDevice(32, end_ids=[]), REQUEST),
            lambda: session(next(clouds)),
            faults=Faults(cut_at=frozenset([20])),
        )
