"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from edge_runtime.errors import EnvironmentFailure


def check_writable(folder: Path, option: str) -> None:
    """See that files can be put into `folder`, made or not yet, before work whose result they are.

    Makes nothing. Raises `EnvironmentFailure`, naming the command line's `option`.
    """
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise EnvironmentFailure(option, "a file is where a folder is needed", got=there)
    if not os.access(there, os.W_OK | os.X_OK):
        raise EnvironmentFailure(option, "nothing may be written there", got=there)


def write_whole(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Write beside `path`, then put it in its place: a reader never sees half of it.

    `private`: what depends on somebody's note is for its owner alone; other files are for whom
    the user's own settings (umask) say. Makes the folder if need be. Raises `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode("utf-8") if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    handle = os.open(part, flags, 0o600 if private else 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
