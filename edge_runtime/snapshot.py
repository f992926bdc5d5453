"""A private note's keys and values, kept on the device: the next query prefills only itself.

The note comes first in the aware prompt, so its keys and values do not depend on the query. One
file a note: a header line (JSON), then one block for each layer's keys and values, each with a
checksum (CRC-32): a bit that flipped on the disk would be another answer. With a key the
blocks are encrypted with AES-256-GCM (the header is authenticated) and the file's name is a keyed
hash, so neither tells anything of the note. A file belongs to one model, one template and one
note: when any of them changes it is not found, and `put` under the same name drops the old one.

What it does not protect: a running process holds the note in memory; file sizes tell its length.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import BundleError, EnvironmentFailure, UsageError, did_you_mean
from edge_runtime.weights import cache_dir

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle

SCHEMA = 2
SUFFIX = ".note"
PART = ".part-"
"""Files that are being written; one whose writer was killed is left, and dropped with the rest."""
MIN_KEY_BYTES = 16
LONGEST_NAME = 200
KEY_FILE_VARIABLE = "COSTEER_NOTE_KEY_FILE"

Block = npt.NDArray[np.float32]
"""Keys or values of one layer [kv_heads, tokens, head_dim]."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One kept note, as its file's header tells."""

    file: str
    name: str
    """What the user calls it."""
    model: str
    """SHA-256 over the model's and the template's files."""
    tokens: int
    shape: tuple[int, ...]
    """Of a block."""
    blocks: int
    encrypted: bool
    schema: int = SCHEMA


class Shelf:
    """The folder with the kept notes of all bundles, and the key to it."""

    def __init__(self, folder: Path, key: bytes | None = None) -> None:
        self.folder = folder
        self._key = None if key is None else _derive(key)

    def put(
        self, bundle: Bundle, ids: Sequence[int], blocks: Iterable[Block], name: str = ""
    ) -> Entry:
        """Keep a note's `blocks`; drops an older note of that name. Whole, or not at all.

        Raises `EnvironmentFailure` when the folder cannot be written.
        """
        digest = self._digest(bundle, ids)
        shown = name or digest[:12]
        if len(shown) > LONGEST_NAME or not shown.isprintable():
            raise UsageError(
                "--name", "a note's name has to fit on a line", got=f"{len(shown)} characters",
                allowed=f"{LONGEST_NAME}, all printable", todo="Give a shorter one with --name",
            )  # fmt: skip
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Readable by the user alone.
            handle, part = tempfile.mkstemp(dir=self.folder, prefix=PART)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        try:
            with os.fdopen(handle, "wb") as file:
                entry = self._write(file, bundle, ids, blocks, digest + SUFFIX, shown)
            os.replace(part, self.folder / entry.file)
        except OSError as error:
            Path(part).unlink(missing_ok=True)
            raise _unwritable(self.folder, error) from error
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        for other in self.entries():
            if other.name == shown and other.file != entry.file and other.model == entry.model:
                (self.folder / other.file).unlink(missing_ok=True)
        return entry

    def find(self, bundle: Bundle, ids: Sequence[int]) -> Iterator[Block] | None:
        """The blocks of the note `ids`, one at a time, if it is here; None if not.

        Raises `EnvironmentFailure` when the file was altered or the key is another one.
        """
        path = self.folder / (self._digest(bundle, ids) + SUFFIX)
        return self._read(path) if path.is_file() else None

    def entries(self) -> list[Entry]:
        """All kept notes, by name. Files that cannot be read are left out (`unreadable`)."""
        found = [entry for _, entry in self._all() if entry is not None]
        return sorted(found, key=lambda entry: (entry.name, entry.file))

    def unreadable(self) -> list[str]:
        """Files that hold a note, or the beginning of one, and are damaged or of another schema."""
        parts = [path.name for path in self.folder.glob(f"{PART}*")]
        return sorted([path.name for path, entry in self._all() if entry is None] + parts)

    def drop(self, name: str) -> list[str]:
        """Delete the notes called `name`, or the file of that name; the names of the files.

        Raises `UsageError` where there is none.
        """
        entries, unreadable = self.entries(), self.unreadable()
        chosen = [entry.file for entry in entries if name in (entry.name, entry.file)]
        chosen += [file for file in unreadable if file == name]
        if not chosen:
            known = {entry.name for entry in entries} | set(unreadable)
            raise UsageError(
                "context", "no such note is kept", got=name,
                todo=did_you_mean(name, known) if known else "There is none at all",
            )  # fmt: skip
        for file in chosen:
            (self.folder / file).unlink(missing_ok=True)
        return chosen

    def _all(self) -> Iterator[tuple[Path, Entry | None]]:
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                with path.open("rb") as file:
                    entry, _ = _header(path, file)
            except (EnvironmentFailure, OSError):
                yield path, None
            else:
                # What a file says of itself decides nothing about other files.
                yield path, replace(entry, file=path.name)

    def _digest(self, bundle: Bundle, ids: Sequence[int]) -> str:
        told = f"{SCHEMA} {model_of(bundle)} {' '.join(map(str, ids))}".encode()
        if self._key is None:
            return hashlib.sha256(told).hexdigest()
        return hmac.new(self._key, told, "sha256").hexdigest()

    def _write(
        self,
        file: BinaryIO,
        bundle: Bundle,
        ids: Sequence[int],
        blocks: Iterable[Block],
        name: str,
        shown: str,
    ) -> Entry:
        shape = bundle.manifest.architecture
        entry = Entry(
            file=name,
            name=shown,
            model=model_of(bundle),
            tokens=len(ids),
            shape=(shape.kv_heads, len(ids), shape.head_dim),
            blocks=2 * shape.layers,
            encrypted=self._key is not None,
        )
        head = json.dumps(asdict(entry)).encode() + b"\n"
        file.write(head)
        seal = _Seal(self._key, head) if self._key is not None else None
        if seal is not None:
            file.write(seal.nonce)
        for index, block in enumerate(blocks):
            raw = np.ascontiguousarray(block, "<f4").tobytes()
            file.write(raw + _checksum(raw) if seal is None else seal.close(index, raw))
        return entry

    def _read(self, path: Path) -> Iterator[Block]:
        with path.open("rb") as file:
            entry, head = _header(path, file)
            seal = None
            if entry.encrypted:
                if self._key is None:
                    raise EnvironmentFailure(
                        str(path), "this note is encrypted", todo="Give its key with --key-file"
                    )
                seal = _Seal(self._key, head, file.read(_Seal.NONCE_BYTES))
            size = 4 * int(np.prod(entry.shape))
            size += _Seal.TAG_BYTES if seal else len(_checksum(b""))
            for index in range(entry.blocks):
                raw = file.read(size)
                if len(raw) != size:
                    raise _damaged(path)
                if seal is not None:
                    raw = seal.open(index, raw, path)
                else:
                    raw, told = raw[:-4], raw[-4:]
                    if _checksum(raw) != told:
                        raise _damaged(path)
                yield np.frombuffer(raw, "<f4").reshape(entry.shape)


class _Seal:
    """AES-256-GCM over numbered blocks; a block from another file or place does not open."""

    NONCE_BYTES = 8
    TAG_BYTES = 16

    def __init__(self, key: bytes, head: bytes, nonce: bytes | None = None) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ModuleNotFoundError as error:
            raise EnvironmentFailure(
                "context", "encryption needs the library cryptography",
                todo='pip install "costeer-edge[secure]"',
            ) from error  # fmt: skip
        self._cipher, self._head = AESGCM(key), head
        self.nonce = os.urandom(self.NONCE_BYTES) if nonce is None else nonce

    def close(self, index: int, raw: bytes) -> bytes:
        """Block `index`, encrypted: 16 bytes longer."""
        return self._cipher.encrypt(self.nonce + struct.pack("<I", index), raw, self._head)

    def open(self, index: int, raw: bytes, path: Path) -> bytes:
        """The inverse. Raises `EnvironmentFailure` if anything was altered."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(self.nonce + struct.pack("<I", index), raw, self._head)
        except (InvalidTag, ValueError) as error:
            raise _damaged(path) from error


def users_shelf(key_file: Path | None = None) -> Shelf:
    """The shelf in the user's cache folder; the key from `key_file`, else from the file that
    ``COSTEER_NOTE_KEY_FILE`` names, else none."""
    named = os.environ.get(KEY_FILE_VARIABLE)
    path = key_file or (Path(named) if named else None)
    return Shelf(cache_dir() / "notes", read_key(path) if path else None)


def model_of(bundle: Bundle) -> str:
    """SHA-256 over what a note's keys and values depend on: graph, weights, template, tokenizer."""
    names = ("decoder.onnx", "weights.bin", "tokenizer.json", "chat_template.jinja")
    files = bundle.manifest.files
    told = " ".join(files[name].sha256 for name in names if name in files)
    return hashlib.sha256(told.encode()).hexdigest()


def read_key(path: Path) -> bytes:
    """The key in a file: any bytes, at least 16. Raises `UsageError`."""
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError("--key-file", f"the file cannot be read: {reason}", got=path) from error
    if len(key) < MIN_KEY_BYTES:
        raise UsageError(
            "--key-file", "the key is too short", got=f"{len(key)} bytes",
            allowed=f"{MIN_KEY_BYTES} or more", todo="Make one with: openssl rand -hex 32",
        )  # fmt: skip
    return key


def _derive(key: bytes) -> bytes:
    # The input is a random key, not a password: one extraction is enough (HKDF, RFC 5869).
    return hmac.new(b"costeer-edge note shelf", key, "sha256").digest()


def _checksum(raw: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(raw))


def _header(path: Path, file: BinaryIO) -> tuple[Entry, bytes]:
    head = file.readline(65536)
    try:
        content = json.loads(head)
        if content["schema"] != SCHEMA:
            raise _damaged(path)
        content["shape"] = tuple(map(int, content["shape"]))
        entry = Entry(**content)
        if not isinstance(entry.name, str):
            raise _damaged(path)
        return entry, head
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> EnvironmentFailure:
    return EnvironmentFailure(
        str(path),
        "this kept note is damaged, or its key is another one",
        todo=f"Drop it with: costeer context drop {path.name}",
    )


def _unwritable(folder: Path, error: OSError) -> BundleError:
    return BundleError(str(folder), f"cannot be written: {error.strerror or error}")
