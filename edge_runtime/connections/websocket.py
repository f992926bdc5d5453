"""A line over a WebSocket to `cloud_sim.live.server`, which comes back when it breaks.

Then it connects again, with growing pauses, and tells the schedule `Reconnected`: resuming the
answer is the schedule's business, what has been emitted stays.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
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
from edge_runtime.connections.patience import PATIENT, Patience, Trials
from edge_runtime.connections.realtime import Delivery, drive, given_up, told
from edge_runtime.errors import ConnectionFailed, UsageError
from edge_runtime.schedules.actions import Reconnected, Schedule, Timeout
from edge_runtime.timing import now_ms
from edge_runtime.transcript import TokenRecord, Transcript

MESSAGE_BYTES = 16 << 20
"""A downlink message may be so long: a full fp16 vector of the largest vocabularies is 0.5 MB."""

HOPELESS = (CloseCode.POLICY_VIOLATION, CloseCode.MESSAGE_TOO_BIG, CloseCode.UNSUPPORTED_DATA)
"""Close codes after which the same would only happen again."""

BUSY = "busy"
"""Code of the refusal, and reason of the close, of a server that has no room now."""

WELCOME = (BUSY, "idle", "stalled")
"""After these a device may come back: there was no room, or it was silent or took nothing for too
long (it was at a long note, or its application in the background)."""


async def answer(
    schedule: Schedule,
    url: str,
    *,
    token: str | None = None,
    on_token: Callable[[TokenRecord], None] | None = None,
    method: str = "",
    gain: float = 0.0,
    pad_to: int = 0,
    patience: Patience = PATIENT,
    into: Transcript | None = None,
) -> Transcript:
    """Run `schedule` against the server at `url` (ws://HOST:PORT or wss://...).

    `token` is sent as a bearer token; `on_token` sees each token when it is final; `pad_to` pads
    uplink frames; `into` is filled as the answer comes. Raises `ConnectionFailed` when the server
    is not there or stays away, `Refused` when it says no, and whatever the schedule raises.
    """
    line = _Line(url, token, patience, pad_to)
    return await drive(schedule, line, on_token=on_token, method=method, gain=gain, into=into)


class _Line:
    """A WebSocket that comes back: messages that have arrived, and whether it is up.

    It is mended in the background, so that a schedule with a deadline is told in time that nothing
    came. What is sent meanwhile reaches nobody: the schedule hears of the loss by `Reconnected`,
    and says all of it again.
    """

    def __init__(self, url: str, token: str | None, patience: Patience, pad_to: int) -> None:
        self._url = checked(url)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._patience = patience
        self._trials = Trials(patience)
        self._socket: ClientConnection | None = None
        self._listener: asyncio.Task[None] | None = None
        self._mender: asyncio.Task[None] | None = None
        self._messages: deque[Delivery] = deque()
        self._news = asyncio.Event()
        self._lost: ConnectionClosed | None = None
        self._back = False
        """It was lost and is up again, which the schedule has not been told yet."""
        self._leaving = False
        """The device has said goodbye: a line that breaks now is not missed."""
        self._failure: Exception | None = None
        self._pad_to = pad_to
        self.notes: list[str] = []

    async def open(self) -> None:
        """Connect. Raises `ConnectionFailed`."""
        await self._connect(self._patience.connect_s)

    async def _connect(self, within_s: float) -> None:
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
        except (OSError, TimeoutError, UnicodeError, InvalidHandshake, InvalidURI) as error:
            raise _not_there(self._url, error) from error
        self._lost = None
        self._messages.clear()
        self._listener = asyncio.create_task(self._listen(self._socket))

    async def close(self) -> None:
        """Say goodbye, if there is anybody to hear it."""
        if self._mender is not None:
            self._mender.cancel()
            await asyncio.gather(self._mender, return_exceptions=True)
        if self._socket is not None:
            await self._socket.close()
        if self._listener is not None:
            await self._listener

    async def send(self, frame: wire.Frame) -> int:
        """Hand over; a loss is noticed at the next `receive`. The bytes that went out."""
        self._leaving = self._leaving or isinstance(frame, wire.Close)
        if self._socket is None or self._lost is not None or self._back:
            return 0
        message = wire.encode(frame, self._pad_to)
        try:
            await self._socket.send(message)
        except ConnectionClosed as lost:
            self._lose(lost)
            return 0
        return len(message)

    async def receive(self, deadline_ms: float | None) -> Delivery | Timeout | Reconnected:
        """The next message; `Timeout` after `deadline_ms`; `Reconnected` after a loss."""
        until = now_ms() + (1e3 * self._patience.silence_s if deadline_ms is None else deadline_ms)
        while True:
            if self._back:
                self._back = False
                return Reconnected(now_ms())
            if self._messages:
                return self._messages.popleft()
            if self._leaving and (self._lost or self._failure):
                return Timeout(now_ms())
            if self._failure is not None:
                return given_up(self._failure, deadline_ms, self.notes)
            if self._lost is not None and (self._mender is None or self._mender.done()):
                self._mender = asyncio.create_task(self._mend(self._lost))
            if not await told(self._news, until - now_ms()):
                if deadline_ms is not None:
                    return Timeout(now_ms())
                raise ConnectionFailed(  # it answers pings, and nothing else
                    "cloud",
                    f"the server at {self._url} has fallen silent",
                    got=f"nothing for {self._patience.silence_s:g} s",
                    todo="Ask again",
                )

    async def _listen(self, socket: ClientConnection) -> None:
        try:
            while True:
                raw = await socket.recv(decode=False)
                frame = wire.decode_down(raw)
                if isinstance(frame, wire.Predicts):
                    self._trials.progress()
                elif isinstance(frame, wire.Refusal) and self._comes_back(frame.code):
                    continue  # the close that follows is a loss like any other
                self._messages.append(Delivery(frame, len(raw), now_ms()))
                self._news.set()
        except ConnectionClosed as lost:
            if socket is self._socket:
                self._lose(lost)
        except Exception as nonsense:  # whatever it is: who waits must hear of it
            self._fail(nonsense)

    def _comes_back(self, code: str) -> bool:
        # Who comes for the first time is told that there is no room.
        return code in WELCOME and (code != BUSY or self._trials.under_way)

    def _lose(self, lost: ConnectionClosed) -> None:
        self._lost = lost
        self._news.set()

    def _fail(self, failure: Exception) -> None:
        self._failure = failure
        self._news.set()

    async def _mend(self, lost: ConnectionClosed) -> None:
        """Connect again, with growing pauses, for as long as patience lasts."""
        failure: Exception = ConnectionFailed(
            "cloud",
            f"the server at {self._url} closed the connection",
            got=_reason(lost),
            todo="Ask again",
        )
        try:
            while not _hopeless(lost) and await self._trials.again():
                try:
                    # The last attempt gets a moment too: else it fails of having had none.
                    left_s = max(self._trials.left_s, 1.0)
                    await self._connect(min(self._patience.connect_s, left_s))
                except ConnectionFailed as error:
                    failure = error
                else:
                    self._back = True
                    self._news.set()
                    return
        except Exception as error:  # whatever it is: who waits must hear of it
            failure = error
        self._fail(failure)


def _hopeless(lost: ConnectionClosed) -> bool:
    return lost.rcvd is not None and lost.rcvd.code in HOPELESS and lost.rcvd.reason not in WELCOME


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
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectionFailed(
            "cloud",
            f"the certificate of {url} is not trusted: {error.verify_message}",
            todo="If it is your own, name its file in SSL_CERT_FILE",
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
