"""Requests to a completions server, position by position as they come.

What such a server may do wrong is told apart here: it refuses (for good, or for now), allows fewer
log-probabilities, sends none, breaks off, falls silent, or speaks of something else.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence

from edge_runtime.connections.completions import (
    Find,
    Predicted,
    body,
    ended,
    fewer,
    mute,
    predictions,
    reason,
)
from edge_runtime.connections.http_stream import Endpoint, HttpRefused, Post
from edge_runtime.connections.patience import Patience
from edge_runtime.errors import ConnectionFailed, EnvironmentFailure, Refused

SCHEME = "openai:"

CODES = {401: "unauthorized", 403: "unauthorized", 429: "busy"}
CODES |= dict.fromkeys((500, 502, 503, 504), "unavailable")
"""What a `Refused` is called by its HTTP status; others are `http`."""

PASSING = ("busy", "unavailable")
"""Refusals that may be over soon."""

MUTE = 8
"""Texts without log-probabilities in a row, after which none are waited for."""

NO_COMPLETION = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What reading JSON of another shape raises."""


class Completions:
    """A server's `/completions` at `url` (openai:http://HOST/v1#MODEL); one request at a time.

    `find` and `size`: see `completions.predictions`. `key` is sent as a bearer token.
    """

    def __init__(
        self, url: str, find: Find, size: int, key: str | None, patience: Patience
    ) -> None:
        address, _, self.model = url.removeprefix(SCHEME).partition("#")
        self.endpoint = Endpoint.parse(address)
        self.wanted = 0
        """Log-probabilities to ask for; becomes what the server is found to allow."""
        self.notes: list[str] = []
        """What was found out about the server."""
        self._find, self._size, self._patience = find, size, patience
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._post: Post | None = None
        self._sent_bytes = 0
        self._seen = False
        """Whether there was a prediction."""

    def sent_bytes(self) -> int:
        """Bytes that went up since this was asked last."""
        sent, self._sent_bytes = self._sent_bytes, 0
        return sent

    def cancel(self) -> None:
        """Break the request off: the server stops."""
        if self._post is not None:
            self._post.cancel()
        self._post = None

    async def positions(
        self, prompt: Sequence[int], room: int
    ) -> AsyncGenerator[tuple[Predicted | None, int], None]:
        """At most `room` positions after `prompt`, each with its bytes on the line; None where the
        model ended the answer itself.

        Raises `Refused` for a refusal, `ConnectionFailed` for a stream that breaks off or is none,
        `EnvironmentFailure` for one without log-probabilities.
        """
        while True:
            asked = body(self.model, prompt, max_tokens=room, logprobs=self.wanted, stream=True)
            self._post = post = Post(self.endpoint, self._patience)
            try:
                self._sent_bytes += await post.begin("/completions", asked, self._headers)
                async for found in self._events(post):
                    yield found
                return
            except HttpRefused as refused:
                less = fewer(self.wanted, refused.status, refused.body)
                if less is None:
                    raise self._refused(refused) from refused
                self.wanted = less
                self.notes.append(f"the server gives no more than {less} log-probabilities a token")
            finally:
                post.cancel()

    async def _events(self, post: Post) -> AsyncGenerator[tuple[Predicted | None, int], None]:
        silent, over = 0, False
        async for data, size in post.events():
            if data == b"[DONE]":
                break
            try:
                reply = json.loads(data)
                found = predictions(reply, self._find, self._size)
                silent = 0 if found else silent + mute(reply)
                over = over or ended(reply)
            except NO_COMPLETION as error:
                raise ConnectionFailed(
                    "cloud", f"what {self.endpoint.url} streams is no completion"
                ) from error
            if found and not self._seen:
                self._seen = True
                if (given := len(found[0].ids)) < self.wanted:
                    said = f"the server gives {given} of {self.wanted} log-probabilities a token"
                    self.notes.append(said)
            for one in found:
                yield one, size
                size = 0
            if silent == MUTE:
                break
        if silent:
            raise EnvironmentFailure(
                "cloud",
                "the server sends no log-probabilities",
                got=self.endpoint.url,
                todo="See docs/servers.md for the options it needs",
            )
        if over:
            yield None, 0

    def _refused(self, refused: HttpRefused) -> Refused:
        code = CODES.get(refused.status, "http")
        todo = "Name the file that holds the server's key with --token-file"
        return Refused(
            "cloud",
            f"the server at {self.endpoint.url} said no: {reason(refused.body)}",
            code=code,
            got=f"HTTP {refused.status}",
            todo=todo if code == "unauthorized" else "",
        )
