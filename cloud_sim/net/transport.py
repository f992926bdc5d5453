"""The rules of a transport: headers, records, set-up exchanges, timers' constants.

    tcp    TCP with timestamps, TLS 1.3 and WebSocket frames: in order, so a message waits for those
           before it; losses found as RFC 8985 (RACK-TLP) and RFC 6298 have it, with Linux's minimum
           of 200 ms
    quic   each message a stream of its own that waits for no other; RFC 9002

`cloud_sim.net.sender.Stream` is the sender that goes by these rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

INITIAL_TIMER_MS = 1000.0
"""The timer before any round trip is known (RFC 6298, 2.1; RFC 9002, 6.2.2: 3 x 333 ms)."""


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

    def rto_ms(self, srtt_ms: float, rttvar_ms: float) -> float:
        """The retransmission timeout: RFC 6298, section 2, and RFC 9002, 6.2.1 (without what is
        allowed for the acknowledgement's delay). `srtt_ms` 0: no round trip is known yet."""
        if not srtt_ms:
            return INITIAL_TIMER_MS
        return srtt_ms + max(self.rto_min_ms, 4 * rttvar_ms)

    def outrun_ms(self, srtt_ms: float, round_trip_ms: float) -> float:
        """How old a segment is that counts as lost when a later one has been acknowledged after
        `round_trip_ms`: RFC 8985, 6.2 (a quarter of a round trip) and RFC 9002, 6.1.2 (9/8)."""
        if self.probe == "rack":
            return round_trip_ms + srtt_ms / 4
        return 1.125 * max(srtt_ms, round_trip_ms)

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
