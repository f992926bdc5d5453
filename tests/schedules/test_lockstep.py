"""Lockstep against an oracle that knows both models, and the wire it speaks."""

from __future__ import annotations

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_sim.model import ScoreRequest
from cloud_sim.session import Limits, session
from cloud_sim.session.cache import Cache
from cloud_sim.session.mailbox import Mailbox
from cloud_sim.session.talk import Talk
from edge_runtime import wire
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import Wiretap, run_direct
from edge_runtime.errors import ConnectionFailed, Refused
from edge_runtime.schedules.actions import Arrival, Moves, Receive, Schedule, Send
from edge_runtime.schedules.exchange import Request, refused
from edge_runtime.schedules.lockstep import lockstep
from tests.fakes import FakeCloud, FakeDevice


def oracle(cloud: FakeCloud, device: FakeDevice, query: str, n: int, codec_name: str) -> list[int]:
    """The answer by the method's definition: no schedule, no session, no wire."""
    tokens: list[int] = []
    chosen = codec(codec_name)
    device.prefill()
    while len(tokens) < n:
        sequence = cloud.open()
        (logprobs,) = cloud.score(
            [ScoreRequest(cloud, sequence, 0, (*cloud.prompt(query), *tokens))]
        )
        cloud.close(sequence)
        candidates = chosen.decode(chosen.encode(logprobs[-1]))
        decision = device.choose(len(tokens), candidates, device.head(candidates))
        tokens.append(decision.token)
        if decision.token in device.end_ids:
            break
        device.extend(tokens[-1:])
    return tokens


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.integers(2, 40),
    name=st.sampled_from(["full", "topk:1", "topk:4", "topk:64"]),
    gain=st.sampled_from([0.0, 0.5, 1.8]),
    temperature=st.sampled_from([0.0, 1.0]),
    n=st.integers(1, 40),
)
def test_lockstep_is_the_definition(
    seed: int, vocabulary: int, name: str, gain: float, temperature: float, n: int
) -> None:
    def fresh() -> FakeDevice:
        return FakeDevice(vocabulary, gain=gain, temperature=temperature, seed=seed)

    cloud = FakeCloud(vocabulary, seed)
    request = Request("a query", "", codec(name), n)
    transcript = run_direct(lockstep(fresh(), request), session(cloud))
    assert transcript.tokens == oracle(cloud, fresh(), "a query", n, name)
    assert transcript.finish == ("end" if transcript.tokens[-1] == vocabulary - 1 else "length")
    assert not cloud.open_sequences, "the session leaked a cache"


def test_gain_zero_is_the_cloud_alone_and_another_context_changes_a_steered_answer() -> None:
    def answer(**device: object) -> list[int]:
        made = FakeDevice(32, end_ids=[], **device)  # type: ignore[arg-type]
        return run_direct(
            lockstep(made, Request("q", "", codec("full"), 30)), session(FakeCloud(32))
        ).tokens

    assert answer(gain=0.0, context="a") == answer(gain=0.0, context="b")
    assert answer(gain=1.8, context="a") != answer(gain=1.8, context="b")


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    forced=st.lists(st.integers(0, 30), min_size=1, max_size=20),
    contexts=st.tuples(st.text(max_size=50), st.text(max_size=50)),
    name=st.sampled_from(["full", "topk:5"]),
)
def test_uplink_bytes_do_not_depend_on_the_private_context(
    seed: int, forced: list[int], contexts: tuple[str, str], name: str
) -> None:
    """With the emitted tokens forced equal, every byte that goes up is the same."""
    taps = []
    for context in contexts:
        tap = Wiretap()
        device = FakeDevice(32, context=context, gain=1.8, forced=forced)
        request = Request("the public query", "", codec(name), len(forced))
        run_direct(lockstep(device, request), session(FakeCloud(32, seed)), tap=tap)
        taps.append(tap.up)
    assert taps[0] == taps[1]


def refusal(limits: Limits | None = None, **change: object) -> Refused:
    cloud = FakeCloud(32)
    cloud.vocabulary = "aa"
    request = Request("query", "aa", codec("topk:4"), 4)

    def schedule():  # type: ignore[no-untyped-def]
        inner = lockstep(FakeDevice(32), request)
        event = None
        while True:
            action = inner.send(event)
            if isinstance(action, Send) and isinstance(action.frame, wire.Open):
                fields = {name: getattr(action.frame, name) for name in wire.Open.__struct_fields__}
                action = Send(wire.Open(**{**fields, **change}))
            event = yield action

    with pytest.raises(Refused) as caught:
        run_direct(schedule(), session(cloud, limits or Limits()))
    assert not cloud.open_sequences
    return caught.value


def test_the_session_refuses_with_a_reason_and_a_way_out() -> None:
    assert str(refusal(protocol=99)) == (
        "cloud: the device speaks another protocol version (got 99; allowed 1). "
        "Install the same costeer-edge on both sides."
    )
    assert refusal(codec="zip").code == "codec"
    assert "different vocabularies" in str(refusal(vocabulary="bb"))
    assert refusal(Limits(prompt_tokens=3)).code == "prompt_too_long"
    assert refusal(Limits(answer_tokens=2)).code == "answer_too_long"


def test_a_frame_before_open_is_refused() -> None:
    handler = session(FakeCloud(32))
    assert isinstance(next(handler), Receive)
    action = handler.send(Arrival(wire.Credit(0, 3), 0.0))
    assert isinstance(action, Send)
    assert isinstance(action.frame, wire.Refusal)
    assert action.frame.code == "out_of_turn"
    with pytest.raises(StopIteration):
        handler.send(0.0)


def is_refused_as_out_of_turn(said: Moves) -> None:
    """What `said` sends ends in that refusal, and leaves nothing behind in the cloud."""

    def to_the_refusal() -> Schedule:
        yield from said
        while True:
            event = yield Receive()
            if isinstance(event.frame, wire.Refusal):
                raise refused(event.frame)

    cloud = FakeCloud(32)
    with pytest.raises(Refused, match="out of turn"):
        run_direct(to_the_refusal(), session(cloud))
    assert not cloud.open_sequences


def test_frames_that_cannot_be_used_end_in_a_refusal_not_in_ever_more_memory() -> None:
    def flood() -> Moves:
        yield Send(Request("q", "", codec("topk:4"), 4).open("step"))
        for epoch in range(70):
            yield Send(wire.Extend(epoch + 2, 0, (1,)))

    is_refused_as_out_of_turn(flood())


def test_a_connection_may_change_its_mind_only_so_often() -> None:
    """Each `Open` asks for another mode; what the cloud remembers of them is bounded."""

    def fickle() -> Moves:
        for n in range(40):
            yield Send(Request("q", "", codec("topk:4"), 4 + n).open("step"))

    is_refused_as_out_of_turn(fickle())


def test_a_session_that_is_dropped_frees_its_cache() -> None:
    cloud = FakeCloud(32)
    handler = session(cloud)
    next(handler)
    handler.close()
    assert not cloud.open_sequences


# --- the wire ---

small = st.integers(0, 2**31)
tokens = st.lists(st.integers(0, 2**20), max_size=20).map(tuple)
ups = st.one_of(
    st.builds(
        wire.Open,
        protocol=small,
        query=st.text(),
        vocabulary=st.text(max_size=64),
        codec=st.text(max_size=10),
        mode=st.sampled_from(["step", "stream", "score"]),
        max_tokens=small,
        window=small,
        branches=small,
        depth=small,
        session=st.text(max_size=16),
        emitted=tokens,
        epoch=small,
    ),
    st.builds(wire.Extend, small, small, tokens),
    st.builds(wire.Credit, small, small),
    st.just(wire.Close()),
)
downs = st.one_of(
    st.builds(
        wire.Opened, st.text(), st.text(), st.text(), small, tokens, small, st.binary(max_size=24)
    ),
    st.builds(wire.Candidates, small, small, st.binary(), tokens, st.binary(max_size=24)),
    st.builds(wire.Scores, small, small, st.lists(st.binary()).map(tuple), st.binary(max_size=24)),
    st.builds(wire.Refusal, st.text(), st.text(), st.text(), st.text(), st.text(), st.text()),
    st.builds(wire.Closed, small, small, st.binary(max_size=24)),
)


@given(up=ups, down=downs, pad_to=st.sampled_from([0, 1, 64, 512]))
def test_every_frame_comes_back_from_its_bytes(up: wire.Up, down: wire.Down, pad_to: int) -> None:
    assert wire.decode_up(wire.encode(up, pad_to)) == up
    assert wire.decode_down(wire.encode(down, pad_to)) == down
    for frame in (up, down):
        assert wire.size(frame, pad_to) == len(wire.encode(frame, pad_to))
    if pad_to > 1:
        assert len(wire.encode(up, pad_to)) % pad_to == 0


@given(garbage=st.binary(max_size=200), frame=ups, cut=st.integers(1, 50))
def test_garbage_is_an_error_of_ours_or_a_frame(garbage: bytes, frame: wire.Up, cut: int) -> None:
    for decode in (wire.decode_up, wire.decode_down):
        with contextlib.suppress(ConnectionFailed):
            decode(garbage)
    message = wire.encode(frame)
    with pytest.raises(ConnectionFailed, match="short"):
        wire.decode_up(message[: max(0, len(message) - cut)])


@given(stamp=st.tuples(*[st.integers(0, 2**32 - 1)] * 4))
def test_a_stamp_has_one_size(stamp: tuple[int, int, int, int]) -> None:
    packed = wire.Stamp(*stamp).pack()
    assert len(packed) == 24
    assert wire.Stamp.unpack(packed) == wire.Stamp(*stamp)


@given(stamp=st.tuples(*[st.integers(-(2**70), 2**70)] * 4))
def test_times_that_cannot_be_are_cut_to_what_fits(stamp: tuple[int, int, int, int]) -> None:
    """A clock that jumps on the server must not end a session."""
    packed = wire.Stamp(*stamp).pack()
    assert len(packed) == 24
    for said, was in zip(msgspec.structs.astuple(wire.Stamp.unpack(packed)), stamp, strict=True):
        assert said == was or not 0 <= was < 2**32


@given(seed=st.integers(0, 1000), size=st.integers(1, 300), k=st.integers(1, 310))
def test_topk_keeps_the_best_and_says_what_it_left_out(seed: int, size: int, k: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, size)
    logprobs = logits - np.log(np.exp(logits).sum())
    payload = codec(f"topk:{k}").encode(logprobs)
    kept = codec(f"topk:{k}").decode(payload)
    assert len(payload) == 6 * min(k, size) + 4
    assert set(kept.ids) == set(np.argsort(-logprobs)[:k])
    assert np.all(np.diff(kept.ids) > 0)
    assert kept.left_out == pytest.approx(1 - np.exp(logprobs[kept.ids]).sum(), abs=1e-6)
    np.testing.assert_allclose(kept.logprobs, logprobs[kept.ids], atol=0.01)


@given(
    held=st.lists(st.integers(0, 3), max_size=6),
    steps=st.lists(
        st.tuples(st.integers(0, 12), st.lists(st.integers(0, 3), min_size=1, max_size=3)),
        max_size=8,
    ),
    every=st.integers(1, 3),
)
def test_what_a_cache_holds_is_found_as_if_every_token_were_compared(
    held: list[int], steps: list[tuple[int, list[int]]], every: int
) -> None:
    cloud = FakeCloud(8)
    opening = Request("q", "", codec("full"), 99).open("score")
    cache = Cache(cloud, cloud.open(), list(held))
    talk = Talk(cloud, Limits(), opening, codec("full"), [1, 2], cache, Mailbox(), [])
    for epoch, (position, tokens) in enumerate([(0, [3]), *steps]):
        before = list(cache.tokens)
        at = min(position, len(talk.answer))
        talk.extend(wire.Extend(epoch, at, tuple(tokens)))
        now = [*talk.prompt, *talk.answer]
        first = len(now) - min(every, len(tokens))
        agree = 0
        while agree < min(first, len(before)) and before[agree] == now[agree]:
            agree += 1
        request = talk.request(first)
        assert (request.keep, list(request.tokens)) == (agree, now[agree:])
        assert cache.tokens == now
