"""A completions server that writes what a test says, byte for byte, however rude."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from tests.completions_server import Completions

HANG, RESET = b"<hang>", b"<reset>"
"""In the place of bytes to write: nothing more comes; the connection is reset."""

Manners = Callable[[Iterator[dict[str, Any]]], Iterator[bytes]]
"""From the events of a well-behaved answer to the bytes that are written instead."""

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
PLAIN = OK + b"\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def event(step: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(step, ensure_ascii=False).encode() + b"\n\n"


def whole(steps: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """As one should."""
    yield PLAIN
    yield from map(event, steps)
    yield b"data: [DONE]\n\n"


def refuses(status: int, body: bytes = b"") -> Manners:
    return lambda steps: iter([b"HTTP/1.1 %d No\r\n\r\n" % status + body])


class Rude:
    """`manners` for each request in turn, the last for all that follow."""

    def __init__(self, app: Completions, *manners: Manners) -> None:
        self.app, self.manners = app, list(manners)
        self.heads: list[str] = []
        """Of the requests, as they came."""
        self.url = ""

    @asynccontextmanager
    async def serving(
        self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[Rude]:
        server = await asyncio.start_server(self._serve, host, 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"openai:{'https' if tls else 'http'}://{shown}:{port}/v1"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        (size,) = (int(x[15:]) for x in head.split("\r\n") if x.lower().startswith("content-le"))
        asked = json.loads(await reader.readexactly(size))
        self.app.prompts.append(asked["prompt"])
        manners = self.manners.pop(0) if len(self.manners) > 1 else self.manners[0]
        try:
            for data in manners(self.app.steps(asked)):
                if data == HANG:
                    await reader.read()  # until the client has had enough
                    break
                if data == RESET:
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(0)
            writer.close()
        except OSError:
            return
