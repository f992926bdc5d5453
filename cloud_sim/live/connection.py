"""Drive one cloud session over one WebSocket: frames in, computed answers out, times stamped.

A client can do four bad things: say nonsense, say too much, say nothing, and stop listening. Each
ends its own session with a `Refusal` frame whose code names it (`wire.Refusal`), and costs the
others nothing: the inbox is bounded, sends have a deadline, and work that no pass has begun is
taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from cloud_sim.live.engine import Engine, Scored
from cloud_sim.model import ScoreBatch, ScoreRequest
from cloud_sim.session import Limits
from edge_runtime import wire
from edge_runtime.errors import ConnectionFailed
from edge_runtime.schedules.actions import Arrival, Compute, Receive, Send, Session, Timeout

POLICY_VIOLATION = 1008
"""WebSocket close code after a refusal; the reason is the refusal's code."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the server as a whole allows; `session` is what one answer may ask for."""

    session: Limits = field(default_factory=Limits)
    sessions: int = 64
    """Connections at a time."""
    frame_bytes: int = 65_536
    """One uplink message."""
    inbox_frames: int = 256
    """Messages that may wait to be looked at, per session."""
    idle_s: float = 120.0
    """Silence allowed while the cloud waits for the device."""
    send_s: float = 20.0
    """A client that takes nothing for so long is dropped."""


class Gone(Exception):
    """The client has left, and may come back for its cache."""


class Withdrawn(Exception):
    """Work was taken back before it began: the session's cache is not what the session thinks."""


class Problem(Exception):
    """Ends the session with a typed refusal, which the session itself may have `sent` already."""

    def __init__(self, refusal: wire.Refusal, sent: bool = False) -> None:
        self.refusal = refusal
        self.sent = sent


class Inbox:
    """Frames that have arrived, each with when; filled by `listen`, emptied by the session."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._frames: deque[tuple[wire.Up, float]] = deque()
        self._problem: wire.Refusal | None = None
        self._gone = False
        self._news = asyncio.Event()

    async def listen(self, socket: WebSocket) -> None:
        """Take frames until the client leaves or does something that ends its session."""
        while self._problem is None:
            message = await socket.receive()
            now = now_ms()
            if message["type"] == "websocket.disconnect":
                self._gone = True
            else:
                self._take(message.get("bytes"), now)
            self._news.set()
            if self._gone:
                return

    def _take(self, raw: bytes | None, now: float) -> None:
        limits = self._limits
        if raw is None:
            self._problem = _refusal("not_a_frame", "a text message is no frame", "text", "binary")
        elif len(raw) > limits.frame_bytes:
            self._problem = _refusal(
                "frame_too_large",
                "a message is larger than this server allows",
                f"{len(raw)} bytes",
                f"at most {limits.frame_bytes}",
                "Shorten the query",
            )
        elif len(self._frames) >= limits.inbox_frames:
            self._problem = _refusal(
                "flood",
                "messages come faster than they can be answered",
                f"{len(self._frames) + 1} waiting",
                f"at most {limits.inbox_frames}",
                "Wait for answers",
            )
        else:
            try:
                self._frames.append((wire.decode_up(raw), now))
            except ConnectionFailed as error:
                self._problem = _refusal(
                    "not_a_frame", error.what, error.got or "", error.allowed or ""
                )

    def check(self) -> None:
        """Raises `Gone` or `Problem` if there is nothing left to serve."""
        if self._gone:
            raise Gone
        if self._problem is not None:
            raise Problem(self._problem)

    async def next(self, deadline_ms: float | None) -> Arrival | Timeout:
        """The next frame; `Timeout` after `deadline_ms`. Raises `Gone` or `Problem`."""
        allowed = self._limits.idle_s * 1e3
        wait = allowed if deadline_ms is None else min(deadline_ms, allowed)
        until = now_ms() + wait
        while True:
            self.check()
            if self._frames:
                frame, arrived = self._frames.popleft()
                return Arrival(frame, arrived)
            left = until - now_ms()
            if left <= 0:
                break
            self._news.clear()
            try:
                async with asyncio.timeout(left / 1e3):
                    await self._news.wait()
            except TimeoutError:
                break
        if deadline_ms is not None and deadline_ms <= allowed:
            return Timeout(now_ms())
        raise Problem(
            _refusal(
                "idle",
                "the device has been silent for too long",
                f"{wait / 1e3:.0f} s",
                f"at most {self._limits.idle_s:.0f} s",
                "Ask again",
            )
        )


async def drive(session: Session, socket: WebSocket, engine: Engine, limits: ServerLimits) -> None:
    """Run `session` to its end over an accepted `socket`, and close both."""
    inbox = Inbox(limits)
    listener = asyncio.create_task(inbox.listen(socket))
    code, reason = 1000, ""
    try:
        await _Drive(session, socket, engine, inbox, listener, limits).run()
    except Gone:
        session.close()
    except Withdrawn as withdrawn:
        _abandon(session, withdrawn)
    except Problem as problem:
        _abandon(session, problem)
        code, reason = POLICY_VIOLATION, problem.refusal.code
        if not problem.sent:
            await _last_word(socket, problem.refusal, limits.send_s)
    except BaseException as error:
        _abandon(session, error)
        raise
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
        await close(socket, code, reason)


def _abandon(session: Session, why: BaseException) -> None:
    """End `session` so that it keeps nothing for a client that comes back."""
    with contextlib.suppress(BaseException):
        session.throw(why)
    session.close()


class _Drive:
    """The loop over a session's actions, and the stamp for what it sends next."""

    def __init__(
        self,
        session: Session,
        socket: WebSocket,
        engine: Engine,
        inbox: Inbox,
        listener: asyncio.Task[None],
        limits: ServerLimits,
    ) -> None:
        self._session, self._socket, self._engine = session, socket, engine
        self._inbox, self._listener, self._limits = inbox, listener, limits
        self._received_ms = self._queue_ms = self._compute_ms = 0.0

    async def run(self) -> None:
        event: Any = None
        while True:
            try:
                action = self._session.send(event)
            except StopIteration:
                return
            if isinstance(action, Receive):
                event = await self._inbox.next(action.deadline_ms)
                if isinstance(event, Arrival):
                    self._received_ms = event.now_ms
            elif isinstance(action, Compute):
                self._inbox.check()
                event = await self._compute(action)
            elif isinstance(action, Send):
                event = now_ms()
                await self._send(action.frame)
            else:
                raise TypeError(f"a session asked for {action!r}")

    async def _compute(self, action: Compute) -> Any:
        if not isinstance(action.work, ScoreRequest | ScoreBatch):
            return action.work()
        future = self._engine.submit(action.work)
        scoring: asyncio.Future[Any] = asyncio.wrap_future(future)
        try:
            await asyncio.wait({scoring, self._listener}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Take the work back, or wait: a pass must not lose the sequence that it is using.
            withdrawn = not scoring.done() and future.cancel()
            if not scoring.done():
                await asyncio.wait({scoring})
        if withdrawn:
            with contextlib.suppress(Gone):
                self._inbox.check()  # what the client did wrong is told all the same
            raise Withdrawn
        try:
            scored: Scored = scoring.result()
        except Exception as error:
            raise Problem(
                _refusal("internal", f"the cloud model failed: {_first_line(error)}")
            ) from error
        self._inbox.check()
        self._queue_ms += scored.queue_ms
        self._compute_ms += scored.compute_ms
        return scored.result

    async def _send(self, frame: Any) -> None:
        stamp = wire.Stamp(
            round(self._received_ms * 1e3),
            round(self._queue_ms * 1e3),
            round(self._compute_ms * 1e3),
            round(now_ms() * 1e3),
        )
        self._queue_ms = self._compute_ms = 0.0
        await send(self._socket, wire.stamped(frame, stamp), self._limits.send_s)
        if isinstance(frame, wire.Refusal):
            raise Problem(frame, sent=True)


async def send(socket: WebSocket, frame: wire.Down, within_s: float) -> None:
    """One frame. Raises `Gone` when the client has left or has taken nothing for `within_s`."""
    try:
        async with asyncio.timeout(within_s):
            await socket.send_bytes(wire.encode(frame))
    except (WebSocketDisconnect, RuntimeError, OSError, TimeoutError) as error:
        raise Gone from error


async def _last_word(socket: WebSocket, refusal: wire.Refusal, within_s: float) -> None:
    try:
        await send(socket, refusal, within_s)
    except Gone:
        return


async def close(socket: WebSocket, code: int, reason: str = "") -> None:
    """Close, if it is still open."""
    if socket.application_state is not WebSocketState.DISCONNECTED:
        try:
            async with asyncio.timeout(1.0):
                await socket.close(code, reason)
        except (WebSocketDisconnect, RuntimeError, OSError, TimeoutError):
            return


def now_ms() -> float:
    """The driver's monotonic clock."""
    return time.monotonic() * 1e3


def _refusal(
    code: str, what: str, got: str = "", allowed: str = "", todo: str = ""
) -> wire.Refusal:
    return wire.Refusal(code, "cloud", what, got, allowed, todo)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
