"""One streamed HTTP/1.1 POST: server-sent events as they come, and its bytes counted.

Just what a completions stream needs, over asyncio's own sockets: no redirects, no compression, no
connection reuse. Closing it early is how the server is told to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from urllib.parse import urlsplit

from edge_runtime.connections.patience import Patience
from edge_runtime.errors import ConnectionFailed, UsageError

BODY_BYTES = 1 << 20
"""Most that is read of an error's body, and of one event."""


class HttpRefused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body
        super().__init__(status)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go: scheme, host, port, the path before the verb and what follows it."""

    tls: bool
    host: str
    port: int
    path: str
    query: str = ""

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Of http://HOST[:PORT]/PATH[?QUERY]. Raises `UsageError`."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        usable = parts.scheme in ("http", "https") and parts.hostname
        if not usable or not url.isascii() or not url.isprintable() or " " in url:
            raise UsageError(
                "cloud",
                "this is no address of a completions server",
                got=url,
                allowed="openai:http://HOST:PORT/v1#MODEL",
            )
        tls = parts.scheme == "https"
        host, path = parts.hostname or "", parts.path.rstrip("/")
        return cls(tls, host, port or (443 if tls else 80), path, parts.query)

    @property
    def authority(self) -> str:
        """Host and port, as in a `Host` header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """As a person would write it."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"

    def target(self, verb: str) -> str:
        """What a request line asks for."""
        return f"{self.path}{verb}?{self.query}" if self.query else f"{self.path}{verb}"


class Post:
    """A request under way."""

    def __init__(self, endpoint: Endpoint, patience: Patience) -> None:
        self._endpoint, self._patience = endpoint, patience
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._chunked = False
        self.read_bytes = 0
        """Received so far, heads included."""

    async def begin(self, path: str, body: bytes, headers: dict[str, str]) -> int:
        """Send the request and read the answer's head; the bytes sent.

        Raises `ConnectionFailed`, or `HttpRefused` for a status other than 200.
        """
        end = self._endpoint
        head = [f"POST {end.target(path)} HTTP/1.1", f"Host: {end.authority}"]
        sent = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        sent |= headers | {"Content-Length": str(len(body)), "Connection": "close"}
        head += [f"{name}: {value}" for name, value in sent.items()]
        message = "\r\n".join([*head, "", ""]).encode("latin-1") + body
        try:
            async with asyncio.timeout(self._patience.connect_s):
                self._reader, self._writer = await asyncio.open_connection(
                    end.host,
                    end.port,
                    ssl=ssl.create_default_context() if end.tls else None,
                    limit=BODY_BYTES,
                )
                self._writer.write(message)
                await self._writer.drain()
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "no answer in time"
            raise ConnectionFailed(
                "cloud", f"no server at {end.url}: {reason}", todo="Check the address"
            ) from error
        await self._head()
        return len(message)

    async def _head(self) -> None:
        assert self._reader is not None
        try:
            raw = await self._soon(self._reader.readuntil(b"\r\n\r\n"))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
            raise ConnectionFailed(
                "cloud", f"what answers at {self._endpoint.url} does not speak HTTP"
            ) from error
        self.read_bytes += len(raw)
        first, *lines = raw.decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
            raise ConnectionFailed(
                "cloud", f"what answers at {self._endpoint.url} does not speak HTTP"
            )
        fields = {k.strip().lower(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
        self._chunked = "chunked" in fields.get("transfer-encoding", "").lower()
        if words[1] != "200":
            body = b""
            with contextlib.suppress(OSError, TimeoutError, ConnectionFailed):
                async with asyncio.timeout(5):
                    async for line in self._lines():
                        body += line + b"\n"
                        if len(body) > BODY_BYTES:
                            break
            raise HttpRefused(int(words[1]), body)

    async def _soon(self, reading: Awaitable[bytes]) -> bytes:
        """What `reading` gives. Raises `ConnectionFailed` if nothing comes for too long."""
        try:
            async with asyncio.timeout(self._patience.silence_s):
                return await reading
        except TimeoutError as error:
            raise ConnectionFailed(
                "cloud",
                f"the server at {self._endpoint.url} has fallen silent",
                got=f"nothing for {self._patience.silence_s:g} s",
            ) from error

    async def events(self) -> AsyncIterator[tuple[bytes, int]]:
        """The data of each server-sent event, and the bytes it took on the line.

        Ends where the server ends it. Raises `ConnectionFailed` when it breaks off.
        """
        before = self.read_bytes
        async for line in self._lines():
            if line.startswith(b"data:"):
                yield line[5:].strip(), self.read_bytes - before
                before = self.read_bytes

    async def _lines(self) -> AsyncIterator[bytes]:
        rest = b""
        async for data in self._body():
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line.rstrip(b"\r")
        if rest:
            yield rest

    async def _body(self) -> AsyncIterator[bytes]:
        reader = self._reader
        assert reader is not None
        try:
            if not self._chunked:
                while data := await self._soon(reader.read(65_536)):
                    self.read_bytes += len(data)
                    yield data
                return
            while True:
                head = await self._soon(reader.readuntil(b"\r\n"))
                size = int(head.split(b";")[0], 16)
                if size > BODY_BYTES:
                    raise ValueError("a chunk is too large")
                data = await self._soon(reader.readexactly(size + 2))
                self.read_bytes += len(head) + len(data)
                if size == 0:
                    return
                yield data[:-2]
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError) as e:
            raise ConnectionFailed(
                "cloud", f"the stream from {self._endpoint.url} broke off"
            ) from e

    def cancel(self) -> None:
        """Close the connection at once."""
        if self._writer is not None:
            self._writer.transport.abort()
