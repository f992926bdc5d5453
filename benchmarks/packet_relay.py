"""A kernel's own packets through simulated links: a TUN device that leads back to its machine.

What leaves the device goes through two `Link` objects, packet by packet and in real time, and comes
back with source and destination exchanged, which leaves every checksum right: a client that
connects to `THERE` reaches a server that listens on `HERE`. Linux, root.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cloud_sim.net.links import LOST, Link

HERE, THERE = "10.99.0.1", "10.99.0.2"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SYN = 2
_NEAR_MS = 0.3
"""The last stretch of a wait is spent looking at the clock."""


def enter() -> int:
    """Move this process into a network namespace of its own with the device in it; its handle."""
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists():
        sys.exit("packet relay: this needs Linux, root and /dev/net/tun")
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        sys.exit(f"packet relay: no network namespace: {os.strerror(ctypes.get_errno())}")
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"costeer0", _IFF_TUN | _IFF_NO_PI))
    for command in ("link set costeer0 mtu 1500 up", f"address add {HERE}/24 dev costeer0"):
        subprocess.run(["ip", *command.split()], check=True)
    # A connection must not learn from the one before it.
    Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1")
    return device


@contextlib.contextmanager
def relay(
    device: int, uplink: Link, downlink: Link, port: int, to_lose: dict[int, int]
) -> Iterator[None]:
    """Carries the packets of connections to `port` while the block runs.

    Parameters
    ----------
    to_lose : of the client's data, the byte that a segment begins with, and how often that segment
        is lost.

    """
    heap: list[tuple[float, int, bytes]] = []
    changed, done = threading.Condition(), threading.Event()
    began = time.monotonic() * 1e3

    def read() -> None:
        count = first = 0
        while not done.is_set():
            packet = os.read(device, 65536)
            now = time.monotonic() * 1e3 - began
            if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
                continue
            header = (packet[0] & 15) * 4
            source, to, sequence = struct.unpack_from("!HHI", packet, header)
            if port not in (source, to):
                continue
            up = to == port
            when = (uplink if up else downlink).send(now, len(packet))
            if up and packet[header + 13] & _SYN:
                first = sequence + 1
            at = (sequence - first) % (1 << 32)
            if up and len(packet) > header + (packet[header + 12] >> 4) * 4 and to_lose.get(at):
                to_lose[at] -= 1
                when = LOST
            if when == LOST:
                continue
            count += 1
            turned = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
            with changed:
                heapq.heappush(heap, (when + began, count, turned))
                changed.notify()

    def write() -> None:
        while True:
            with changed:
                while not done.is_set():
                    left = heap[0][0] - time.monotonic() * 1e3 - _NEAR_MS if heap else None
                    if left is not None and left <= 0:
                        break
                    changed.wait(None if left is None else left / 1e3)
                if done.is_set():
                    return
                when, _, packet = heapq.heappop(heap)
            while when > time.monotonic() * 1e3:
                pass
            os.write(device, packet)

    threads = [threading.Thread(target=work, daemon=True) for work in (read, write)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        time.sleep(0.1)  # the last acknowledgements
        with changed:
            done.set()
            changed.notify()
        # A packet to nowhere, so that the reader looks up.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nudge:
            nudge.sendto(b"", (THERE, 9))
        for thread in threads:
            thread.join()
