"""One direction of a connection: segments, and finding out that one of them is lost.

One small message per round trip makes a thin stream: when its segment is lost nothing comes after
it, so no later acknowledgement tells, and the sender finds out by a timer. That, not the loss
rate, is what a loss costs:

    tcp    a probe with the last segment after 2 SRTT, 200 ms later when it is the only one in
           flight (RFC 8985, 7.2), at the latest RTO = SRTT + max(200 ms, 4 RTTVAR) (RFC 6298 with
           Linux's minimum); then RTO, doubling, from a window of one segment
    quic   two probes after SRTT + max(4 RTTVAR, 1 ms) + 25 ms (RFC 9002, 6.2), doubling

The timer counts from the last thing sent or acknowledged before the silence. A loss that later
segments outrun is found when one of them is acknowledged and the lost one is older than a round
trip and a quarter (RACK, RFC 8985; RFC 9002: an eighth), or when three are.

How much is in flight, `cloud_sim.net.window` says.

The sender here knows at once that a packet is lost, and plans the instant at which a real one would
have noticed; it takes a round trip into its estimate when it sends. Not modelled: acknowledgements
as packets (they are never lost, take no rate and no jitter), delayed acknowledgements (they add up
to 40 ms to what Linux measures), probes without need, timers
that a kernel rounds up, QUIC's persistent congestion. `benchmarks.kernel_tcp` holds it against a
real kernel's TCP.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial

from cloud_sim.net.delivery import Delivery, Message
from cloud_sim.net.links import LOST, Link
from cloud_sim.net.transport import Timers, Transport
from cloud_sim.net.window import Window

OUTRUN = 3
"""Later segments whose acknowledgements settle that one is lost (RFC 8985, 6.2; 9002, 6.1.1)."""
SLACK_MS = 2.0
"""What Linux adds to a probe's 2 SRTT where several segments are in flight."""
MOST_DOUBLINGS = 30
"""Of a timer, which is then decades long: a long burst of losses must not make it overflow."""


class _Lost:
    """A segment that did not arrive, when it was sent and when the sender will notice."""

    __slots__ = ("due_ms", "message", "outran", "sent_ms", "size")

    def __init__(self, message: Message, size: int, sent_ms: float) -> None:
        self.message, self.size, self.sent_ms = message, size, sent_ms
        self.outran = 0
        """Later segments that have arrived."""
        self.due_ms = math.inf
        """Noticed by their acknowledgements; the timer is the stream's."""


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
        self._window = Window(transport.initial_window)
        self._acks = self._window.acks
        self._last_ms = 0.0
        self._unsent: deque[tuple[Message, int]] = deque()
        self._again: deque[_Lost] = deque()
        """Noticed as lost, and not sent again yet."""
        self._delivery = Delivery(timers, ordered=transport.ordered)
        self._open = self._delivery.open
        self._lost: list[_Lost] = []
        """Not noticed yet, in the order of sending."""
        self._backoff = 0
        """Timers that ran out since the last progress."""
        self._due_ms = self._pump_ms = math.inf
        """When the timer runs out; when the window is looked at again."""
        self._since_ms = 0.0
        """What the retransmission timeout counts from."""
        self._totals: dict[int, int] = {}
        """`message_bytes` of the sizes seen: there are few."""
        self.payload_bytes = 0
        """Of the messages sent, headers not counted."""
        self.retransmissions = 0

    def opened(self) -> None:
        """The connection is there already: its set-up has measured one round trip."""
        self._srtt = self.link.propagation_ms(0.0) + self._ack_ms(0.0)
        self._rttvar = self._srtt / 2

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
        acks, most = self._acks, self._transport.segment_bytes
        if acks and acks[0] <= now_ms:
            self._window.take(now_ms, missing=bool(self._lost))
        if not self._open and total <= most and len(acks) < self._window.segments:
            arrives = self._transmit(now_ms, total)
            if arrives != LOST:
                self._timers.at(arrives, deliver)
                return
            self._lose(now_ms, self._delivery.begin(1, deliver), total)
            return
        full, rest = divmod(total, most)
        sizes = [most] * full + ([rest] if rest or not full else [])
        message = self._delivery.begin(len(sizes), deliver)
        self._unsent.extend((message, size) for size in sizes)
        self._pump(now_ms)

    # --- the window ---

    def _transmit(self, now_ms: float, size: int) -> float:
        """One segment onto the link; when it arrives, or `LOST`."""
        transport = self._transport
        silence = now_ms - self._last_ms
        # The timeout is never below `rto_min_ms`, and mostly the silence is.
        grown = silence > transport.rto_min_ms and self._window.grown
        if grown and silence > transport.rto_ms(self._srtt, self._rttvar):
            self._window.restart()
        self._last_ms = now_ms
        arrives = self.link.send(now_ms, size + transport.header_bytes)
        if arrives == LOST:
            return LOST
        acked = arrives + self._ack_ms(arrives)
        acks, window = self._acks, self._window
        acks.append(acked)
        if 2 * len(acks) > window.segments:
            window.filled_ms = acked
        # RFC 6298, section 2.
        round_trip = acked - now_ms
        if self._srtt:
            self._rttvar += 0.25 * (abs(self._srtt - round_trip) - self._rttvar)
            self._srtt += 0.125 * (round_trip - self._srtt)
        else:
            self._srtt, self._rttvar = round_trip, round_trip / 2
        if self._lost:
            self._outrun(round_trip, acked)
        return arrives

    def _room(self) -> bool:
        return len(self._acks) + len(self._lost) < self._window.segments

    def _pump(self, now_ms: float) -> None:
        """Send what the window allows, lost segments first; come back when it has opened."""
        acks, unsent, again = self._acks, self._unsent, self._again
        self._window.take(now_ms, missing=bool(self._lost))
        while again and self._room():
            self._resend(again.popleft(), now_ms)
        arrived, last, owner = 0, -math.inf, None
        while unsent and not again and self._room():
            message, size = unsent.popleft()
            if owner is not None and message is not owner:
                self._delivery.expect(owner, arrived, last)
                arrived = 0
            owner = message
            arrives = self._transmit(now_ms, size)
            if arrives == LOST:
                self._lose(now_ms, message, size)
            else:
                arrived, last = arrived + 1, arrives
        if owner is not None:
            self._delivery.expect(owner, arrived, last)
        # Where nothing is to come back, what is lost will be noticed and opens the window.
        if (unsent or again) and acks and acks[0] < self._pump_ms:
            self._pump_ms = acks[0]
            self._timers.at(acks[0], partial(self._opens, acks[0]))

    def _opens(self, planned_ms: float) -> None:
        if planned_ms == self._pump_ms:
            self._pump_ms = math.inf
            self._pump(planned_ms)

    # --- what is lost ---

    def _lose(self, now_ms: float, message: Message, size: int) -> None:
        """A segment that was just sent will not arrive."""
        if not self._lost:
            self._window.hole(now_ms)
        self._lost.append(_Lost(message, size, now_ms))
        self._arm(now_ms)

    def _arm(self, now_ms: float) -> None:
        """Start the timer, or start it again."""
        acks, lost, transport = self._acks, self._lost, self._transport
        quiet_ms = max(now_ms, acks[-1]) if acks else now_ms
        if len(lost) == 1 or self._backoff:
            self._since_ms = quiet_ms
        rto = transport.rto_ms(self._srtt, self._rttvar)
        if transport.probe == "pto":
            doublings = min(self._backoff, MOST_DOUBLINGS)
            due = quiet_ms + (rto + transport.ack_delay_ms * bool(self._srtt)) * 2.0**doublings
        elif self._backoff or not self._srtt:
            # The probe was no timeout; without a round trip to go by there is none.
            timeouts = self._backoff - 1 if self._srtt else self._backoff
            due = self._since_ms + rto * 2.0 ** min(timeouts, MOST_DOUBLINGS)
        else:
            wait = transport.ack_delay_ms if len(lost) == 1 else SLACK_MS
            due = min(quiet_ms + 2 * self._srtt + wait, self._since_ms + rto)
        self._due_ms = due
        self._timers.at(due, partial(self._expired, due))

    def _expired(self, planned_ms: float) -> None:
        """The timer has run out on what is lost."""
        lost = self._lost
        if planned_ms != self._due_ms or not lost:
            return
        self._due_ms = math.inf
        self._backoff += 1
        if self._transport.probe == "pto":
            self._window.halve(lost[-1].sent_ms, planned_ms, anew=False)
            probes, lost[:] = lost[:2], lost[2:]
        elif self._backoff == 1 and self._srtt:
            probes = [lost.pop()]
            if not lost:  # else its acknowledgement tells of the others, and the window shrinks
                self._window.halve(probes[0].sent_ms, planned_ms, anew=False)
        else:
            # All that is in flight counts as lost, and goes out as acknowledgements come.
            self._window.halve(lost[-1].sent_ms, planned_ms, anew=True)
            self._window.one()
            self._again.extendleft(reversed(lost))
            lost.clear()
            probes = [self._again.popleft()]
        for probe in probes:
            self._resend(probe, planned_ms)
        if lost and self._due_ms == math.inf:
            self._arm(planned_ms)
        if self._again or self._unsent:
            self._pump(planned_ms)

    def _outrun(self, round_trip: float, acked_ms: float) -> None:
        """A later segment has arrived: when its acknowledgement tells of those lost before it."""
        age = self._transport.outrun_ms(self._srtt, round_trip)
        for lost in self._lost:
            lost.outran += 1
            settled = lost.outran >= OUTRUN
            due = acked_ms if settled else max(acked_ms, lost.sent_ms + age)
            if due < lost.due_ms:
                lost.due_ms = due
                self._timers.at(due, partial(self._noticed, lost, due))

    def _noticed(self, lost: _Lost, planned_ms: float) -> None:
        if planned_ms != lost.due_ms or lost not in self._lost:
            return
        self._lost.remove(lost)
        self._window.take(planned_ms, missing=True)
        self._window.halve(lost.sent_ms, planned_ms, anew=self._transport.probe == "rack")
        self._again.append(lost)
        self._pump(planned_ms)

    def _resend(self, lost: _Lost, now_ms: float) -> None:
        self.retransmissions += 1
        arrives = self._transmit(now_ms, lost.size)
        if arrives == LOST:
            self._lose(now_ms, lost.message, lost.size)
        else:
            self._backoff = 0
            self._delivery.expect(lost.message, 1, arrives)
