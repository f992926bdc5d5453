"""Words to tokens and back, and the two prompts of one question, without transformers.

The aware prompt's user message is the private note, an empty line, the query; the agnostic one's
is the query alone, exactly as the cloud sees it. The note comes first so that its keys and values
can be kept for the next query (`edge_runtime.snapshot`).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from edge_runtime.errors import BundleError
from edge_runtime.names import name_ids
from edge_runtime.vocabulary import fingerprint, open_tokenizer

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle

PLAIN_TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
"""For base models that come without a chat template."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Token ids of the two prompts of one question."""

    aware: tuple[int, ...]
    agnostic: tuple[int, ...]
    note: int = 0
    """Leading tokens of `aware` that come from the note (and the template), not from the query."""
    names: tuple[int, ...] = ()
    """Tokens of names and numbers that only the note holds (`edge_runtime.names`), ascending."""


class StreamDecoder:
    """Ids in, text out, token by token: never half a character."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special
        self._ids: list[int] = []
        self._shown = self._settled = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._ids.append(token)
        # Decoded together with the last settled tokens: some decoders strip a leading blank.
        before = self._decode(self._ids[self._settled : self._shown])
        now = self._decode(self._ids[self._settled :])
        if len(now) <= len(before) or now.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._settled, self._shown = self._shown, len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """What is left at the end, an unfinished character included."""
        before = self._decode(self._ids[self._settled : self._shown])
        now = self._decode(self._ids[self._settled :])
        self._settled = self._shown = len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)


class Text:
    """A tokenizer and a chat template."""

    def __init__(
        self, tokenizer: Tokenizer, template: str = "", bos: str = "", eos: str = ""
    ) -> None:
        self.tokenizer = tokenizer
        self._special = {"bos_token": bos, "eos_token": eos}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
        )
        environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(template or PLAIN_TEMPLATE)
        except jinja2.TemplateError as error:
            raise BundleError(
                "chat template", f"it does not parse: {error}", todo="Export the bundle again"
            ) from error

    @classmethod
    def open(cls, bundle: Bundle) -> Text:
        """Of a bundle. Raises `BundleError` when a file is unreadable."""
        tokenizer = open_tokenizer(bundle.tokenizer)
        path = Path(bundle.chat_template)
        try:
            template = path.read_text(encoding="utf-8") if path.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                str(path), "is no text", got=type(error).__name__, todo="Export the bundle again"
            ) from error
        tokens = bundle.manifest.tokens
        ends = tuple(tokens.end_ids)
        return cls(
            tokenizer,
            template,
            bos=_token(tokenizer, tokens.bos),
            eos=_token(tokenizer, ends[0] if ends else None),
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary (`edge_runtime.vocabulary`)."""
        return fingerprint(self.tokenizer)

    def chat(self, user: str, *, open_end: bool = True) -> str:
        """The chat prompt around one user message, ready for the assistant's answer."""
        try:
            return self._template.render(
                messages=[{"role": "user", "content": user}],
                add_generation_prompt=open_end,
                **self._special,
            )
        except Exception as error:
            # Whatever a template does. Its words are not shown where they may quote the note.
            words, quoted = str(error), set(user.split()).intersection(str(error).split())
            raise BundleError(
                "chat template", "it cannot take a user message",
                got=type(error).__name__ if quoted else words, todo="Export the bundle again",
            ) from (None if quoted else error)  # fmt: skip

    def prompts(self, query: str, context: str = "") -> Prompts:
        """Both prompts for `query` with the private note `context` (empty: the same twice)."""
        agnostic = self.encode(self.chat(query))
        if not context:
            return Prompts(tuple(agnostic), tuple(agnostic))
        aware = self.encode(self.chat(f"{context}\n\n{query}"))
        names = name_ids(self.encode, context, query)
        return Prompts(tuple(aware), tuple(agnostic), _common(aware, self.note(context)), names)

    def note(self, context: str) -> list[int]:
        """Ids of an aware prompt's beginning up to where the query would follow.

        A token may straddle the seam, so two different queries are put behind it and only what
        both have in common is kept.
        """
        one, two = (self.encode(self.chat(f"{context}\n\n{q}")) for q in ("What?", "1 a"))
        return one[: _common(one, two)]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, with no token added in front (a chat template writes its own)."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def stream(self) -> StreamDecoder:
        """A new decoder for one answer."""
        return StreamDecoder(self.tokenizer)


def _common(one: Iterable[int], two: Iterable[int]) -> int:
    count = 0
    for a, b in zip(one, two, strict=False):
        if a != b:
            break
        count += 1
    return count


def _token(tokenizer: Tokenizer, index: int | None) -> str:
    return (tokenizer.id_to_token(index) or "") if index is not None else ""


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
