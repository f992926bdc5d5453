"""A simulated link in front of a real server: a TCP proxy that delays and paces real bytes.

    client ──▶ [ shaper: Stream(uplink) ──▶ ] ──▶ server
           ◀── [ ◀── Stream(downlink) ]      ◀──

What each direction does to bytes comes from the very `Stream` and `Link` objects that the
simulator uses; only the clock is real. Every chunk that is read counts as one message: its
segments, headers, losses and retransmissions are modelled, and it is handed on when the model says
that its last byte has arrived. A new connection first pays the transport's opening round trip.

Not modelled: what the two real TCP connections do on loopback (well under a millisecond), and
chunks that the kernel joins (several frames written at once are one message here). Timers are kept
by a thread, since an event loop rounds its waits up to whole milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cloud_sim.net.links import Link
from cloud_sim.net.sender import Stream
from cloud_sim.net.transport import Transport
from edge_runtime import timing
from edge_runtime.errors import EnvironmentFailure

CHUNK_BYTES = 1 << 20
"""More than any message: one read takes one write of the peer, as far as the kernel lets it."""

MakeLinks = Callable[[int], tuple[Link, Link]]
"""A fresh uplink and downlink for the n-th connection."""


_NEAR_MS = 1.0
"""A waiting thread wakes up late: the last stretch is slept in small pieces."""
_PIECE_S = 5e-5
_MOST_HOP_MS = 2.0
_LONGEST_WAIT_S = 3600.0
"""A lock cannot wait for any length of time; it is asked again."""


class WallTimers:
    """`transport.Timers` on the wall clock; calls happen on the event loop.

    The way from the timer's thread to the loop takes time as well. Each call measures how late it
    was, and the next ones set out that much earlier, so that the delays are the model's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._hop_ms = 0.1
        self._thread = threading.Thread(target=self._run, name="costeer-shaper", daemon=True)
        self._thread.start()

    now_ms = staticmethod(timing.now_ms)
    """The clock that `at` is on."""

    def at(self, when_ms: float, call: Callable[[], None]) -> None:
        """See `Timers`."""
        with self._changed:
            self._count += 1
            heapq.heappush(self._heap, (when_ms, self._count, call))
            if self._heap[0][1] == self._count:
                self._changed.notify()

    def stop(self) -> None:
        """Forget all calls that are still to come."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped:
                    wait = self._left() - _NEAR_MS if self._heap else None
                    if wait is not None and wait <= 0:
                        break
                    self._changed.wait(None if wait is None else min(wait / 1e3, _LONGEST_WAIT_S))
                if self._stopped:
                    return
            while self._left() > 0:
                time.sleep(_PIECE_S)
            with self._changed:
                when_ms, _, call = heapq.heappop(self._heap)
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(self._arrive, when_ms, call)

    def _left(self) -> float:
        """Until the first call has to set out, ms; a call may come in before it at any time."""
        return self._heap[0][0] - self._hop_ms - self.now_ms()

    def _arrive(self, when_ms: float, call: Callable[[], None]) -> None:
        late_ms = self.now_ms() - when_ms
        # A tenth of each error, and no more of an outlier than of any: the machine's own pauses
        # are not the way's.
        step = 0.1 * min(1.0, max(-1.0, late_ms))
        self._hop_ms = min(_MOST_HOP_MS, max(0.0, self._hop_ms + step))
        call()


class Shaper:
    """Proxies connections to one server; see the module's docstring."""

    def __init__(
        self, links: MakeLinks, transport: Transport, target_host: str, target_port: int
    ) -> None:
        self._links, self._transport = links, transport
        self._target = (target_host, target_port)
        self._timers = WallTimers(asyncio.get_running_loop())
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.up_bytes = 0
        """Read from clients so far."""
        self.down_bytes = 0
        self.retransmissions = 0

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Begin; the address in use. Raises `EnvironmentFailure`."""
        try:
            self._server = await asyncio.start_server(self._connected, host, port)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EnvironmentFailure(
                "shape",
                f"cannot listen on {host}:{port}: {reason}",
                todo="Choose another port with --listen",
            ) from error
        name = self._server.sockets[0].getsockname()
        return name[0], name[1]

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._timers.stop()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # either side has gone: the other is told by the close below
        except Exception as error:
            # asyncio would print a traceback, and for each connection again.
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"shape: a connection is given up: {reason}", file=sys.stderr, flush=True)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        uplink, downlink = self._links(number)
        # Both clocks count from the connection on: links begin at 0, as in the simulator.
        clock = _Since(self._timers)
        up = Stream(uplink, downlink, self._transport, clock, masked=True)
        down = Stream(downlink, uplink, self._transport, clock)
        for stream, size in ((up, 0), (down, 0)):
            arrived = asyncio.Event()
            stream.send_bytes(clock.now_ms(), size, arrived.set)
            await arrived.wait()
        cloud_reader, cloud_writer = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(
                self._relay(reader, cloud_writer, up, clock, "up_bytes"),
                self._relay(cloud_reader, writer, down, clock, "down_bytes"),
            )
        finally:
            self.retransmissions += up.retransmissions + down.retransmissions
            cloud_writer.close()

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stream: Stream,
        clock: _Since,
        counter: str,
    ) -> None:
        while True:
            chunk = await reader.read(CHUNK_BYTES)
            done = asyncio.Event()
            if not chunk:
                # The end of the stream travels too, behind all that was sent.
                stream.send_bytes(clock.now_ms(), 0, done.set)
                await done.wait()
                if writer.can_write_eof() and not writer.is_closing():
                    writer.write_eof()
                return
            setattr(self, counter, getattr(self, counter) + len(chunk))
            stream.send_bytes(clock.now_ms(), len(chunk), lambda c=chunk: _write(writer, c))  # type: ignore[misc]


class _Since:
    """Timers that count from their making."""

    def __init__(self, timers: WallTimers) -> None:
        self._timers = timers
        self._start = timers.now_ms()

    def now_ms(self) -> float:
        return self._timers.now_ms() - self._start

    def at(self, when_ms: float, call: Callable[[], None]) -> None:
        self._timers.at(self._start + when_ms, call)


def _write(writer: asyncio.StreamWriter, chunk: bytes) -> None:
    if not writer.is_closing():
        writer.write(chunk)


@asynccontextmanager
async def shaped(
    links: MakeLinks,
    transport: Transport,
    target: tuple[str, int],
    listen: tuple[str, int] = ("127.0.0.1", 0),
) -> AsyncIterator[tuple[Shaper, tuple[str, int]]]:
    """A shaper that listens while the block runs, and its address."""
    shaper = Shaper(links, transport, *target)
    try:
        address = await shaper.listen(*listen)
        yield shaper, address
    finally:
        await shaper.stop()
