"""The device-ready folder: what is in it, how it is written whole, how it is opened and checked.

    manifest.json         what the bundle is (`edge_runtime.manifest`), and a SHA-256 of each file
    decoder.onnx          token ids and a mask to the hidden state after the final norm, and KV
    head.onnx             hidden state to the logits of the whole vocabulary
    candidates.onnx       hidden state and ids to the logits of those ids, bit-equal to the head's
    weights.bin           every tensor, once; all graphs map it (offsets are multiples of a page)
    tokenizer.json, chat_template.jinja
    export_report.json    how it compares with the float model (not covered by a checksum: it holds
                          times, which differ from run to run)

A bundle is written into a temporary folder beside its destination and renamed when complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from edge_runtime.errors import BundleError, UsageError
from edge_runtime.manifest import SCHEMA_VERSION, File, Manifest

MANIFEST = "manifest.json"
DECODER = "decoder.onnx"
HEAD = "head.onnx"
CANDIDATES = "candidates.onnx"
WEIGHTS = "weights.bin"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
REPORT = "export_report.json"

NEEDED = (DECODER, TOKENIZER)
"""What no CPU bundle can do without."""
UNCHECKED = frozenset({MANIFEST, REPORT})
"""Files that carry no checksum."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: the checked manifest and the paths of its files."""

    path: Path
    manifest: Manifest

    @property
    def decoder(self) -> Path:
        """decoder.onnx."""
        return self.path / DECODER

    @property
    def head(self) -> Path:
        """head.onnx."""
        return self.path / HEAD

    @property
    def candidates(self) -> Path:
        """candidates.onnx."""
        return self.path / CANDIDATES

    @property
    def tokenizer(self) -> Path:
        """tokenizer.json."""
        return self.path / TOKENIZER

    @property
    def chat_template(self) -> Path:
        """chat_template.jinja."""
        return self.path / CHAT_TEMPLATE

    @property
    def report(self) -> Path:
        """export_report.json; may be absent when verification was skipped."""
        return self.path / REPORT

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of all files that the manifest lists."""
        return sum(file.bytes for file in self.manifest.files.values())

    def kv_bytes(self, tokens: int, rows: int = 2) -> int:
        """Bytes of a KV cache that holds `tokens` positions in each of `rows` rows."""
        return self.manifest.memory.kv_bytes_per_token_per_row * tokens * rows


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle at `path`, its files not looked at.

    Raises `BundleError` when there is none, it is no manifest, or a newer program wrote it.
    """
    where = str(path / MANIFEST)
    if not path.is_dir():
        raise BundleError(
            str(path), "there is no bundle", todo="Make one with: costeer export --out DIR"
        )
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(
            str(path),
            "this folder is no bundle: manifest.json is missing",
            todo="Make one with: costeer export --out DIR",
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise BundleError(
            where, "cannot be read", got=type(error).__name__, todo="Export it again"
        ) from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise BundleError(where, "is no bundle manifest", got=f"schema_version {version}")
    if version > SCHEMA_VERSION:
        raise BundleError(
            where,
            "was written by a newer costeer",
            got=f"schema {version}",
            allowed=f"up to {SCHEMA_VERSION}",
            todo="Upgrade costeer-edge, or export the model again",
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BundleError(
            where, f"{field}: {first['msg'].lower()}", todo="Export the model again"
        ) from None


def manifest_text(manifest: Manifest) -> str:
    """The content of manifest.json."""
    return json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n"


def check_files(path: Path, manifest: Manifest, *, contents: bool = True) -> None:
    """Compare sizes, and SHA-256 if `contents`, with the manifest. Raises `BundleError`."""
    for name in () if manifest.npu is not None else NEEDED:
        if name not in manifest.files:
            raise BundleError(
                str(path / MANIFEST),
                f"{name} is not among the files",
                todo="Export the model again",
            )
    for name, expected in sorted(manifest.files.items()):
        where = str(path / name)
        if Path(name).name != name:
            raise BundleError(where, "a bundle's files lie directly in its folder", got=name)
        try:
            size = (path / name).stat().st_size
        except OSError:
            raise BundleError(
                where, "is missing from the bundle", todo="Export the model again"
            ) from None
        if size != expected.bytes:
            raise BundleError(
                where,
                "is truncated or not the file that was exported",
                got=f"{size} bytes",
                allowed=f"{expected.bytes} bytes",
                todo="Export or copy the bundle again",
            )
        if contents and sha256_file(path / name) != expected.sha256:
            raise BundleError(
                where,
                "was altered after the export: its SHA-256 differs from the manifest",
                todo="Export or copy the bundle again",
            )


def open_bundle(path: str | os.PathLike[str], *, force: bool = False, check: bool = True) -> Bundle:
    """Open the bundle at `path`.

    `check` compares every file's SHA-256 with the manifest (sizes are always compared); `force`
    opens a bundle that failed its verification. Raises `BundleError`.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    check_files(folder, manifest, contents=check)
    if not manifest.ready and not force:
        raise BundleError(
            str(folder),
            "this bundle failed its verification (ready: false)",
            todo=f"Read {REPORT}, or answer with it anyway: costeer generate --force",
        )
    return Bundle(folder, manifest)


class BundleWriter:
    """Writes a bundle so that it is there completely or not at all.

        with BundleWriter(out) as writer:
            (writer.path / "decoder.onnx").write_bytes(...)
            writer.finish(manifest)        # hashes the files, writes manifest.json
        # here `out` exists; without finish(), or on any error, nothing was left behind

    `replace` allows an existing BUNDLE at `out` to be replaced; any other non-empty folder is
    refused with `UsageError` before any work, and again before it would be replaced.
    """

    def __init__(self, out: str | os.PathLike[str], *, replace: bool = False) -> None:
        self.out = Path(out).absolute()
        self.path = Path()
        self._finished, self._replace = False, replace
        self._refuse_what_is_there()

    def _refuse_what_is_there(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise UsageError("--out", "is a file, not a folder", got=self.out)
        if self.out.is_dir() and any(self.out.iterdir()):
            if not (self.out / MANIFEST).is_file():
                raise UsageError(
                    "--out", "the folder is not empty and no bundle", got=self.out,
                    todo="Choose another folder",
                )  # fmt: skip
            if not self._replace:
                raise UsageError(
                    "--out", "there is a bundle already", got=self.out,
                    todo="Choose another folder, or replace it with --replace",
                )  # fmt: skip

    def __enter__(self) -> BundleWriter:
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", dir=self.out.parent))
        except OSError as error:
            raise BundleError(str(self.out), "cannot be written", got=error.strerror) from None
        self.path.chmod(0o755)
        return self

    def finish(self, manifest: Manifest) -> Manifest:
        """Hash every file in the folder and write the manifest; may be called again."""
        files = {
            file.name: File(bytes=file.stat().st_size, sha256=sha256_file(file))
            for file in sorted(self.path.iterdir())
            if file.name not in UNCHECKED
        }
        manifest = manifest.model_copy(update={"files": files})
        (self.path / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
        self._finished = True
        return manifest

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None or not self._finished:
            shutil.rmtree(self.path, ignore_errors=True)
            if _disk_was_full(error):
                raise BundleError(
                    str(self.out), "the disk filled up while the bundle was written",
                    todo="Make room and export again; nothing was left behind",
                ) from error  # fmt: skip
            return
        try:
            self._refuse_what_is_there()  # an export takes minutes: somebody else may have come
        except UsageError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        old = None
        if self.out.exists():
            old = self.path.with_name(self.path.name + ".old")
            self.out.rename(old)
        self.path.rename(self.out)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def _disk_was_full(error: BaseException | None) -> bool:
    if not isinstance(error, OSError):
        return False
    # numpy's tofile gives no number, only words.
    words = ("not enough free space", "requested and")
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or any(part in str(error).lower() for part in words)
