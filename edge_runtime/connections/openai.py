"""Run-ahead against a stock OpenAI-compatible completions server: no server of ours is needed.

An ordinary streaming request IS the cloud running ahead: each event is a prediction and the token
it went on with. Where the device diverges, the stream is cancelled and asked for again with the
emitted tokens as part of the prompt; the server's prefix cache makes that cheap.

    schedule   Open ──▶ POST prompt            Extend(p, y) ──▶ cancel, POST prompt + answer + y
               Candidates ◀── event            Close ──▶ cancel

The schedule does not know: it speaks frames to this line as to our own server. `lockstep` works
too (one request a token); `draft` needs scores for several given tokens, which these servers do
not give.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from edge_runtime import wire
from edge_runtime.candidates import TopK
from edge_runtime.connections.completion_stream import PASSING, Completions
from edge_runtime.connections.completions import ANY_SIZE, Find, Predicted
from edge_runtime.connections.patience import PATIENT, Patience, Trials
from edge_runtime.connections.realtime import Delivery, drive, given_up, told
from edge_runtime.errors import ConnectionFailed, Refused, UsageError
from edge_runtime.schedules.actions import Reconnected, Schedule, Timeout
from edge_runtime.timing import now_ms
from edge_runtime.transcript import TokenRecord, Transcript


@dataclass(frozen=True, slots=True)
class Language:
    """What a server that knows only tokens need not be asked: prompt and vocabulary."""

    prompt: Sequence[int]
    """Token ids of the chat prompt around the public query."""
    find: Find = lambda text: None
    """Id of a text that is one token, for servers that name tokens by text."""
    end_ids: tuple[int, ...] = ()
    """Where the cloud's answer ends: nothing is asked for beyond."""
    size: int = ANY_SIZE
    """Tokens in the device's vocabulary."""


async def answer(
    schedule: Schedule,
    url: str,
    language: Language,
    *,
    key: str | None = None,
    on_token: Callable[[TokenRecord], None] | None = None,
    method: str = "",
    gain: float = 0.0,
    patience: Patience = PATIENT,
    into: Transcript | None = None,
) -> Transcript:
    """Run `schedule` against the completions server at `url` (openai:http://HOST/v1#MODEL).

    `key` is sent as a bearer token; `into` is filled as the answer comes. Raises
    `ConnectionFailed` when the server is not there or stays away, `Refused` when it says no,
    `UsageError` for a schedule it cannot serve.
    """
    line = CompletionsLine(url, language, key, patience)
    return await drive(schedule, line, on_token=on_token, method=method, gain=gain, into=into)


class CompletionsLine:
    """`edge_runtime.connections.realtime.Line` over a completions stream."""

    def __init__(self, url: str, language: Language, key: str | None, patience: Patience) -> None:
        self._server = Completions(url, language.find, language.size, key, patience)
        self.notes = self._server.notes
        self.notes.append("the server does not say when it computed: waiting is shown as uplink")
        self._language, self._patience = language, patience
        self._told: list[int] = []
        """The answer as far as the device has told it."""
        self._own: list[int] = []
        """Tokens that the server went on with after that."""
        self._opening: wire.Open | None = None
        self._codec = TopK(1)
        self._epoch = 0
        self._credit = 0
        self._task: asyncio.Task[None] | None = None
        self._events: deque[Delivery | Exception] = deque()
        self._news = asyncio.Event()
        self._scored = 0

    async def open(self) -> None:
        """Nothing to do before the first request."""

    async def close(self) -> None:
        """Cancel what is under way."""
        await self._cancel()

    async def send(self, frame: wire.Frame) -> int:
        """Do what the frame asks for; the bytes that went up since the last one."""
        if isinstance(frame, wire.Open):
            await self._begin(frame)
        elif isinstance(frame, wire.Extend):
            whole = [*self._told, *self._own]
            self._told, self._own = [*whole[: frame.position], *frame.tokens], []
            self._epoch, self._credit = frame.epoch, len(self._told)
            await self._ask()
        elif isinstance(frame, wire.Credit):
            self._credit = frame.position
            over = bool(self._own) and self._own[-1] in self._language.end_ids
            if not over and (self._task is None or self._task.done()):
                await self._ask()
        elif isinstance(frame, wire.Close):
            await self._cancel()
            wasted = max(0, self._scored - frame.tokens)
            self._put(wire.Closed(scored=self._scored, wasted=wasted), 0)
        await asyncio.sleep(0)
        return self._server.sent_bytes()

    async def receive(self, deadline_ms: float | None) -> Delivery | Timeout | Reconnected:
        """The next frame; `Timeout` after `deadline_ms`."""
        until = None if deadline_ms is None else now_ms() + deadline_ms
        while not self._events:
            if not await told(self._news, None if until is None else until - now_ms()):
                return Timeout(now_ms())
        event = self._events[0]
        if isinstance(event, Exception):
            return given_up(event, deadline_ms, self.notes)
        self._events.popleft()
        return event

    async def _begin(self, frame: wire.Open) -> None:
        if frame.mode == "score":
            raise UsageError(
                "schedule",
                "a completions server cannot score drafts",
                got="draft",
                allowed="runahead, lockstep",
                todo="Use another schedule, or costeer serve",
            )
        if frame.branches > 1:
            raise UsageError(
                "--branches",
                "a completions server goes on one way at a time",
                got=frame.branches,
                allowed=1,
                todo="Leave it out, or use costeer serve",
            )
        kind, _, number = frame.codec.partition(":")
        if kind != "topk":
            raise UsageError(
                "codec",
                "a completions server sends its best tokens only",
                got=frame.codec,
                allowed="topk:K",
            )
        self._opening, self._codec = frame, TopK(int(number))
        self._server.wanted = self._server.wanted or int(number)
        self._told, self._own = list(frame.emitted), []
        self._epoch, self._credit = frame.epoch, len(self._told)
        opened = wire.Opened(
            "", self._server.model, "", 0, self._language.end_ids, len(self._language.prompt)
        )
        self._put(opened, 0)
        await self._ask()

    async def _ask(self) -> None:
        """Let the server go on from what it has been told and has said since."""
        await self._cancel()
        opening = self._opening
        assert opening is not None
        room = opening.max_tokens - self._at
        if opening.mode == "step":
            room = min(room, 1)
        elif opening.window:
            room = min(room, self._credit + opening.window + 1 - self._at)
        if room > 0:
            self._task = asyncio.create_task(self._stream(room))

    async def _cancel(self) -> None:
        self._server.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    async def _stream(self, room: int) -> None:
        """One request, or as many as it takes until it has gone through; predictions as they
        come. A stream that breaks off is asked for again from where it was."""
        trials, end = Trials(self._patience), self._at + room
        try:
            while self._at < end:
                before = self._at
                try:
                    if await self._request(end - self._at):
                        return
                except (ConnectionFailed, Refused) as failed:
                    if self._at > before:
                        trials.progress()
                    passing = not isinstance(failed, Refused) or failed.code in PASSING
                    if not (passing and self._scored and await trials.again()):
                        raise
        except Exception as failure:  # whatever it is: who waits must hear of it
            self._events.append(failure)
            self._news.set()

    @property
    def _at(self) -> int:
        """The position that the server predicts next."""
        return len(self._told) + len(self._own)

    async def _request(self, room: int) -> bool:
        """One stream of `room` positions or fewer; whether the answer ends there for the cloud."""
        prompt = [*self._language.prompt, *self._told, *self._own]
        ends, end = self._language.end_ids, self._at + room
        positions = self._server.positions(prompt, room)
        async with aclosing(positions):
            async for one, size in positions:
                if one is None:
                    if self._at < end and ends:
                        self._predicted(Predicted(ends[0], *_sure(ends[0])), 0)
                        return True
                    break
                best = self._predicted(one, size)
                if best in ends:
                    return True
                if best != one.token:
                    # Rounded to equals, or an end that the server may not generate: the
                    # schedule counts on the best token, so go on from that one.
                    return False
        if self._at < end:
            url = self._server.endpoint.url
            raise ConnectionFailed("cloud", f"{url} stopped within an answer")
        return False

    def _predicted(self, one: Predicted, size: int) -> int:
        """Pass one position on; the token that the cloud is taken to go on with."""
        ids, logprobs = one.ids, one.logprobs
        if len(ids) > self._codec.k:
            kept = np.sort(np.argsort(-logprobs, kind="stable")[: self._codec.k])
            ids, logprobs = ids[kept], logprobs[kept]
        payload = self._codec.pack(ids, logprobs)
        self._put(wire.Candidates(self._epoch, self._at, payload, tuple(self._own)), size)
        self._own.append(self._codec.decode(payload).best)
        self._scored += 1
        return self._own[-1]

    def _put(self, frame: wire.Down, size: int) -> None:
        self._events.append(Delivery(frame, size, now_ms()))
        self._news.set()


def _sure(token: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([token], np.int64), np.zeros(1, np.float32)
