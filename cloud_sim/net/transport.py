"""What lies between a message and a link: headers, windows, and finding out that a packet is lost.

One small message per round trip makes a thin stream: when its segment is lost nothing comes after
it, so no duplicate acknowledgements tell, and the sender finds out by a timer. That, not the loss
rate, is what a loss costs:

    tcp    tail-loss probe after 2 SRTT + the ack delay allowed for (RFC 8985, 7.2; Linux allows
           200 ms when one segment is in flight), at the latest RTO = SRTT + max(RTO_min, 4 RTTVAR)
           (RFC 6298 with Linux's minimum of 200 ms); then RTO, doubling. In order: a message waits
           for those before it (head-of-line blocking).
    quic   probe after SRTT + max(4 RTTVAR, 1 ms) + max_ack_delay (RFC 9002, 6.2), doubling; each
           message is a stream of its own and waits for no other.

A loss that later segments outrun is found when their acknowledgement is back and a quarter of a
round trip has passed (RACK, RFC 8985; RFC 9002's time threshold is an eighth).

The sender here knows at once that a packet is lost and plans the instant at which a real one would
have noticed. Modelled: headers, segmentation, initial window and slow start, the above. Not
modelled: acknowledgements as packets (they are never lost, take no rate), delayed
acknowledgements, congestion avoidance beyond halving the window on a loss, spurious probes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from cloud_sim.net.links import LOST, Link


class Timers(Protocol):
    """The clock that a transport is driven by: SimPy's, or an event loop's."""

    def at(self, when_ms: float, call: Callable[[], None]) -> None:
        """Call `call` at `when_ms` (not before now)."""
        ...


@dataclass(frozen=True, slots=True)
class Transport:
    """The rules of one transport; `TCP` and `QUIC` below are the named ones."""

    name: str
    segment_bytes: int
    """Payload of a full segment, TLS and WebSocket bytes included."""
    header_bytes: int
    """Below the payload of each segment, IP included."""
    tls_bytes: int
    """Per message (one TLS record); 0: none, or part of the header."""
    websocket: bool
    ordered: bool
    probe: str
    """`rack` (TCP) or `pto` (QUIC)."""
    ack_delay_ms: float
    """The delay of the peer's acknowledgement that the sender allows for."""
    rto_min_ms: float
    setup: tuple[tuple[int, int], ...]
    """Exchanges before the first message: bytes up and down, headers not counted."""
    initial_window: int = 10
    """Segments (RFC 6928)."""

    def plain(self) -> Transport:
        """The same without TLS, as on loopback."""
        if self.name == "quic":
            return self
        return replace(self, tls_bytes=0, setup=tuple(self.setup[i] for i in (0, 2)))

    def with_setup(self, setup: tuple[tuple[int, int], ...]) -> Transport:
        """The same with other exchanges before the first message."""
        return replace(self, setup=setup)

    def message_bytes(self, size: int, *, masked: bool) -> int:
        """A message of `size` bytes with its WebSocket header and TLS record, bytes.

        RFC 6455, 5.2: 2 bytes, plus 2 or 8 for a length over 125 or 65,535, plus 4 for the mask
        (client to server). TLS 1.3: 5 + 1 + 16 per record of at most 16,384 bytes.
        """
        if self.websocket:
            size += (2 if size < 126 else 4 if size < 65536 else 10) + (4 if masked else 0)
        if self.tls_bytes:
            size += self.tls_bytes * -(-size // 16384)
        return size


TCP = Transport(
    name="tcp",
    segment_bytes=1448,
    header_bytes=52,  # IPv4 20, TCP 20, timestamps 12
    tls_bytes=22,
    websocket=True,
    ordered=True,
    probe="rack",
    ack_delay_ms=200.0,
    rto_min_ms=200.0,
    # SYN; ClientHello against ServerHello with a 3 kB certificate chain; the WebSocket upgrade.
    setup=((0, 0), (517, 3200), (330, 200)),
)

QUIC = Transport(
    name="quic",
    segment_bytes=1200,
    header_bytes=58,  # IPv4 20, UDP 8, short header 10, AEAD tag 16, stream frame 4
    tls_bytes=0,
    websocket=False,
    ordered=False,
    probe="pto",
    ack_delay_ms=25.0,
    rto_min_ms=1.0,
    # Initial, padded, against Initial + Handshake; then the HTTP/3 request for the session.
    setup=((1200, 3200), (120, 80)),
)


class _Message:
    __slots__ = ("deliver", "missing")

    def __init__(self, segments: int, deliver: Callable[[], None]) -> None:
        self.missing = segments
        self.deliver = deliver


class _Lost:
    """A segment that did not arrive, and when the sender will notice."""

    __slots__ = ("attempt", "due_ms", "message", "size")

    def __init__(self, message: _Message, size: int, attempt: int, due_ms: float) -> None:
        self.message, self.size = message, size
        self.attempt, self.due_ms = attempt, due_ms


class Stream:
    """One direction of a connection over a link.

    Parameters
    ----------
    link, back : the direction it sends on, and the one acknowledgements come back on.
    masked : WebSocket masks what a client sends.

    """

    def __init__(
        self, link: Link, back: Link, transport: Transport, timers: Timers, *, masked: bool = False
    ) -> None:
        self.link, self._ack_ms = link, back.propagation_ms
        self._transport, self._timers = transport, timers
        self._masked = masked
        self._srtt = 0.0
        self._rttvar = 0.0
        self._window = float(transport.initial_window)
        self._last_ms = 0.0
        self._acks: deque[float] = deque()
        """When the acknowledgement of each segment in flight comes back, ascending."""
        self._unsent: deque[tuple[_Message, int]] = deque()
        self._open: deque[_Message] = deque()
        """Messages not yet delivered that others may have to wait for."""
        self._lost: list[_Lost] = []
        self._totals: dict[int, int] = {}
        """`message_bytes` of the sizes seen: there are few."""
        self.payload_bytes = 0
        """Of the messages sent, headers not counted."""
        self.retransmissions = 0

    def send(self, now_ms: float, size: int, deliver: Callable[[], None]) -> None:
        """Send a message of `size` bytes (`wire.encode`); `deliver` is called when it is there."""
        self.payload_bytes += size
        total = self._totals.get(size)
        if total is None:
            total = self._transport.message_bytes(size, masked=self._masked)
            self._totals[size] = total
        self.send_bytes(now_ms, total, deliver)

    def send_bytes(self, now_ms: float, total: int, deliver: Callable[[], None]) -> None:
        """Send `total` bytes of the byte stream, WebSocket and TLS bytes already among them."""
        transport = self._transport
        acks = self._acks
        while acks and acks[0] <= now_ms:
            acks.popleft()
            if self._window < 1000:
                self._window += 1
        free = not (transport.ordered and self._open) and not self._unsent
        if free and total <= transport.segment_bytes and len(acks) < self._window:
            arrives = self._transmit(now_ms, total)
            if arrives != LOST:
                self._timers.at(arrives, deliver)
                return
            message = _Message(1, deliver)
            self._open.append(message)
            self._lose(now_ms, message, total, 0)
            return
        full, rest = divmod(total, transport.segment_bytes)
        sizes = [transport.segment_bytes] * full + ([rest] if rest or not full else [])
        message = _Message(len(sizes), deliver)
        self._open.append(message)
        waiting = bool(self._unsent)
        self._unsent.extend((message, size) for size in sizes)
        if not waiting:
            self._pump(now_ms)

    def _transmit(self, now_ms: float, size: int) -> float:
        """One segment onto the link; when it arrives, or `LOST`."""
        transport = self._transport
        silence = now_ms - self._last_ms
        # The timeout is never below `rto_min_ms`, and mostly the silence is.
        grown = silence > transport.rto_min_ms and self._window > transport.initial_window
        if grown and silence > self._rto():
            # What was learnt before a long silence no longer holds (RFC 2861).
            self._window = float(transport.initial_window)
        self._last_ms = now_ms
        arrives = self.link.send(now_ms, size + transport.header_bytes)
        if arrives == LOST:
            return LOST
        acked = arrives + self._ack_ms(arrives)
        self._acks.append(acked)
        # RFC 6298, section 2.
        round_trip = acked - now_ms
        if self._srtt:
            self._rttvar += 0.25 * (abs(self._srtt - round_trip) - self._rttvar)
            self._srtt += 0.125 * (round_trip - self._srtt)
        else:
            self._srtt, self._rttvar = round_trip, round_trip / 2
        if self._lost:
            self._outrun(acked)
        return arrives

    def _rto(self) -> float:
        return (self._srtt or 1000.0) + max(self._transport.rto_min_ms, 4 * self._rttvar)

    def _patience(self, attempt: int) -> float:
        """How long the sender waits before it sends a lost segment for the attempt+1-st time."""
        transport = self._transport
        if not self._srtt:
            return 1000.0 * 2**attempt
        if transport.probe == "pto":
            variance = max(4 * self._rttvar, transport.rto_min_ms)
            return (self._srtt + variance + transport.ack_delay_ms) * 2.0**attempt
        if attempt == 0:
            return min(max(2 * self._srtt, 10.0) + transport.ack_delay_ms, self._rto())
        return self._rto() * 2.0 ** (attempt - 1)

    def _lose(self, now_ms: float, message: _Message, size: int, attempt: int) -> None:
        lost = _Lost(message, size, attempt, now_ms + self._patience(attempt))
        self._lost.append(lost)
        self._timers.at(lost.due_ms, lambda: self._resend(lost, lost.due_ms))

    def _outrun(self, acked_ms: float) -> None:
        """A later segment has arrived: earlier losses are noticed soon after its ack is back."""
        share = 4 if self._transport.probe == "rack" else 8
        due = acked_ms + self._srtt / share
        for lost in self._lost:
            if due < lost.due_ms:
                lost.due_ms = due
                self._timers.at(due, lambda lost=lost: self._resend(lost, due))  # type: ignore[misc]

    def _resend(self, lost: _Lost, planned_ms: float) -> None:
        if lost not in self._lost or planned_ms > lost.due_ms:
            return
        self._lost.remove(lost)
        self.retransmissions += 1
        self._window = max(2.0, self._window / 2)
        arrives = self._transmit(planned_ms, lost.size)
        if arrives == LOST:
            self._lose(planned_ms, lost.message, lost.size, lost.attempt + 1)
        else:
            self._timers.at(arrives, lambda: self._arrived(lost.message, 1))

    def _pump(self, now_ms: float) -> None:
        """Send what the window allows; come back when acknowledgements have opened it."""
        acks, unsent = self._acks, self._unsent
        while acks and acks[0] <= now_ms:
            acks.popleft()
            self._window = min(1000.0, self._window + 1)
        arrived, last, owner = 0, -math.inf, None
        while unsent and len(acks) < self._window:
            message, size = unsent.popleft()
            if owner is not None and message is not owner:
                self._expect(owner, arrived, last)
                arrived = 0
            owner = message
            arrives = self._transmit(now_ms, size)
            if arrives == LOST:
                self._lose(now_ms, message, size, 0)
            else:
                arrived, last = arrived + 1, arrives
        if owner is not None:
            self._expect(owner, arrived, last)
        if unsent:
            opens = acks[0] if acks else now_ms + self._rto()
            self._timers.at(opens, lambda: self._pump(opens))

    def _expect(self, message: _Message, segments: int, arrives: float) -> None:
        if segments:
            self._timers.at(arrives, lambda: self._arrived(message, segments))

    def _arrived(self, message: _Message, segments: int) -> None:
        message.missing -= segments
        if self._transport.ordered:
            waiting = self._open
            if not waiting or waiting[0].missing:
                return
            deliver = waiting.popleft().deliver
            # Whom a delivery wakes may let time go by: those that are due now are due before.
            while waiting and waiting[0].missing == 0:
                self._timers.at(-math.inf, waiting.popleft().deliver)
            deliver()
        elif message.missing == 0:
            self._open.remove(message)
            message.deliver()
