"""What a name stands for: the content that results depend on, for the keys they are kept under.

A path says where something is and not what: another model under the same name must not be given the
first one's results. So what is on this disk counts by its content. A name that is fetched (a hub's
id, an alias) counts as it is; who moves such a name to other weights has to name another cache.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOMS = ("edge_runtime", "cloud_sim", "export", "scenarios")
LIBRARIES = ("numpy", "onnxruntime", "tokenizers", "torch", "transformers")
"""What computes a prediction besides our own code: another release rounds in another way."""
_LARGE = 1 << 20


def content_of(name: str) -> str:
    """A model's `name` (``float:`` before it is kept) as its content: `sha256:...` of the file, or
    of all files in the folder, that it is the path of; else the name itself."""
    prefix, path = ("float:", name[6:]) if name.startswith("float:") else ("", name)
    own = Path(path)
    if own.is_file():
        return f"{prefix}sha256:{digest(own)}"
    if own.is_dir():
        found = sorted(file for file in own.iterdir() if file.is_file())
        text = "".join(f"{file.name} {digest(file)}\n" for file in found)
        return f"{prefix}sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return name


def digest(path: Path) -> str:
    """The SHA-256 of a file; empty when it is not there. Weights are read once a process."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ""
    if stat.st_size < _LARGE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return _remembered(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _remembered(path: str, size: int, changed_ns: int) -> str:
    # Not for small files: two writes of one size may fall within one tick of the file's clock.
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1)
def code() -> str:
    """The hash of the code and the profiles that make results, and of the libraries they stand on.

    Coarse on purpose: a changed comment counts as well, and costs a repetition; a change that did
    not count would leave old rows beside new ones. Studies that ship do not count, their cells do.
    """
    home = Path(__file__).resolve().parents[1]
    found = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((home / room).rglob("*")):
            if path.suffix in (".py", ".toml") and path.parent.name != "library":
                found.update(f"{path.relative_to(home).as_posix()} {digest(path)}\n".encode())
    for library in LIBRARIES:
        found.update(f"{library} {_version(library)}\n".encode())
    return found.hexdigest()[:24]


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
