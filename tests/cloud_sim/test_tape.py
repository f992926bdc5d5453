"""Recorded answers: the same tokens without the models, and a clear word on leaving the path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from cloud_sim.net.catalogue import network
from cloud_sim.session import session
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.record import RecordingBranches, RecordingCloud, blank
from cloud_sim.sim.replay import Replay
from cloud_sim.sim.simulate import simulate
from cloud_sim.sim.tape import Tape
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.device import SteeredDevice
from edge_runtime.errors import SpecError, UsageError
from edge_runtime.policy import Scores
from edge_runtime.rules import method
from edge_runtime.sampling import Sampler
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.steering import Method
from edge_runtime.text import Prompts
from edge_runtime.transcript import Transcript
from tests.fakes import FakeCloud

VOCABULARY = 96
CODEC = "topk:12"
PROMPTS = Prompts((1, 2, 3, 4, 5), (1, 2), names=(3, 9, 11, 30))
QUERY = "what shall we eat"


class HashBranches:
    """`Branches` whose logits are a seeded function of the answer prefix."""

    vocabulary_size = VOCABULARY

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.heads = 0

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def past(self) -> int:
        return 5 + len(self.tokens)

    def prefill(self, aware: Sequence[int], agnostic: Sequence[int], *, note: int = 0) -> None:
        assert (tuple(aware), tuple(agnostic)) == (PROMPTS.aware, PROMPTS.agnostic)
        self.tokens = []

    def extend(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens

    def rollback(self, length: int) -> None:
        del self.tokens[length:]

    def logits(self, ids: np.ndarray | None = None, position: int | None = None) -> Scores:
        self.heads += 1
        draws = np.random.default_rng([7, *self.tokens[:position]]).normal(0, 2, (2, VOCABULARY))
        scores: Scores = draws.astype(np.float32)
        return scores if ids is None else scores[:, ids]


def real(rule: Method, sampler: Sampler, n: int = 40) -> Transcript:
    device = SteeredDevice(HashBranches(), PROMPTS, rule, sampler, (VOCABULARY - 1,))
    request = Request(QUERY, "", codec(CODEC), n)
    return run_direct(lockstep(device, request), session(FakeCloud(VOCABULARY)))


def record(rule: Method, sampler: Sampler, n: int = 40) -> tuple[Tape, Transcript]:
    cloud = FakeCloud(VOCABULARY)
    tape = blank(cloud, QUERY, CODEC)
    tape.names = PROMPTS.names
    branches = RecordingBranches(HashBranches(), tape)
    device = SteeredDevice(branches, PROMPTS, rule, sampler, (VOCABULARY - 1,))
    request = Request(QUERY, "", codec(CODEC), n)
    transcript = run_direct(lockstep(device, request), session(RecordingCloud(cloud, tape)))
    return tape, transcript


def replayed(
    replay: Replay, profile: str = "lte", schedule: Callable = lockstep, n: int = 40
) -> Transcript:
    up, down = network(profile).links(0)
    return simulate(
        schedule(replay.device(), replay.request(n)),
        replay.session(),
        uplink=up,
        downlink=down,
        device_costs=DeviceCosts(step_ms=10, head_ms=1, prefill_ms_per_token=1),
        cloud_costs=CloudCosts(step_ms=5, ms_per_token=0.1),
    )


RULES = [
    (method("light"), Sampler()),
    (method("costeer"), Sampler(temperature=1.0, seed=3)),
    (method("blend"), Sampler()),
    (method("names"), Sampler()),
]


@pytest.mark.parametrize(("rule", "sampler"), RULES, ids=["light", "sampled", "full-head", "names"])
@pytest.mark.parametrize("schedule", [lockstep, runahead])
def test_a_replay_emits_what_the_models_would(
    rule: Method, sampler: Sampler, schedule: Callable, tmp_path: Path
) -> None:
    tape, recorded = record(rule, sampler)
    assert recorded.tokens == real(rule, sampler).tokens
    assert tape.positions == len(recorded.tokens)
    tape.save(tmp_path / "answer.tape")
    again = Tape.load(tmp_path / "answer.tape")
    for profile in ("lte", "2g", "wifi-campus"):
        replay = Replay(again, rule, sampler)
        transcript = replayed(replay, profile, schedule)
        assert transcript.tokens == recorded.tokens
        assert [r.decision for r in transcript.records] == [r.decision for r in recorded.records]
        if schedule is lockstep:
            assert transcript.uplink_bytes == recorded.uplink_bytes
            assert replay.notes() == []


def test_the_decisions_of_one_rule_do_not_leak_into_another() -> None:
    tape, recorded = record(method("light"), Sampler())
    near = method("light", gain=0.47)  # near enough to stay on the path
    first, second = replayed(Replay(tape, method("light"))), replayed(Replay(tape, near))
    truth = real(near, Sampler())
    assert second.tokens == truth.tokens == recorded.tokens
    assert [r.decision for r in second.records] == [r.decision for r in truth.records]
    assert second.records[0].decision != first.records[0].decision


def test_leaving_the_path_is_refused_offline_and_runs_the_models_otherwise() -> None:
    tape, recorded = record(method("light"), Sampler())
    strong = method("costeer")
    truth = real(strong, Sampler())
    assert truth.tokens != recorded.tokens
    with pytest.raises(UsageError, match=r"^tape: the answer leaves the recorded path at position"):
        replayed(Replay(tape, strong))
    branches = HashBranches()
    replay = Replay(tape, strong, cloud=FakeCloud(VOCABULARY), branches=branches, prompts=PROMPTS)
    assert replayed(replay).tokens == truth.tokens
    assert replay.asked
    assert f"the models were asked for {replay.asked} positions" in replay.notes()[0]
    # What was asked is on the tape now: the same rule stays on it.
    heads, later = branches.heads, Replay(tape, strong)
    assert replayed(later).tokens == truth.tokens
    assert (branches.heads, later.notes()) == (heads, [])


def test_guesses_of_a_cloud_that_runs_ahead_are_counted() -> None:
    tape, recorded = record(method("costeer"), Sampler())
    replay = Replay(tape, method("costeer"))
    transcript = replayed(replay, schedule=runahead)
    assert transcript.counters["divergences"] > 0
    assert replay.stand_ins > 0
    assert "stood in for" in replay.notes()[0]
    assert Replay(tape, method("costeer")).tape.positions == len(recorded.tokens)


def test_another_query_or_codec_is_refused_and_a_broken_file_too(tmp_path: Path) -> None:
    tape, _ = record(method("light"), Sampler(), 5)
    replay = Replay(tape, method("light"))
    with pytest.raises(UsageError, match="another codec was recorded"):
        replay.codec_called("full")
    tape.query = "something else"
    with pytest.raises(SpecError, match="no such tape"):
        Tape.load(tmp_path / "none.tape")
    (tmp_path / "bad.tape").write_bytes(b"\x93\x01")
    with pytest.raises(SpecError, match="this is no tape"):
        Tape.load(tmp_path / "bad.tape")
