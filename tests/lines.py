"""Lines that break: relays for tests, in front of a server or of the shaper."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets import CloseCode
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


class Cutter:
    """A TCP relay that cuts the connection after so many of the server's frames, once each, or goes
    silent instead without closing (`half_open`). The server's HTTP answer counts as a frame."""

    def __init__(self, port: int, cuts: list[int], half_open: bool = False) -> None:
        self.port, self.cuts, self.half_open = port, list(cuts), half_open
        self.connections = 0
        self.passed = 0
        """The server's frames that came through, over all connections."""
        self.listens_on = 0
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.listens_on}"

    def cut_now(self) -> None:
        """Cut every connection that is open."""
        for writer in self._open:
            writer.transport.abort()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Cutter]:
        relay = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.listens_on = relay.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            relay.close()
            self.cut_now()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        left = self.cuts.pop(0) if self.cuts else 10**9
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, up_writer}

        async def up() -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    up_writer.write(data)
            up_writer.close()

        task = asyncio.create_task(up())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            upgraded = False
            while left:
                frame = await (_frame(up_reader) if upgraded else up_reader.readuntil(b"\r\n\r\n"))
                writer.write(frame)
                upgraded = True
                left -= 1
                self.passed += 1
            if self.half_open:
                await asyncio.Event().wait()
        await _flushed(writer)
        writer.transport.abort()
        up_writer.transport.abort()
        await asyncio.gather(task, return_exceptions=True)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """One WebSocket frame of a server (RFC 6455, section 5.2: no mask), header and payload."""
    head = await reader.readexactly(2)
    size = head[1] & 0x7F
    if size >= 126:
        more = await reader.readexactly(2 if size == 126 else 8)
        head, size = head + more, int.from_bytes(more, "big")
    return head + await reader.readexactly(size)


async def _flushed(writer: asyncio.StreamWriter) -> None:
    """An abort throws away what was not handed to the kernel yet."""
    with contextlib.suppress(OSError):
        await writer.drain()


@asynccontextmanager
async def breaking_off(url: str, after: int) -> AsyncIterator[str]:
    """A way to the server at `url` that lets so many of its messages through and then says that it
    will never serve again."""

    async def relay(phone: ServerConnection) -> None:
        assert phone.request is not None
        secret = {"Authorization": phone.request.headers["Authorization"]}
        async with connect(url, additional_headers=secret) as cloud:
            up = asyncio.create_task(passed_on(phone, cloud))
            for _ in range(after):
                await phone.send(await cloud.recv())
            await phone.close(CloseCode.POLICY_VIOLATION, "never again")
            await up

    async def passed_on(phone: ServerConnection, cloud: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in phone:
                await cloud.send(message)

    async with serve(relay, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
