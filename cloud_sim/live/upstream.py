"""The cloud model behind any OpenAI-compatible completions server: vLLM, llama.cpp, SGLang.

    device ── our wire ──▶ costeer serve --upstream ── HTTP ──▶ a GPU cluster's server

Each prediction is one request for one token with its most probable alternatives; prompts are token
ids, and the server's prefix cache stands in for ours, so rolling back is sending a shorter prompt.
Requests of several sessions go out together and the server batches them. What is not covered: the
probabilities beyond the server's limit. Their sum is known and is spread evenly over the rest of
the vocabulary, so a codec that sends no more than `top_logprobs` candidates loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from cloud_sim.model import Logprobs, ScoreRequest
from edge_runtime.connections.completions import Predicted, body, fewer, predictions, reason
from edge_runtime.errors import ConnectionFailed, EnvironmentFailure, UsageError
from edge_runtime.text import Text

TOP_LOGPROBS = 256
"""Asked for unless the server allows fewer."""
AT_ONCE = 64
"""Requests under way at a time."""


@dataclass(slots=True, eq=False)
class Tokens:
    """A sequence: here only its token ids, the cache is the server's."""

    ids: list[int] = field(default_factory=list)


class UpstreamModel:
    """`cloud_sim.model.CloudModel` over HTTP; `top_logprobs` is what the server was found to give.

    `text` is the model's tokenizer and template: both sides must have the same vocabulary.
    """

    def __init__(
        self,
        url: str,
        text: Text,
        end_ids: tuple[int, ...],
        vocabulary_size: int,
        *,
        key: str | None = None,
        top_logprobs: int = TOP_LOGPROBS,
        timeout_s: float = 60.0,
    ) -> None:
        address, _, model = url.partition("#")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if not _is_url(address):
            raise UsageError(
                "--upstream",
                "this is no address of a completions server",
                got=url,
                allowed="http://HOST:PORT/v1#MODEL",
            )
        self._url, self._model, self._text = address.rstrip("/"), model, text
        self._http = httpx.Client(
            headers=headers, timeout=timeout_s, limits=httpx.Limits(max_connections=AT_ONCE)
        )
        self._workers = ThreadPoolExecutor(AT_ONCE, "costeer-upstream")
        self._ids: dict[str, int] = {}
        self.name = model or "upstream"
        self.vocabulary = text.fingerprint
        self.vocabulary_size = vocabulary_size
        self.end_ids = end_ids
        self.top_logprobs = min(top_logprobs, vocabulary_size)
        self.top_logprobs = len(self._predict(self.prompt("Hello"))[0].ids)

    def prompt(self, query: str) -> list[int]:
        """Token ids of the chat prompt around the public `query`."""
        return list(self._text.prompts(query).agnostic)

    def open(self) -> Tokens:
        """A new, empty sequence."""
        return Tokens()

    def fork(self, sequence: Tokens, keep: int) -> Tokens:
        """A new sequence that begins with the first `keep` tokens of `sequence`."""
        return Tokens(sequence.ids[:keep])

    def close(self, sequence: Tokens) -> None:
        """Forget it; the server drops its cache when it needs the room."""
        sequence.ids.clear()

    def score(self, requests: Sequence[ScoreRequest]) -> list[Logprobs]:
        """One HTTP request a predicted position, all at once. Each result is [1, V] or [n, V]."""
        asked: list[list[int]] = []
        counts: list[int] = []
        for request in requests:
            sequence: Tokens = request.sequence
            sequence.ids = [*sequence.ids[: request.keep], *request.tokens]
            first = request.keep + 1 if request.every else len(sequence.ids)
            prefixes = [sequence.ids[:n] for n in range(first, len(sequence.ids) + 1)]
            asked += prefixes
            counts.append(len(prefixes))
        rows = iter(list(self._workers.map(self._row, asked)))
        return [np.stack([next(rows) for _ in range(count)]) for count in counts]

    def _row(self, prompt: list[int]) -> Logprobs:
        """Log-probabilities [V]; what the server left out shares what is left of the mass."""
        one, _ = self._predict(prompt)
        known = float(np.exp(one.logprobs.astype(np.float64)).sum())
        others = max(1, self.vocabulary_size - len(one.ids))
        share = np.log(max(1.0 - known, 1e-9) / others)
        row = np.full(self.vocabulary_size, min(share, float(one.logprobs.min())), np.float32)
        row[one.ids] = one.logprobs
        return row

    def _predict(self, prompt: list[int]) -> tuple[Predicted, dict[str, Any]]:
        while True:
            asked = body(
                self._model, prompt, max_tokens=1, logprobs=self.top_logprobs, stream=False
            )
            reply = self._post(asked)
            if isinstance(reply, int):
                self.top_logprobs = reply
                continue
            found = predictions(reply, self._find, self.vocabulary_size)
            if not found:
                raise EnvironmentFailure(
                    "upstream",
                    "the server sends no log-probabilities",
                    got=self._url,
                    todo="See docs/servers.md for the options it needs",
                )
            return found[0], reply

    def _post(self, asked: bytes) -> dict[str, Any] | int:
        """The reply, or a smaller number of log-probabilities to ask for."""
        try:
            reply = self._http.post(
                f"{self._url}/completions",
                content=asked,
                headers={"Content-Type": "application/json"},
            )
        except httpx.HTTPError as error:
            raise ConnectionFailed(
                "upstream", f"no answer from {self._url}: {error}", todo="Check the address"
            ) from error
        if reply.status_code != 200:
            less = fewer(self.top_logprobs, reply.status_code, reply.content)
            if less is not None:
                return less
            raise EnvironmentFailure(
                "upstream",
                f"the server at {self._url} said no: {reason(reply.content)}",
                got=f"HTTP {reply.status_code}",
            )
        try:
            parsed: dict[str, Any] = reply.json()
        except ValueError as error:
            raise ConnectionFailed("upstream", f"what {self._url} sends is no JSON") from error
        return parsed

    def _find(self, piece: str) -> int | None:
        if not self._ids:
            for index in reversed(range(self._text.tokenizer.get_vocab_size())):
                self._ids[self._text.decode([index], skip_special=False)] = index
        return self._ids.get(piece)


def _is_url(address: str) -> bool:
    try:
        parsed = httpx.URL(address)
    except (httpx.InvalidURL, ValueError):
        return False
    fits = bool(parsed.host) and (parsed.port or 0) <= 65535
    return fits and parsed.scheme in ("http", "https")
