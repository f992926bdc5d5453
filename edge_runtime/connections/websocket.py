"""Drive a schedule in real time over a WebSocket to `cloud_sim.live.server`.

The schedule's work runs in a thread of its own, so the socket keeps moving meanwhile. When the
connection breaks, the driver connects again, with growing pauses, and sends the schedule
`Reconnected`: resuming the answer is the schedule's business, what has been emitted stays.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from websockets import CloseCode
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
)

from edge_runtime import wire
from edge_runtime.errors import ConnectionFailed, UsageError
from edge_runtime.schedules.actions import (
    Arrival,
    Compute,
    Emit,
    Finish,
    Receive,
    Reconnected,
    Schedule,
    Send,
    Timeout,
)
from edge_runtime.timing import TokenClock
from edge_runtime.transcript import TokenRecord, Transcript

MESSAGE_BYTES = 16 << 20
"""A downlink message may be so long: a full fp16 vector of the largest vocabularies is 0.5 MB."""

HOPELESS = (CloseCode.POLICY_VIOLATION, CloseCode.MESSAGE_TOO_BIG, CloseCode.UNSUPPORTED_DATA)
"""Close codes after which the same would only happen again."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try before giving up."""

    connect_s: float = 10.0
    """For one attempt to connect."""
    reconnect_s: float = 60.0
    """For getting a broken connection up again; 0: give up at once."""
    first_pause_s: float = 0.1
    """Before the second attempt; doubles up to `longest_pause_s`."""
    longest_pause_s: float = 2.0
    keepalive_s: float = 10.0
    """A ping goes out after so much time and must be answered in as much: so a half-open
    connection is noticed."""


async def answer(
    schedule: Schedule,
    url: str,
    *,
    token: str | None = None,
    on_token: Callable[[TokenRecord], None] | None = None,
    method: str = "",
    gain: float = 0.0,
    pad_to: int = 0,
    patience: Patience = Patience(),
) -> Transcript:
    """Run `schedule` against the server at `url` (ws://HOST:PORT or wss://...).

    `token` is sent as a bearer token; `on_token` sees each token when it is final; `pad_to` pads
    uplink frames. Raises `ConnectionFailed` when the server is not there or stays away, `Refused`
    when it says no, and whatever the schedule raises.
    """
    transcript = Transcript(method, gain, getattr(schedule, "__name__", ""), "")
    line = _Line(url, token, patience)
    driver = _Driver(schedule, line, transcript, on_token, pad_to)
    try:
        await line.open(patience.connect_s)
        finish = await driver.run()
    finally:
        schedule.close()
        await line.close()
        driver.stop()
    transcript.finish = finish.reason
    transcript.counters.update(finish.counters)
    transcript.notes.extend(finish.notes)
    if line.reconnections:
        transcript.counters["reconnections"] = line.reconnections
    return transcript


class _Driver:
    """The loop over a schedule's actions, and the record of what they cost."""

    def __init__(
        self,
        schedule: Schedule,
        line: _Line,
        transcript: Transcript,
        on_token: Callable[[TokenRecord], None] | None,
        pad_to: int,
    ) -> None:
        self._schedule, self._line, self._transcript = schedule, line, transcript
        self._on_token, self._pad_to = on_token, pad_to
        self._worker = ThreadPoolExecutor(1, "costeer-device")
        self._start_ms = now_ms()
        self._clock = TokenClock(self._start_ms)
        self._asked = False

    async def run(self) -> Finish:
        event: Any = None
        while True:
            try:
                action = self._schedule.send(event)
            except StopIteration as stop:
                finish: Finish = stop.value
                return finish
            if isinstance(action, Compute):
                event = await self._compute(action)
            elif isinstance(action, Send):
                event = await self._send(action.frame)
            elif isinstance(action, Receive):
                event = await self._receive(action.deadline_ms)
            else:
                self._emit(action)
                event = None

    def stop(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _compute(self, action: Compute) -> Any:
        began = now_ms()
        result = await asyncio.get_running_loop().run_in_executor(self._worker, action.work)
        self._clock.computed(action.kind, now_ms() - began)
        return result

    async def _send(self, frame: Any) -> float:
        message = wire.encode(frame, self._pad_to)
        now = now_ms()
        if isinstance(frame, wire.Open | wire.Extend):
            self._clock.sent(now)
            self._asked = True
        if isinstance(frame, wire.Open):
            self._transcript.codec = frame.codec
        self._transcript.uplink_bytes += len(message)
        self._transcript.uplink_frames += 1
        await self._line.send(message)
        return now

    async def _receive(self, deadline_ms: float | None) -> Arrival | Timeout | Reconnected:
        began = now_ms()
        event = await self._line.receive(deadline_ms)
        if not isinstance(event, _Message):
            self._clock.waited(event.now_ms - began)
            return event
        now = now_ms()
        if self._asked and event.arrived_ms > began:
            self._transcript.round_trips += 1
        self._asked = False
        self._transcript.downlink_bytes += len(event.raw)
        self._transcript.downlink_frames += 1
        frame = wire.decode_down(event.raw)
        raw_stamp = b"" if isinstance(frame, wire.Refusal) else frame.stamp
        self._clock.received(began, now, event.arrived_ms, wire.Stamp.unpack(raw_stamp))
        return Arrival(frame, event.arrived_ms)

    def _emit(self, action: Emit) -> None:
        now = now_ms()
        parts = self._clock.emit(now)
        record = TokenRecord(action.token, now - self._start_ms, parts, action.decision)
        self._transcript.records.append(record)
        if self._on_token is not None:
            self._on_token(record)


@dataclass(frozen=True, slots=True)
class _Message:
    raw: bytes
    arrived_ms: float


class _Line:
    """A WebSocket that comes back: messages that have arrived, and whether it is up."""

    def __init__(self, url: str, token: str | None, patience: Patience) -> None:
        self._url = checked(url)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._patience = patience
        self._socket: ClientConnection | None = None
        self._listener: asyncio.Task[None] | None = None
        self._messages: deque[_Message] = deque()
        self._news = asyncio.Event()
        self._lost: ConnectionClosed | None = None
        self.reconnections = 0

    async def open(self, within_s: float) -> None:
        """Connect. Raises `ConnectionFailed`."""
        try:
            self._socket = await connect(
                self._url,
                additional_headers=self._headers,
                compression=None,
                max_size=MESSAGE_BYTES,
                open_timeout=within_s,
                close_timeout=1.0,
                ping_interval=self._patience.keepalive_s,
                ping_timeout=self._patience.keepalive_s,
                proxy=None,
            )
        except (OSError, TimeoutError, InvalidHandshake, InvalidURI) as error:
            raise _not_there(self._url, error) from error
        self._lost = None
        self._messages.clear()
        self._listener = asyncio.create_task(self._listen(self._socket))

    async def close(self) -> None:
        """Say goodbye, if there is anybody to hear it."""
        if self._socket is not None:
            await self._socket.close()
        if self._listener is not None:
            await self._listener

    async def send(self, message: bytes) -> None:
        """Hand over; a loss is noticed at the next `receive`."""
        if self._socket is not None:
            try:
                await self._socket.send(message)
            except ConnectionClosed as lost:
                self._lose(lost)

    async def receive(self, deadline_ms: float | None) -> _Message | Timeout | Reconnected:
        """The next message; `Timeout` after `deadline_ms`; `Reconnected` after a loss."""
        until = None if deadline_ms is None else now_ms() + deadline_ms
        while True:
            if self._messages:
                return self._messages.popleft()
            if self._lost is not None:
                await self._again(self._lost)
                return Reconnected(now_ms())
            left = None if until is None else until - now_ms()
            if left is not None and left <= 0:
                return Timeout(now_ms())
            self._news.clear()
            try:
                async with asyncio.timeout(None if left is None else left / 1e3):
                    await self._news.wait()
            except TimeoutError:
                return Timeout(now_ms())

    async def _listen(self, socket: ClientConnection) -> None:
        try:
            while True:
                raw = await socket.recv(decode=False)
                self._messages.append(_Message(raw, now_ms()))
                self._news.set()
        except ConnectionClosed as lost:
            if socket is self._socket:
                self._lose(lost)

    def _lose(self, lost: ConnectionClosed) -> None:
        self._lost = lost
        self._news.set()

    async def _again(self, lost: ConnectionClosed) -> None:
        """Connect again, with growing pauses, for as long as patience lasts."""
        hopeless = lost.rcvd is not None and lost.rcvd.code in HOPELESS
        until = now_ms() + (0 if hopeless else self._patience.reconnect_s * 1e3)
        pause = self._patience.first_pause_s
        failure: Exception = ConnectionFailed(
            "cloud",
            f"the server at {self._url} closed the connection",
            got=_reason(lost),
            todo="Ask again",
        )
        while now_ms() < until:
            try:
                await self.open(min(self._patience.connect_s, (until - now_ms()) / 1e3))
            except ConnectionFailed as error:
                failure = error
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._patience.longest_pause_s)
            else:
                self.reconnections += 1
                return
        raise failure


def checked(url: str) -> str:
    """`url` if it is one this driver can use. Raises `UsageError`."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("ws", "wss") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(
            "cloud", "this is no address of a server", got=url, allowed="ws://HOST:PORT, wss://..."
        )
    return url


def now_ms() -> float:
    """The driver's monotonic clock."""
    return time.monotonic() * 1e3


def _not_there(url: str, error: Exception) -> ConnectionFailed:
    if isinstance(error, InvalidStatus):
        what = f"what answers at {url} is no costeer server"
        return ConnectionFailed(
            "cloud", what, got=f"HTTP {error.response.status_code}", todo="Check the address"
        )
    if isinstance(error, InvalidMessage):
        return ConnectionFailed(
            "cloud", f"what answers at {url} does not speak HTTP", todo="Check the address"
        )
    if isinstance(error, TimeoutError):
        reason = "no answer in time"
    elif isinstance(error, OSError):
        reason = error.strerror or str(error)
    else:
        reason = str(error)
    return ConnectionFailed(
        "cloud",
        f"no server at {url}: {reason}",
        todo="Start one with 'costeer serve', or check the address",
    )


def _reason(lost: ConnectionClosed) -> str:
    return f"{lost.rcvd.code} {lost.rcvd.reason}".strip() if lost.rcvd else "no goodbye"
