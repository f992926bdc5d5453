"""Drive one cloud session over one WebSocket: frames in, computed answers out, times stamped.

A client can do four bad things: say nonsense, say too much, say nothing, and stop listening. Each
ends its own session with a code that names it, in a `Refusal` frame (`wire.Refusal`) and as the
reason of the close; who does not listen finds the latter behind what it left unread. The others
lose nothing: the inbox is bounded, sends have a deadline, and work that no pass has begun is taken
back.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from cloud_sim.live.engine import Engine, Scored, Unfinished
from cloud_sim.live.inbox import Gone, Inbox, Problem, refusal
from cloud_sim.live.limits import ServerLimits
from cloud_sim.model import ScoreBatch, ScoreRequest
from edge_runtime import wire
from edge_runtime.schedules.actions import Arrival, Compute, Receive, Send, Session
from edge_runtime.timing import now_ms

POLICY_VIOLATION = 1008
"""WebSocket close code after a refusal; the reason is the refusal's code."""

CLOSE_S = 20.0
"""How long a client that took nothing may take to hear that its connection is being closed."""


class Stalled(Gone):
    """The client takes nothing; like one whose link is down, it may come back for its cache."""


class Withdrawn(Exception):
    """Work was taken back before it began: the session's cache is not what the session thinks."""


async def drive(session: Session, socket: WebSocket, engine: Engine, limits: ServerLimits) -> str:
    """Run `session` over an accepted `socket` until it ends: why, as a code; empty when in order.

    The socket is still to be closed (`close`).
    """
    inbox = Inbox(limits)
    listener = asyncio.create_task(inbox.listen(socket))
    try:
        await _Drive(session, socket, engine, inbox, listener, limits).run()
    except Gone as gone:
        session.close()
        return "stalled" if isinstance(gone, Stalled) else ""
    except Withdrawn as withdrawn:
        _abandon(session, withdrawn)
    except Problem as problem:
        _abandon(session, problem)
        if not problem.sent:
            await _last_word(socket, problem.refusal, limits.send_s)
        return problem.refusal.code
    except BaseException as error:
        _abandon(session, error)
        raise
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
    return ""


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
            withdrawn = not scoring.done() and self._engine.withdraw(future)
            if not scoring.done():
                await asyncio.wait({scoring})
        if withdrawn or isinstance(scoring.exception(), Unfinished):
            with contextlib.suppress(Gone):
                self._inbox.check()  # what the client did wrong is told all the same
            raise Withdrawn
        try:
            scored: Scored = scoring.result()
        except Exception as error:
            raise Problem(
                refusal("internal", f"the cloud model failed: {_first_line(error)}")
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
    """One frame. Raises `Gone` when the client has left, `Stalled` if it takes none `within_s`."""
    try:
        async with asyncio.timeout(within_s):
            await socket.send_bytes(wire.encode(frame))
    except TimeoutError as error:
        raise Stalled from error
    except (WebSocketDisconnect, RuntimeError, OSError) as error:
        raise Gone from error


async def _last_word(socket: WebSocket, refusal: wire.Refusal, within_s: float) -> None:
    try:
        await send(socket, refusal, within_s)
    except Gone:
        return


async def close(socket: WebSocket, reason: str = "") -> None:
    """Close, if it is still open; `reason` is a refusal's code."""
    if socket.application_state is not WebSocketState.DISCONNECTED:
        code = POLICY_VIOLATION if reason else 1000
        try:
            async with asyncio.timeout(CLOSE_S):
                await socket.close(code, reason)
        except (WebSocketDisconnect, RuntimeError, OSError, TimeoutError):
            return


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
