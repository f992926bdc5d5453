"""The governor: the declared order, recovery, and that a governed answer is still an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cloud_sim.session import session
from edge_runtime.assembly import LastResort, Plan, device_for
from edge_runtime.branches import TwoBranches
from edge_runtime.budget import Budget, need
from edge_runtime.bundle import Bundle
from edge_runtime.candidates import CandidateSet, codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.device import SteeredDevice
from edge_runtime.errors import BudgetExceeded, UsageError
from edge_runtime.governor import (
    CLOUD_ONLY,
    FEW,
    LEVELS,
    GovernedDevice,
    Governor,
    alone_spans,
    levels_for,
    narrowed,
)
from edge_runtime.policy import Decision
from edge_runtime.rules import PRESETS
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.shorten import shorten
from edge_runtime.text import Prompts, Text
from edge_runtime.transcript import Parts, TokenRecord
from tests.fakes import FakeCloud

WINDOW = 16


class Clock:
    """Seconds that a test decides: each reading is `step` later than the one before."""

    def __init__(self) -> None:
        self.now, self.step = 0.0, 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def governor(method: str = "blend", allow: bool = True, **budget: float) -> Governor:
    return Governor(Budget(**budget), levels_for(PRESETS[method], allow))


def feed(g: Governor, milliseconds: float, windows: int = 1) -> list[str]:
    """The levels after each window of equal token times."""
    seen = []
    for _ in range(windows):
        for position in range(WINDOW):
            g.token(position, milliseconds)
        seen.append(LEVELS[g.level])
    return seen


def test_it_degrades_in_the_declared_order() -> None:
    g = governor(token_ms=10)
    assert feed(g, 50, 5) == [
        "candidate head",
        "fewer candidates",
        "gated steering",
        "cloud only",
        "cloud only",
    ]
    assert g.decisions[0] == "token 15: candidate head (50.0 ms a token, allowed 10 ms)"
    assert len(g.decisions) == 4


def test_levels_that_change_nothing_are_skipped() -> None:
    assert feed(governor("light", token_ms=10), 50)[0] == "fewer candidates"
    without = governor("light", allow=False, token_ms=10)
    assert feed(without, 50, 4)[-1] == "gated steering"
    assert levels_for(PRESETS["device-only"], True) == (0,)


def test_it_recovers_when_there_is_room() -> None:
    g = governor(token_ms=10)
    feed(g, 50, 2)
    assert feed(g, 1, 8)[-1] == "as asked"
    assert g.decisions[-1].startswith("token 15: as asked (1.0 ms")


def test_within_the_budget_but_without_room_it_stays() -> None:
    g = governor(token_ms=10)
    feed(g, 50)
    assert set(feed(g, 9, 10)) == {"candidate head"}


def test_a_recovery_that_does_not_hold_is_tried_less_and_less_often() -> None:
    """Level 1 is fast, level 0 is slow: it must not swing for ever."""
    g = governor("blend", token_ms=10)
    for position in range(WINDOW * 200):
        g.token(position, 50 if g.level == 0 else 1)
    changes = len(g.decisions)
    for position in range(WINDOW * 200):
        g.token(position, 50 if g.level == 0 else 1)
    assert len(g.decisions) - changes < changes


def test_memory_counts_as_well() -> None:
    g = governor(memory_mb=100)
    g.token(0, 1.0, resident_mb=90)
    assert not g.decisions
    g.token(1, 1.0, resident_mb=120)
    assert g.decisions == ["token 1: candidate head (120 MB, allowed 100 MB)"]


@pytest.fixture(scope="module")
def branches(tiny_bundle: Bundle) -> TwoBranches:
    return TwoBranches.open(tiny_bundle, max_length=200)


def answer(branches: TwoBranches, method: str, budget: Budget | None, clock: Any = None) -> Any:
    size = branches.vocabulary_size
    prompts = Prompts((1, 2, 3, 4), (1, 2), names=(5, 77, 300))
    device = SteeredDevice(branches, prompts, PRESETS[method])
    if budget is not None:
        device = GovernedDevice(device, budget, clock=clock or Clock())
    request = Request("a query", "", codec("topk:64"), 120)
    return run_direct(lockstep(device, request), session(FakeCloud(size))), device


@pytest.mark.parametrize("method", ["light", "blend", "names"])
def test_with_room_the_answer_is_the_ungoverned_one(branches: TwoBranches, method: str) -> None:
    free, _ = answer(branches, method, None)
    governed, device = answer(branches, method, Budget(token_ms=1e9, memory_mb=1e9))
    assert governed.tokens == free.tokens
    assert device.governor.decisions == []


def test_names_fall_back_to_the_candidates_alone(branches: TwoBranches) -> None:
    slow = Clock()
    slow.step = 1.0
    governed, device = answer(branches, "names", Budget(token_ms=10), slow)
    assert device.governor.worst == CLOUD_ONLY
    assert len(governed.tokens) == 120


def test_a_device_that_is_too_slow_ends_as_the_cloud_alone(branches: TwoBranches) -> None:
    slow = Clock()
    slow.step = 1.0
    governed, device = answer(branches, "blend", Budget(token_ms=10), slow)
    alone, _ = answer(branches, "cloud-only", None)
    assert device.governor.worst == CLOUD_ONLY
    assert len(governed.tokens) == len(alone.tokens) == 120
    sources = [record.decision.source for record in governed.records]
    assert sources[0] == "steered"
    assert "cloud" in sources
    names = [line.split(": ")[1].split(" (")[0] for line in device.governor.decisions[:4]]
    assert names == list(LEVELS[1:])


def test_the_user_says_who_may_answer_alone(branches: TwoBranches) -> None:
    budget = Budget(token_ms=10)
    cases: list[tuple[LastResort, bool, bool]] = [
        ("cloud", True, False),
        ("device", False, True),
        ("both", True, True),
        ("none", False, False),
    ]
    for last_resort, cloud, device in cases:
        governed = GovernedDevice(
            SteeredDevice(branches, Prompts((1, 2), (1,)), PRESETS["light"]), budget
        )
        governed.may_end_as(last_resort)
        assert (CLOUD_ONLY in governed.governor.levels) == cloud
        plan = Plan("lockstep").within(budget, last_resort)
        assert (plan.on_late, plan.token_deadline_ms) == (("device", 10) if device else ("wait", 0))
    by_hand = Plan("lockstep", token_deadline_ms=5, on_late="cloud")
    assert by_hand.within(budget, "both") == by_hand
    assert Plan("lockstep").within(None, "both") == Plan("lockstep")


def test_an_unknown_last_resort_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"got clod; allowed cloud, device.*Did you mean cloud"):
        device_for(
            tiny_bundle, Text.open(tiny_bundle), "Why?", "", PRESETS["light"],
            max_tokens=8, last_resort="clod",  # type: ignore[arg-type]
        )  # fmt: skip


def test_stretches_without_the_cloud_are_told_with_their_ends() -> None:
    def record(source: str) -> TokenRecord:
        return TokenRecord(0, 0.0, Parts(), Decision(0, 0, 0.0, 0.0, 0.0, source=source))

    sources = ["steered", "device", "device", "cloud", "steered", "device"]
    assert alone_spans([record(source) for source in sources]) == [
        "token 1: device alone (the cloud was late; the cloud was back at token 3)",
        "token 5: device alone (the cloud was late; to the end)",
    ]


def test_tokens_that_waited_reach_the_small_model_as_if_they_never_had(
    branches: TwoBranches,
) -> None:
    device = GovernedDevice(
        SteeredDevice(branches, Prompts((1, 2, 3), (1,)), PRESETS["light"]),
        Budget(token_ms=1),
        clock=Clock(),
    )
    candidates = CandidateSet(np.arange(5), np.log(np.full(5, 0.2)))
    device.prefill()
    device.governor._at = device.governor.levels.index(3)
    device.extend([4])
    device.extend([5])
    device.rollback(1)
    device.extend([6, 7])
    assert (device.length, branches.length) == (3, 0)
    waited = device.head(candidates)
    assert branches.length == 3
    branches.prefill((1, 2, 3), (1,))
    branches.extend([4, 6, 7])
    np.testing.assert_array_equal(waited, branches.logits(candidates.ids))


def test_fewer_candidates_are_the_best_ones() -> None:
    logprobs = np.log(np.random.default_rng(0).dirichlet(np.ones(64)))
    few = narrowed(CandidateSet(np.arange(64) * 3, logprobs, left_out=0.1), FEW)
    assert set(few.ids // 3) == set(np.argsort(-logprobs)[:FEW])
    assert (np.diff(few.ids) > 0).all()
    assert np.exp(few.logprobs).sum() + few.left_out == pytest.approx(1.1)


def test_the_oldest_paragraphs_go_first(tiny_bundle: Bundle) -> None:
    text = Text.open(tiny_bundle)
    note = "\n\n".join(f"Paragraph {n} says that I like the number {n}." for n in range(6))
    whole = len(text.prompts("Why?", note).aware)
    assert shorten(text, "Why?", note, whole) == (note, 0)
    left, dropped = shorten(text, "Why?", note, whole - 1)
    assert dropped == 1
    assert left.startswith("Paragraph 1")
    assert len(text.prompts("Why?", left).aware) < whole
    assert shorten(text, "Why?", note, 1)[0] == note.split("\n\n")[-1]


def test_a_note_that_does_not_fit_loses_paragraphs_and_says_so(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.budget._resident", lambda: 10**8)
    text = Text.open(tiny_bundle)
    note = "\n\n".join(f"Paragraph {n}: " + "I like it. " * 20 for n in range(8))
    half = len(text.prompts("Why?", note).aware) // 2
    budget = Budget(memory_mb=need(tiny_bundle, half).total_mb)
    device = device_for(
        tiny_bundle, text, "Why?", note, PRESETS["light"], max_tokens=8, budget=budget
    )
    assert isinstance(device, GovernedDevice)
    assert len(device.prompts.aware) + 8 <= half
    assert "oldest paragraphs were dropped" in device.decisions[0]
    with pytest.raises(BudgetExceeded):
        device_for(
            tiny_bundle, text, "Why?", "word " * 4000, PRESETS["light"], max_tokens=8, budget=budget
        )


def test_a_first_token_that_would_be_late_costs_paragraphs(tiny_bundle: Bundle) -> None:
    text = Text.open(tiny_bundle)
    note = "\n\n".join(f"Paragraph {n}: " + "I like it. " * 5 for n in range(8))
    device = device_for(
        tiny_bundle, text, "Why?", note, PRESETS["light"], max_tokens=8,
        budget=Budget(first_token_ms=0.001),
    )  # fmt: skip
    assert "the 7 oldest paragraphs were dropped" in device.decisions[0]
