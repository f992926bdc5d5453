"""A judge: any OpenAI-compatible chat endpoint that grades an answer from 1 to 10.

It is shown the private note, so it must be a server that may see it (a local one). A grade is an
opinion: it is reported with its interval, beside the measured figures and never in their place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edge_runtime.errors import ConnectionFailed
from scenarios.datasets import Case

_ASK = """\
You grade how well an answer serves one particular person.

What is known about the person:
{note}

Their question:
{query}

The answer:
{answer}

Grade it from 1 (useless, or at odds with what is known) to 10 (right, fluent, and made for this
person). Reply with the number alone."""

_GRADE = re.compile(r"(?<![\d.])(10|[1-9])(?:\s*/\s*10)?(?![\d.]*\d)")


@dataclass(frozen=True, slots=True)
class Judge:
    """`url`: the server's root, as ``http://127.0.0.1:8080``; `key`: its bearer token, if any."""

    url: str
    model: str
    key: str = ""
    timeout_s: float = 60.0

    def grade(self, case: Case, answer: str) -> int:
        """1 to 10. Raises `ConnectionFailed` for a server that does not answer with a grade."""
        import httpx

        content = _ASK.format(note=case.context, query=case.query, answer=answer)
        body = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": 8,
            "messages": [{"role": "user", "content": content}],
        }
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        where = f"{self.url.rstrip('/')}/v1/chat/completions"
        try:
            reply = httpx.post(where, json=body, headers=headers, timeout=self.timeout_s)
            reply.raise_for_status()
            said: Any = reply.json()["choices"][0]["message"]["content"]
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConnectionFailed(
                "judge", f"it cannot be asked: {error}", got=where, todo="Check the address"
            ) from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ConnectionFailed("judge", "its reply is no chat completion", got=where) from error
        found = _GRADE.search(str(said))
        if found is None:
            raise ConnectionFailed(
                "judge",
                "it did not reply with a grade",
                got=str(said)[:60],
                allowed="a number from 1 to 10",
                todo="Use a larger model",
            )
        return int(found.group(1))
