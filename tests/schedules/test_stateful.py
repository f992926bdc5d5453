"""Device and cloud one move at a time, in any order that a line may bring about.

Where `test_runahead` draws a line's habits and lets it run, here Hypothesis decides each move: who
goes on, which frame arrives, which comes twice, when the connection is cut. A failure shrinks to
the shortest such story.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloud_sim.session import Shelf, session
from edge_runtime import wire
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.schedules.actions import (
    Arrival,
    Compute,
    Emit,
    Receive,
    Reconnected,
    Schedule,
    Send,
    Timeout,
)
from edge_runtime.schedules.draft import draft
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from tests.fakes import FakeCloud, FakeDevice

VOCABULARY = 12


class Half:
    """One of the two generators, what has arrived for it, and what is on its way to it."""

    def __init__(self, generator: Generator[Any, Any, Any]) -> None:
        self.generator = generator
        self.inbox: deque[Any] = deque()
        self.coming: list[Any] = []
        self.doubles: list[Any] = []
        """Frames that come once more, whenever that is."""
        self.waits: Receive | None = None
        self.result: Any = None
        self.done = False

    @property
    def able(self) -> bool:
        if self.done:
            return False
        return self.waits is None or bool(self.inbox) or self.waits.deadline_ms == 0

    def deliver(self, index: int) -> None:
        """A frame may overtake others, but none that opens a session."""
        opens = [n for n, frame in enumerate(self.coming) if isinstance(frame, wire.Open)]
        free = opens[0] if opens else len(self.coming) - 1
        self.inbox.append(self.coming.pop(min(index % len(self.coming), free)))

    def move(self, now_ms: float) -> Any:
        """To its next action."""
        event = self.result
        if self.waits is not None:
            found = self.inbox.popleft() if self.inbox else Timeout(now_ms)
            kept = isinstance(found, Timeout | Reconnected)
            event = found if kept else Arrival(found, now_ms)
        self.waits = self.result = None
        try:
            action = self.generator.send(event)
        except StopIteration:
            self.done = True
            return None
        if isinstance(action, Compute):
            self.result = action.work()
        elif isinstance(action, Receive):
            self.waits = action
        return action


class Line(RuleBasedStateMachine):
    """Whatever happens, what is emitted is the beginning of lockstep's answer; all of it, in the
    end."""

    @initialize(
        seed=st.integers(0, 10**6),
        gain=st.sampled_from([0.0, 0.4, 1.5]),
        temperature=st.sampled_from([0.0, 1.0]),
        kind=st.sampled_from(["lockstep", "runahead", "draft"]),
        number=st.integers(0, 6),
        branches=st.sampled_from([1, 1, 2, 5]),
        tokens=st.integers(1, 14),
        kept=st.booleans(),
        ends=st.booleans(),
    )
    def begin(
        self,
        seed: int,
        gain: float,
        temperature: float,
        kind: str,
        number: int,
        branches: int,
        tokens: int,
        kept: bool,
        ends: bool,
    ) -> None:
        if kind == "draft":
            temperature = 0.0  # it draws other random numbers
        self.cloud_model = FakeCloud(VOCABULARY, seed)
        request = Request("what?", "", codec("topk:4"), tokens)

        def device() -> FakeDevice:
            return FakeDevice(
                VOCABULARY,
                gain=gain,
                temperature=temperature,
                seed=seed,
                end_ids=None if ends else [],
            )

        make: dict[str, Callable[[], Schedule]] = {
            "lockstep": lambda: lockstep(device(), request),
            "runahead": lambda: runahead(device(), request, window=number, branches=branches),
            "draft": lambda: draft(device(), request, draft_tokens=number),
        }
        model, shelf = self.cloud_model, Shelf(2) if kept else None
        self.expected = run_direct(lockstep(device(), request), session(model)).tokens
        self.make_session = lambda: session(model, shelf=shelf)
        self.shelf = shelf
        self.device, self.cloud = Half(make[kind]()), Half(self.make_session())
        self.emitted: list[int] = []
        self.now = 0

    def act(self, half: Half, other: Half) -> None:
        self.now += 1
        action = half.move(float(self.now))
        if isinstance(action, Emit):
            self.emitted.append(action.token)
        elif isinstance(action, Send):
            half.result = float(self.now)
            down = half is self.cloud
            told = any(isinstance(event, Reconnected) for event in self.device.inbox)
            if down or not told:  # else it speaks into a connection that is gone
                message = wire.encode(action.frame)
                other.coming.append((wire.decode_down if down else wire.decode_up)(message))

    @precondition(lambda self: self.device.able)
    @rule(times=st.integers(1, 12))
    def device_goes_on(self, times: int) -> None:
        for _ in range(times):
            if self.device.able:
                self.act(self.device, self.cloud)

    @precondition(lambda self: self.cloud.able)
    @rule(times=st.integers(1, 12))
    def cloud_goes_on(self, times: int) -> None:
        for _ in range(times):
            if self.cloud.able:
                self.act(self.cloud, self.device)

    @precondition(lambda self: self.cloud.coming)
    @rule(index=st.integers(0, 5))
    def a_frame_arrives_in_the_cloud(self, index: int) -> None:
        self.cloud.deliver(index)

    @precondition(lambda self: self.device.coming)
    @rule(index=st.integers(0, 5), count=st.integers(1, 4))
    def frames_arrive_at_the_device(self, index: int, count: int) -> None:
        for _ in range(min(count, len(self.device.coming))):
            self.device.deliver(index)

    @precondition(lambda self: self.cloud.coming or self.device.coming)
    @rule(up=st.booleans(), index=st.integers(0, 5))
    def a_frame_is_doubled(self, up: bool, index: int) -> None:
        half = self.cloud if (up and self.cloud.coming) or not self.device.coming else self.device
        half.doubles.append(half.coming[index % len(half.coming)])

    @precondition(lambda self: self.cloud.doubles or self.device.doubles)
    @rule(up=st.booleans())
    def a_double_arrives(self, up: bool) -> None:
        half = self.cloud if (up and self.cloud.doubles) or not self.device.doubles else self.device
        half.inbox.append(half.doubles.pop(0))

    @precondition(lambda self: self.emitted and not self.device.done)
    @rule()
    def the_connection_is_cut(self) -> None:
        self.cloud.generator.close()
        self.cloud = Half(self.make_session())
        self.device.inbox.clear()
        self.device.coming.clear()
        self.device.doubles.clear()
        self.device.inbox.append(Reconnected(float(self.now)))

    @rule(rounds=st.integers(1, 30))
    def all_goes_well(self, rounds: int) -> None:
        for _ in range(rounds):
            for half, other in ((self.device, self.cloud), (self.cloud, self.device)):
                if half.coming:
                    half.deliver(0)
                if half.able:
                    self.act(half, other)

    @invariant()
    def what_is_emitted_is_locksteps(self) -> None:
        if hasattr(self, "emitted"):
            assert self.emitted == self.expected[: len(self.emitted)]

    def teardown(self) -> None:
        """From here on the line is a good one."""
        if not hasattr(self, "emitted"):
            return
        for _ in range(1000):
            if not self.device.done:
                self.all_goes_well(20)
        assert self.emitted == self.expected
        self.cloud.generator.close()
        if self.shelf is not None:
            self.shelf.clear()
        assert not self.cloud_model.open_sequences


Line.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_any_order_of_moves_gives_locksteps_answer = Line.TestCase
