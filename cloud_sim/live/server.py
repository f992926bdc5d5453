"""The cloud model's server: one WebSocket a session, one engine for all.

    GET /          upgraded to a WebSocket: frames of `edge_runtime.wire`, one session
    GET /health    JSON: model, protocol, sessions, what the engine has done

With a token, the upgrade request must carry ``Authorization: Bearer TOKEN``. A client that may not
come in is told why: the upgrade is accepted, a `Refusal` frame sent, the connection closed.
"""

from __future__ import annotations

import asyncio
import hmac
import signal
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from cloud_sim.live.connection import close, drive, send
from cloud_sim.live.engine import Engine
from cloud_sim.live.inbox import Gone, refusal
from cloud_sim.live.limits import ServerLimits
from cloud_sim.model import CloudModel
from cloud_sim.session import session
from cloud_sim.session.cache import Shelf
from edge_runtime import wire
from edge_runtime.errors import EnvironmentFailure

KEEPALIVE_S = 20.0
"""The server pings after so much silence and drops a client that does not answer in as long:
that is how a half-open connection is noticed."""


class Service:
    """What all connections of one application share."""

    def __init__(self, model: CloudModel, limits: ServerLimits, token: str | None) -> None:
        self.model = model
        self.limits = limits
        self.engine = Engine(model)
        self._token = token
        self._shelf = Shelf(limits.kept_caches)
        self._connections: set[asyncio.Task[None]] = set()
        self.sessions = 0
        """Connections that are being served."""
        self.served = 0
        self.refused = 0
        self.dropped: Counter[str] = Counter()
        """Sessions that the server ended, by the refusal's code."""

    async def connect(self, socket: WebSocket) -> None:
        """Serve one WebSocket from upgrade to close."""
        try:
            await socket.accept()
        except (WebSocketDisconnect, RuntimeError, OSError):
            return
        unwelcome = self._unwelcome(socket)
        if unwelcome is not None:
            self.refused += 1
            try:
                await send(socket, unwelcome, self.limits.send_s)
            except Gone:
                return
            await close(socket, unwelcome.code)
            return
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await close(socket, await self._serve(socket))
        finally:
            self._connections.discard(task)

    async def _serve(self, socket: WebSocket) -> str:
        self.served += 1
        self.sessions += 1
        reason = "internal"
        try:
            answer = session(self.model, self.limits.session, shelf=self._shelf)
            reason = await drive(answer, socket, self.engine, self.limits)
        finally:
            self.sessions -= 1
            if reason:
                self.dropped[reason] += 1
        return reason

    def _unwelcome(self, socket: WebSocket) -> wire.Refusal | None:
        if self._token is not None:
            shown = socket.headers.get("authorization", "")
            expected = f"Bearer {self._token}"
            if not hmac.compare_digest(shown.encode(), expected.encode()):
                return refusal(
                    "unauthorized",
                    "the token is wrong" if shown else "this server wants a token",
                    todo="Name the file that holds the server's token with --token-file",
                )
        if self.sessions >= self.limits.sessions:
            return refusal(
                "busy",
                "the server has as many sessions as it allows",
                str(self.sessions),
                f"at most {self.limits.sessions}",
                "Try again later",
            )
        return None

    async def health(self, request: Request) -> JSONResponse:
        """What the server is doing."""
        return JSONResponse(
            {
                "model": self.model.name,
                "protocol": wire.PROTOCOL,
                "sessions": self.sessions,
                "served": self.served,
                "refused": self.refused,
                "dropped": dict(self.dropped),
                "waiting": self.engine.waiting,
                "engine": asdict(self.engine.totals),
            }
        )

    async def forget(self) -> None:
        """Let go of the caches that no device came back for, until cancelled."""
        while True:
            await asyncio.sleep(self.limits.kept_s)
            self._shelf.age()

    async def stop(self) -> None:
        """End all sessions and the engine."""
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.to_thread(self.engine.stop)
        self._shelf.clear()


def create_app(
    model: CloudModel, limits: ServerLimits | None = None, token: str | None = None
) -> Starlette:
    """The ASGI application around `model`; its engine starts and stops with it."""
    holder: list[Service] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service = Service(model, limits or ServerLimits(), token)
        app.state.service = service
        holder.append(service)
        forgetting = asyncio.create_task(service.forget())
        try:
            yield
        finally:
            forgetting.cancel()
            holder.remove(service)
            await service.stop()

    async def connect(socket: WebSocket) -> None:
        await holder[-1].connect(socket)

    async def health(request: Request) -> JSONResponse:
        return await holder[-1].health(request)

    routes = [WebSocketRoute("/", connect), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificate chain and private key (PEM files) for wss."""

    certificate: str
    key: str


class Server(uvicorn.Server):
    """uvicorn on a socket that is already bound, so that port 0 gets a number before it starts."""

    def __init__(
        self,
        app: Starlette,
        listener: socket.socket,
        *,
        limits: ServerLimits | None = None,
        tls: Tls | None = None,
        ready: Callable[[], None] | None = None,
    ) -> None:
        limits = limits or ServerLimits()
        self._socket = listener
        self.host, self.port = listener.getsockname()[:2]
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"{'wss' if tls else 'ws'}://{host}:{self.port}"
        self._ready = ready
        self._ended_by: int | None = None
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="error",
                lifespan="on",
                ws="websockets-sansio",
                # Our own limit refuses with a frame; this one only protects the memory.
                ws_max_size=4 * limits.frame_bytes,
                ws_per_message_deflate=False,
                ws_ping_interval=KEEPALIVE_S,
                ws_ping_timeout=KEEPALIVE_S,
                timeout_graceful_shutdown=2,
                ssl_certfile=tls.certificate if tls else None,
                ssl_keyfile=tls.key if tls else None,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self._ready is not None and self.started:
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's gives them back while the loop still ends; `run_here` has them until after."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first ends the server; uvicorn takes a second as leave to drop all, noisily."""
        self._ended_by, self.should_exit = self._ended_by or sig, True

    def run_here(self) -> None:
        """Serve until interrupted, then pass the interruption on."""
        here = threading.current_thread() is threading.main_thread()
        heard = (signal.SIGINT, signal.SIGTERM) if here else ()
        before = {sig: signal.signal(sig, self.handle_exit) for sig in heard}
        try:
            self.run(sockets=[self._socket])
        finally:
            self._socket.close()
            for sig, handler in before.items():
                signal.signal(sig, handler)
        if self._ended_by is not None:
            signal.raise_signal(self._ended_by)


@contextmanager
def running(
    model: CloudModel,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: ServerLimits | None = None,
    token: str | None = None,
) -> Iterator[Server]:
    """A server in a thread of this process, listening when the block begins."""
    listening = threading.Event()
    app = create_app(model, limits, token)
    server = Server(app, bound(host, port), limits=limits, ready=listening.set)
    thread = threading.Thread(target=server.run_here, name="costeer-server", daemon=True)
    thread.start()
    try:
        while not listening.wait(0.1):
            if not thread.is_alive():
                raise EnvironmentFailure("serve", "the server did not start")
        yield server
    finally:
        server.should_exit = True
        thread.join()


def bound(host: str, port: int) -> socket.socket:
    """A TCP socket with that address (port 0: any free one), not yet listening.

    Raises `EnvironmentFailure` when the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only where the protocol is named. With it on, the frame
    # after the first waits for an acknowledgement that Linux delays by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # What was sent to a client that never takes it is kept no longer than this.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(2e3 * KEEPALIVE_S))
    try:
        listener.bind((host, port))
    except (OSError, OverflowError, TypeError, ValueError) as error:  # the last two: no name
        listener.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise EnvironmentFailure(
            "serve",
            f"the address cannot be listened on: {reason}",
            got=f"{host}:{port}",
            todo="Choose another --host or --port (0: any free one)",
        ) from error
    return listener
