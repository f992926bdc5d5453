"""Thin streams over lossy links: when a loss is noticed, who waits for whom, what it costs."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_sim.net.impairments import GilbertElliott, random_loss
from cloud_sim.net.links import ConstantDelay, Link
from cloud_sim.net.rates import ConstantRate
from cloud_sim.net.sender import Stream
from cloud_sim.net.streams import stream
from cloud_sim.net.transport import QUIC, TCP, Transport


class Clock:
    """`Timers` that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when_ms: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (max(when_ms, self.now), self._count, call))

    def run(self, until: float = float("inf")) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, call = heapq.heappop(self._heap)
            call()


class Loses(GilbertElliott):
    """Loses the packets of these numbers."""

    def __init__(self, *numbers: int) -> None:
        self.numbers, self.count = set(numbers), -1

    def lost(self) -> bool:
        self.count += 1
        return self.count in self.numbers


def lines(transport: Transport, *lost: int, rtt: float = 40.0) -> tuple[Clock, Stream]:
    """A stream on a fast link that loses the given packets; its RTT has been measured twice."""
    clock = Clock()
    link = Link(ConstantRate(1e12), ConstantDelay(rtt / 2), loss=Loses(*lost))
    back = Link(ConstantRate(1e12), ConstantDelay(rtt / 2))
    return clock, Stream(link, back, transport, clock)


def deliver(clock: Clock, sender: Stream, sends: list[tuple[float, int]]) -> list[Any]:
    """(number, time) of each delivery, in their order."""
    seen: list[tuple[int, float]] = []
    for number, (at, size) in enumerate(sends):
        clock.run(at)
        clock.now = max(clock.now, at)
        sender.send(at, size, lambda n=number: seen.append((n, clock.now)))  # type: ignore[misc]
    clock.run()
    return seen


WARM = [(0.0, 100), (100.0, 100), (200.0, 100)]


def delay_of_third(transport: Transport, *lost: int, rtt: float = 40.0) -> float:
    clock, sender = lines(transport, *lost, rtt=rtt)
    seen = deliver(clock, sender, WARM)
    assert [n for n, _ in seen] == [0, 1, 2]
    return seen[2][1] - 200.0


def test_a_lost_thin_segment_costs_a_timer() -> None:
    """By the RFCs' arithmetic after two samples of exactly 40 ms: RTTVAR 20, then 15."""
    assert delay_of_third(TCP) == pytest.approx(20, abs=1e-3)
    # Linux: 2 SRTT + 200 is later than RTO = SRTT + max(200, 4 * 15).
    assert delay_of_third(TCP, 2) == pytest.approx(240 + 20, abs=1e-3)
    # The first RTO ran out; the next waits for the whole RTO, the one after for twice that.
    assert delay_of_third(TCP, 2, 3) == pytest.approx(240 + 240 + 20, abs=1e-3)
    assert delay_of_third(TCP, 2, 3, 4) == pytest.approx(240 + 240 + 480 + 20, abs=1e-3)
    # QUIC: SRTT + 4 RTTVAR + 25, doubling.
    assert delay_of_third(QUIC, 2) == pytest.approx(40 + 60 + 25 + 20, abs=1e-3)
    assert delay_of_third(QUIC, 2, 3) == pytest.approx(125 + 250 + 20, abs=1e-3)


def test_the_first_packet_has_no_estimate_to_go_by() -> None:
    clock, sender = lines(TCP, 0)
    assert deliver(clock, sender, [(0.0, 10)]) == [(0, pytest.approx(1020, abs=1e-3))]


def test_a_loss_that_others_outrun_is_noticed_a_round_trip_later() -> None:
    clock, sender = lines(TCP, 2)
    seen = deliver(clock, sender, [*WARM, (201.0, 100)])
    # Its ack is back at 241; at 250 the lost one is a round trip and a quarter old and is sent
    # again, and half a round trip later it is there; the fourth message had to wait for it.
    assert seen[2:] == [(2, pytest.approx(270, abs=1e-2)), (3, pytest.approx(270, abs=1e-2))]
    assert sender.retransmissions == 1
    clock, sender = lines(QUIC, 2)
    seen = deliver(clock, sender, [*WARM, (201.0, 100)])
    assert seen[2] == (3, pytest.approx(221, abs=1e-2))  # no head-of-line blocking
    assert seen[3] == (2, pytest.approx(200 + 45 + 20, abs=1e-2))


@pytest.mark.parametrize(
    ("later", "there"),
    [
        # Old enough when the ack comes (RFC 8985, 6.2): sent again at once.
        ([(230.0, 100)], 270 + 20),
        ([(212.0 + 12 * i, 100) for i in range(6)], 252 + 20),
        # Three acks settle it before that (RFC 8985, 6.2: DupThresh).
        ([(201.0, 100)] * 3, 241 + 20),
        ([(201.0, 100)] * 2, 250 + 20),
    ],
)
def test_later_acks_tell_by_the_lost_one_s_age_or_by_their_number(
    later: list[tuple[float, int]], there: float
) -> None:
    """As the kernel's TCP does: benchmarks/kernel_tcp.py."""
    clock, sender = lines(TCP, 2)
    seen = dict(deliver(clock, sender, [*WARM, *later]))
    assert seen[2] == pytest.approx(there, abs=2e-2)
    assert sender.retransmissions == 1


@pytest.mark.parametrize(
    ("lost", "there"),
    [
        ((0,), 40 + 20),  # the third ack
        # The others' acks start the timer again; one segment is left: RTO is first.
        ((5,), 40 + 240 + 20),
        # Two are left: 2 SRTT + 2 ms. The probe is the last one, its ack tells of the other.
        ((4, 5), 40 + 82 + 40 + 20),
        # One, then two, then two more: beginning at what is in flight and one more.
        ((0, 1, 2, 3, 4, 5), 82 + 40 + 40 + 40 + 20),
    ],
)
def test_a_burst_is_mended_as_a_kernel_mends_it(lost: tuple[int, ...], there: float) -> None:
    """Six segments; the arithmetic is RFC 8985's, and benchmarks/kernel_tcp.py measures it."""
    clock, sender = lines(TCP.plain(), *(20 + n for n in lost))
    warm = [(100.0 * i, 100) for i in range(20)]
    seen = deliver(clock, sender, [*warm, (2000.0, 6 * 1448 - 4)])
    assert seen[-1] == (20, pytest.approx(2000 + there, abs=0.1))
    assert sender.retransmissions == len(lost)


def test_the_timer_starts_again_when_what_was_sent_before_is_acknowledged() -> None:
    """RFC 6298, 5.3. A round trip of 150 ms, messages 100 ms apart."""
    clock, sender = lines(TCP, 20, rtt=150)
    seen = deliver(clock, sender, [(100.0 * i, 100) for i in range(21)])
    # The message before is acknowledged at 2050; RTO = 150 + 200.
    assert seen[-1] == (20, pytest.approx(2050 + 350 + 75, abs=0.5))


def test_a_full_queue_slows_the_sender_down_and_no_more() -> None:
    """200 segments at 10 Mbit/s take 240 ms; the kernel takes 320 to 360 with this queue."""
    clock = Clock()
    link = Link(ConstantRate(1e7), ConstantDelay(20), queue_bytes=30_000)
    sender = Stream(link, Link(ConstantRate(1e7), ConstantDelay(20)), TCP.plain(), clock)
    ((_, there),) = deliver(clock, sender, [(0.0, 200 * 1448 - 10)])
    assert 260 < there < 420
    assert 0 < sender.retransmissions == link.dropped_packets < 40


def test_losses_of_one_flight_halve_the_window_once() -> None:
    """Ten segments of which four are lost leave five, not one."""
    clock, sender = lines(QUIC, 0, 2, 4, 6)
    deliver(clock, sender, [(0.0, 10 * 1200)])
    assert sender._window.segments == pytest.approx(5, abs=1)


def test_a_thin_stream_does_not_open_the_window() -> None:
    """RFC 7661: what was never in flight has not been tried."""
    clock, sender = lines(TCP.plain())
    warm = [(100.0 * i, 100) for i in range(50)]
    seen = deliver(clock, sender, [*warm, (5000.0, 31 * 1448 - 10)])
    assert seen[-1] == (50, pytest.approx(5000 + 100, abs=0.1))  # 10, 20, 1


def test_after_a_loss_the_window_grows_by_a_segment_a_round_trip() -> None:
    clock, sender = lines(TCP.plain(), 0)
    deliver(clock, sender, [(0.0, 45 * 1448)])
    # Ten, half of it, and 5 + 6 + 7 + 8 + 9 = 35 in five round trips more.
    assert 8 <= sender._window.segments <= 10


def test_a_lost_opening_waits_one_second_then_two_then_four() -> None:
    """RFC 6298, 2.1 and 5.5, as Linux sends SYN again after 1, 3 and 7 s."""
    for transport in (TCP, QUIC):
        clock, sender = lines(transport, 0, 1, 2)
        assert deliver(clock, sender, [(0.0, 0)]) == [(0, pytest.approx(7020, abs=1e-2))]


@pytest.mark.parametrize("transport", [TCP, QUIC])
def test_a_burst_of_any_length_ends(transport: Transport) -> None:
    """Timers that doubled without end would soon be no numbers."""
    assert delay_of_third(transport, *range(2, 3000)) < 1e16


def test_an_open_connection_knows_its_round_trip() -> None:
    clock, sender = lines(TCP, 0)
    sender.opened()
    # One sample: SRTT 40, RTTVAR 20, so RTO = 40 + 200 comes before 2 SRTT + 200.
    assert deliver(clock, sender, [(0.0, 10)]) == [(0, pytest.approx(260, abs=1e-3))]


def test_a_large_message_needs_rounds_of_a_growing_window() -> None:
    clock, sender = lines(TCP.plain())
    full = 1448
    ((_, ten),) = deliver(clock, sender, [(0.0, 10 * full - 4)])
    assert ten == pytest.approx(20, abs=1e-2)
    clock, sender = lines(TCP.plain())
    ((_, thirty),) = deliver(clock, sender, [(0.0, 30 * full - 10)])
    assert thirty == pytest.approx(60, abs=1e-2)  # 10, then 20 more after one round trip
    clock, sender = lines(TCP.plain())
    ((_, more),) = deliver(clock, sender, [(0.0, 31 * full - 10)])
    assert more == pytest.approx(100, abs=1e-2)


@pytest.mark.parametrize(
    ("size", "masked", "websocket"),
    [(125, False, 2), (126, False, 4), (125, True, 6), (65535, True, 8), (65536, False, 10)],
)
def test_overheads_are_those_of_the_protocols(size: int, masked: bool, websocket: int) -> None:
    assert TCP.plain().message_bytes(size, masked=masked) == size + websocket
    records = -(-(size + websocket) // 16384)
    assert TCP.message_bytes(size, masked=masked) == size + websocket + 22 * records
    assert QUIC.message_bytes(size, masked=masked) == size
    link, back = (Link(ConstantRate(1e9), ConstantDelay(1)) for _ in range(2))
    clock = Clock()
    Stream(link, back, TCP.plain(), clock, masked=masked).send(0.0, size, lambda: None)
    clock.run()
    segments = -(-(size + websocket) // 1448)
    assert link.sent_bytes == size + websocket + 52 * segments


@settings(max_examples=150, deadline=None)
@given(
    sends=st.lists(st.tuples(st.floats(0, 120), st.integers(1, 60_000)), min_size=1, max_size=25),
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    queue=st.sampled_from([None, 20_000]),
    quic=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_everything_arrives_once_and_tcp_keeps_the_order(
    sends: list[tuple[float, int]], loss: float, queue: int | None, quic: bool, seed: int
) -> None:
    clock = Clock()
    link = Link(
        ConstantRate(5e6),
        ConstantDelay(15),
        loss=random_loss(loss, stream(seed, "loss")),
        queue_bytes=queue,
    )
    back = Link(ConstantRate(5e6), ConstantDelay(15))
    sender = Stream(link, back, QUIC if quic else TCP, clock)
    at, timed = 0.0, []
    for gap, size in sends:
        at += gap
        timed.append((at, size))
    seen = deliver(clock, sender, timed)
    assert sorted(n for n, _ in seen) == list(range(len(sends)))
    if not quic:
        assert [n for n, _ in seen] == list(range(len(sends)))
    for number, when in seen:
        sent, size = timed[number]
        assert when >= sent + 15 + size * 8 / 5e3 - 1e-6
    assert sender.retransmissions == link.lost_packets + link.dropped_packets
