"""What `costeer generate` and `costeer context` read from the user's files: notes and secrets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import UsageError

if TYPE_CHECKING:
    from edge_runtime.steering import Method

CONTEXT_BYTES = 1 << 20
"""A private note may be so long; more is surely the wrong file."""
MOST_WEIGHT = 100.0
"""As far as a gain may go (`edge_runtime.steering`); a note may also be steered away from."""


def private_notes(
    rule: Method, paths: list[Path], weights: list[float]
) -> tuple[list[str], list[float]]:
    """The private notes in `paths` and the weight of each.

    Raises `UsageError` where `rule` needs one and there is none, or a file or weight is of no use.
    """
    if not paths and (rule.steers or rule.base == "informed-cloud"):
        raise UsageError(
            "generate",
            f"the method {rule.name} needs a private note",
            todo="Name its file with --context, or use --method cloud-only",
        )
    if weights and len(weights) != len(paths):
        raise UsageError(
            "--weight", "not one for each note", got=len(weights), allowed=f"{len(paths)} or none"
        )
    for weight in weights:
        if not abs(weight) <= MOST_WEIGHT:
            raise UsageError(
                "--weight",
                "the weight is out of range",
                got=weight,
                allowed=f"-{MOST_WEIGHT:g} to {MOST_WEIGHT:g}",
            )
    if len(paths) == 1 and weights not in ([], [1.0]):
        raise UsageError(
            "--weight",
            "there is no other note to weigh this one against",
            got=weights[0],
            todo="Set --gain",
        )
    notes = [read_text(path, "--context", CONTEXT_BYTES).strip() for path in paths]
    for path, note in zip(paths, notes, strict=True):
        if not note:
            raise UsageError("--context", "the file is empty", got=path)
    return notes, weights or [1.0] * len(notes)


def secret(path: Path | None) -> str | None:
    """The bearer token in the file at `path`, one word of ASCII; None without a file."""
    if path is None:
        return None
    word = read_text(path, "--token-file", 4096).strip()
    if not word:
        raise UsageError("--token-file", "the file is empty", got=path)
    if not (word.isascii() and word.isprintable()) or " " in word:
        raise UsageError("--token-file", "the file must hold one word of ASCII", got=path)
    return word


def read_text(path: Path, option: str, limit: int) -> str:
    """The text of a file that was named with `option`, of at most `limit` bytes of UTF-8."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise UsageError(option, "the file is too long", got=path, allowed=f"{limit} bytes")
        return raw.decode("utf-8")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(option, f"the file cannot be read: {reason}", got=path) from error
    except UnicodeDecodeError as error:
        raise UsageError(option, "the file is no UTF-8 text", got=path) from error
