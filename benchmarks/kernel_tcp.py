"""The transport model against a real kernel's TCP: when a message arrives, whatever was lost.

    python -m benchmarks.kernel_tcp [--rounds 5] [--json]        Linux, root, /dev/net/tun

In a network namespace of its own, a client and a server of the running kernel talk through a TUN
device. What leaves it goes through the simulator's own `Link` objects, packet by packet, and comes
back with source and destination exchanged (which leaves every checksum right). So the packets, the
retransmissions and the acknowledgements are the kernel's; the link and the losses are ours. The
same messages then go through `cloud_sim.net.sender.Stream` over the same links.

The congestion control is Reno's, which is what the model has, unless `--congestion` names another;
the server acknowledges at once (TCP_QUICKACK) unless a case says otherwise. Prints a table, and
ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.packet_relay import HERE, THERE, enter, relay
from cloud_sim.net.impairments import GilbertElliott
from cloud_sim.net.links import ConstantDelay, Link
from cloud_sim.net.rates import ConstantRate
from cloud_sim.net.sender import Stream
from cloud_sim.net.transport import TCP
from cloud_sim.sim.waiting import Clock

SEGMENT = TCP.segment_bytes
START_MS = 300.0
"""From the connection to the first message."""


@dataclass(frozen=True, slots=True)
class Case:
    """Messages (ms, bytes) on a link, and which of the client's data segments are lost."""

    name: str
    sends: tuple[tuple[float, int], ...]
    lost: tuple[int, ...] = ()
    """Of the client's segments, in the order of their data."""
    times: int = 1
    """How often each of them is lost."""
    rtt_ms: float = 40.0
    mbps: float = 1000.0
    queue_bytes: int | None = None
    shown: int = -1
    """The message whose delay is compared."""
    quick: bool = True

    def links(self, *, loses: bool) -> tuple[Link, Link]:
        """Fresh links up and down; `loses`: the uplink's own loss, by number of packet."""
        # A segment that is lost again follows at once, in these cases.
        numbers = [n + again for n in self.lost for again in range(self.times)]
        rate, delay = self.mbps * 1e6, self.rtt_ms / 2
        up = Link(
            ConstantRate(rate),
            ConstantDelay(delay),
            loss=_Numbered(numbers) if loses else None,
            queue_bytes=self.queue_bytes,
        )
        return up, Link(ConstantRate(rate), ConstantDelay(delay))


class _Numbered(GilbertElliott):
    """Loses the packets of these numbers; the first packet, which opens, has none."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers, self.count = set(numbers), -2

    def lost(self) -> bool:
        self.count += 1
        return self.count in self.numbers


WARM = tuple((100.0 * i, 100) for i in range(20))
AT = 2000.0
THIN = (*WARM, (AT, 100))
SURE = 20
"""The number of the first segment after WARM."""


def cases() -> list[Case]:
    """What is compared."""
    burst = (*WARM, (AT, 6 * SEGMENT))
    return [
        Case("one small message, nothing lost", THIN),
        Case("lost once", THIN, (SURE,)),
        Case("lost twice", THIN, (SURE,), times=2),
        Case("lost three times", THIN, (SURE,), times=3),
        Case("lost once, at 150 ms", THIN, (SURE,), rtt_ms=150),
        Case("lost once, another 1 ms later", (*THIN, (AT + 1, 100)), (SURE,), shown=SURE),
        Case("lost once, another 15 ms later", (*THIN, (AT + 15, 100)), (SURE,), shown=SURE),
        Case("lost once, another 30 ms later", (*THIN, (AT + 30, 100)), (SURE,), shown=SURE),
        Case(
            "lost once, one each 12 ms after",
            (*THIN, *((AT + 12 * i, 100) for i in range(1, 8))),
            (SURE,),
            shown=SURE,
        ),
        Case(
            "lost once, three at once 1 ms later",
            (*THIN, *((AT + 1, 100) for _ in range(3))),
            (SURE,),
            shown=SURE,
        ),
        Case("6 segments, nothing lost", burst),
        Case("6 segments, the first lost", burst, (SURE,)),
        Case("6 segments, the last lost", burst, (SURE + 5,)),
        Case("6 segments, the last two lost", burst, (SURE + 4, SURE + 5)),
        Case("6 segments, all lost", burst, tuple(range(SURE, SURE + 6))),
        Case("60 segments at once, new connection", ((0.0, 60 * SEGMENT),)),
        Case("60 segments after 20 small messages", (*WARM, (AT, 60 * SEGMENT))),
        Case("60 segments, the 15th lost", ((0.0, 60 * SEGMENT),), (14,)),
        Case(
            "200 segments, 10 Mbit/s, queue of 30 kB",
            ((0.0, 200 * SEGMENT),),
            mbps=10,
            queue_bytes=30_000,
        ),
        Case("lost once, delayed acknowledgements", THIN, (SURE,), quick=False),
    ]


# --- the model ---


def modelled(case: Case) -> float:
    """The delay of the message by `Stream`, ms."""
    clock = Clock()
    link, back = case.links(loses=True)
    sender = Stream(link, back, TCP, clock)
    arrived: dict[int, float] = {}

    def note(number: int) -> None:
        arrived[number] = clock.now

    def send(number: int, size: int) -> None:
        sender.send_bytes(clock.now, size, partial(note, number))

    sender.send_bytes(0.0, 0, lambda: None)
    for number, (at, size) in enumerate(case.sends):
        clock.at(START_MS + at, partial(send, number, size))
    clock.run()
    shown = case.shown % len(case.sends)
    return arrived[shown] - case.sends[shown][0] - START_MS


# --- the kernel ---


def real(case: Case, device: int, congestion: str) -> float:
    """The delay of the message by the kernel, ms."""
    ends, total = [], 0
    for _, size in case.sends:
        total += size
        ends.append(total)
    listener = socket.create_server((HERE, 0))
    port = listener.getsockname()[1]
    arrived: list[float] = []
    origin: list[float] = []

    def serve() -> None:
        server, _ = listener.accept()
        got = 0
        with server:
            while got < total:
                if case.quick:
                    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                chunk = server.recv(1 << 20)
                now = time.monotonic() * 1e3
                if not chunk:
                    return
                got += len(chunk)
                while len(arrived) < len(ends) and got >= ends[len(arrived)]:
                    arrived.append(now)

    thread = threading.Thread(target=serve)
    starts = offsets(case)
    to_lose = {starts[n]: case.times for n in case.lost}
    # The packet's own number says which is lost, not the link.
    with relay(device, *case.links(loses=False), port, to_lose), listener:
        thread.start()
        client = socket.socket()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        client.connect((THERE, port))
        with client:
            began = time.monotonic() * 1e3 + START_MS
            for at, size in case.sends:
                left = began + at - time.monotonic() * 1e3
                if left > 0:
                    time.sleep(left / 1e3)
                origin.append(time.monotonic() * 1e3)
                client.sendall(b"x" * size)
            thread.join()
    return arrived[case.shown] - origin[case.shown]


def offsets(case: Case) -> list[int]:
    """Where each of the case's segments begins in the client's byte stream."""
    starts, total = [], 0
    for _, size in case.sends:
        starts += [total + SEGMENT * n for n in range(-(-size // SEGMENT))]
        total += size
    return starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--congestion", default="reno", help="the kernel's: reno, cubic, bbr")
    parser.add_argument("--only", type=int, nargs="*")
    parser.add_argument("--json", action="store_true", help="accepted: the last line always is")
    options = parser.parse_args()
    device = enter()
    rows: list[dict[str, Any]] = []
    print(f"Linux {os.uname().release}, median of {options.rounds}, ms\n", file=sys.stderr)
    print("| case | kernel | lowest to highest | model | model - kernel |\n|---|---|---|---|---|")
    for number, case in enumerate(cases()):
        if options.only and number not in options.only:
            continue
        times = sorted(real(case, device, options.congestion) for _ in range(options.rounds))
        kernel, model = statistics.median(times), modelled(case)
        print(
            f"| {case.name} | {kernel:.0f} | {times[0]:.0f} to {times[-1]:.0f} "
            f"| {model:.0f} | {model - kernel:+.0f} |",
            flush=True,
        )
        rows.append(
            {
                "case": case.name,
                "kernel_ms": kernel,
                "kernel_ms_all": times,
                "model_ms": model,
                "origin": {"kernel_ms": "measured", "model_ms": "modelled"},
            }
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
