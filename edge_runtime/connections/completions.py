"""What goes to and comes from an OpenAI-compatible `/v1/completions`, whoever serves it.

Prompts are token ids. Log-probabilities come back in three dialects:
  llama.cpp   logprobs.content[].top_logprobs[] with `id` and `logprob`
  vLLM        logprobs.top_logprobs[] {"token_id:17": -0.3, ...} (`return_tokens_as_token_ids`)
  others      logprobs.top_logprobs[] {"text": -0.3, ...}: texts that are one token of the
              vocabulary; of two tokens with one text the first counts
`ignore_eos` keeps the answer open where the model would end it: the device decides that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_runtime.candidates import Floats, Ids
from edge_runtime.errors import ConnectionFailed

Find = Callable[[str], int | None]
"""The id of the token with that text, if there is one."""

ANY_SIZE = 1 << 31
"""More tokens than any vocabulary has."""

FEWER = (4096, 1024, 256, 64, 20, 5)
"""Numbers of log-probabilities to try when a server allows fewer than were asked for."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """One position: the token the server went on with, its candidates (ids ascending, nats)."""

    token: int
    ids: Ids
    logprobs: Floats


def body(
    model: str, prompt: Sequence[int], *, max_tokens: int, logprobs: int, stream: bool
) -> bytes:
    """A greedy request for `max_tokens` tokens after `prompt`, with `logprobs` candidates each."""
    fields: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "logprobs": logprobs,
        "temperature": 0,
        "stream": stream,
        "ignore_eos": True,
        "cache_prompt": True,
        "return_tokens_as_token_ids": True,
    }
    return json.dumps({k: v for k, v in fields.items() if k != "model" or v}).encode()


def predictions(reply: Mapping[str, Any], find: Find, size: int = ANY_SIZE) -> list[Predicted]:
    """The positions that one reply or stream event speaks of; none where it gives no
    log-probabilities (see `mute`).

    `find` serves the dialect that names tokens by their text. Of a vocabulary of `size` tokens:
    candidates beyond it (a larger model of the family may pad it further) are left out. Raises
    `ConnectionFailed` for a server that failed, or that goes on with a token which it has not.
    """
    if reply.get("error"):
        raise ConnectionFailed("cloud", f"the server failed: {_message(reply)}")
    choices = reply.get("choices") or []
    if not choices:
        return []
    given = choices[0].get("logprobs")
    if given is None:
        return []
    if "content" in given:
        return [_by_id(entry, size) for entry in given["content"] or []]
    tokens, tops = given.get("tokens") or [], given.get("top_logprobs") or []
    return [_by_name(t, top, find, size) for t, top in zip(tokens, tops, strict=False) if top]


def mute(reply: Mapping[str, Any]) -> bool:
    """Whether this reply has text, and no log-probabilities with it."""
    choices = reply.get("choices") or [{}]
    return bool(choices[0].get("text")) and not choices[0].get("logprobs")


def ended(reply: Mapping[str, Any]) -> bool:
    """Whether the model ended the answer in this reply, in spite of `ignore_eos`."""
    choices = reply.get("choices") or [{}]
    return choices[0].get("finish_reason") == "stop"


def _by_id(entry: Mapping[str, Any], size: int) -> Predicted:
    if "id" not in entry:
        raise ConnectionFailed("cloud", "the server sends log-probabilities without token ids")
    found = {int(top["id"]): float(top["logprob"]) for top in entry["top_logprobs"]}
    return _predicted(int(entry["id"]), found, size)


def _by_name(token: str, top: Mapping[str, float], find: Find, size: int) -> Predicted:
    found: dict[int, float] = {}
    for name, logprob in top.items():
        index = _id(name, find)
        if index is not None and logprob is not None:
            found.setdefault(index, float(logprob))
    return _predicted(_id(token, find), found, size)


def _id(name: str, find: Find) -> int | None:
    if name.startswith("token_id:"):
        return int(name[9:])
    return find(name)


def _predicted(token: int | None, found: Mapping[int, float], size: int) -> Predicted:
    ids = np.array(sorted(one for one in found if 0 <= one < size), np.int64)
    if token is None or not 0 <= token < size or not len(ids):
        raise ConnectionFailed(
            "cloud",
            "the server names a token that the vocabulary has not",
            got=token,
            todo="Use a bundle made from a model of the same family",
        )
    return Predicted(token, ids, np.array([found[int(i)] for i in ids], np.float32))


def fewer(asked: int, status: int, said: bytes) -> int | None:
    """How many log-probabilities to ask for instead, if `said` complains about their number."""
    if status not in (400, 413, 422) or b"logprob" not in said.lower():
        return None
    return next((n for n in FEWER if n < asked), None)


def _message(reply: Mapping[str, Any]) -> str:
    error = reply["error"]
    if isinstance(error, dict):  # FastAPI's own refusals have a `detail`
        error = error.get("message") or error.get("detail") or ""
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200].rstrip(".")


def reason(said: bytes) -> str:
    """The first line of an error's body, for a person."""
    try:
        reply = json.loads(said)
        if isinstance(reply, dict):
            return _message(reply if "error" in reply else {"error": reply})
    except ValueError:
        pass
    return (said.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[0][:200]
