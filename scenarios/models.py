"""Real models by name, opened once and used by every cell that names them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cloud_sim.model import CloudModel
from edge_runtime.errors import EnvironmentFailure, UsageError
from edge_runtime.policy import Device
from edge_runtime.schedules.exchange import Request
from edge_runtime.weights import ALIASES, cache_dir
from scenarios.spec import Cell

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle
    from edge_runtime.text import Text

TARGET = "cpu-int8"


class Models(Protocol):
    """What a run needs of the world's models; tests and recordings have their own."""

    def device(self, cell: Cell) -> Device:
        """A fresh device for the cell's question and method."""
        ...

    def request(self, cell: Cell) -> Request:
        """What the device asks the cloud for."""
        ...

    def cloud(self, cell: Cell) -> CloudModel:
        """The cell's cloud model."""
        ...

    def decode(self, cell: Cell) -> Callable[..., str]:
        """Ids to text, with the device's tokenizer."""
        ...

    def weights_mb(self, cell: Cell) -> float:
        """What one step of the device's model reads, in 10^6 bytes."""
        ...


def bundle_path(name: str) -> Path:
    """Where the bundle called `name` is: a folder, or a known model exported into the cache.

    Raises `UsageError` when it is neither.
    """
    folder = Path(name)
    if (folder / "manifest.json").is_file() or folder.is_dir():
        return folder
    if name in ALIASES:
        return cache_dir() / "bundles" / f"{name}-{TARGET}"
    raise UsageError(
        "bundle",
        "neither a bundle's folder nor a model that can be fetched",
        got=name,
        allowed=f"a folder made by costeer export, or one of {', '.join(sorted(ALIASES))}",
    )


def export_if_needed(name: str) -> Path:
    """`bundle_path`, made by `costeer export` in a process of its own when it is not there."""
    path = bundle_path(name)
    if (path / "manifest.json").is_file():
        return path
    if name not in ALIASES:
        raise EnvironmentFailure(
            str(path), "there is no manifest.json in this folder", todo="Make it: costeer export"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "costeer", "export", "--model", name, "--target", TARGET]
    done = subprocess.run([*command, "--out", str(path)], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        # The child has told the reason on standard error already.
        raise EnvironmentFailure("export", f"{name} could not be exported", got=done.returncode)
    return path


class LocalModels:
    """Models on this machine, each opened at its first use and kept."""

    def __init__(self, told: Callable[[str], None] = lambda what: None) -> None:
        self._told = told
        self._bundles: dict[str, tuple[Bundle, Text]] = {}
        self._branches: dict[tuple[str, int], Any] = {}
        self._clouds: dict[str, CloudModel] = {}

    def device(self, cell: Cell) -> Device:
        """See `Models`."""
        from edge_runtime.sampling import Sampler
        from edge_runtime.steering import method
        from scenarios.assembly import device_for

        bundle, text = self._bundle(cell.bundle)
        branches = None
        if method(cell.method, cell.gain).steers:
            branches = self._open_branches(cell, bundle, text)
        return device_for(
            bundle,
            text,
            cell.case.query,
            cell.case.context,
            method=cell.method,
            gain=cell.gain,
            max_tokens=cell.max_tokens,
            sampler=Sampler(cell.temperature, cell.top_p, cell.seed),
            branches=branches,
        )

    def request(self, cell: Cell) -> Request:
        """See `Models`."""
        from edge_runtime.candidates import codec
        from scenarios.assembly import public_query

        query = public_query(cell.method, cell.case.query, cell.case.context)
        _, text = self._bundle(cell.bundle)
        return Request(query, text.fingerprint, codec(cell.codec), cell.max_tokens)

    def cloud(self, cell: Cell) -> CloudModel:
        """See `Models`."""
        name = cell.cloud_model
        if name not in self._clouds:
            from cloud_sim.live.llm import TransformersModel

            self._told(f"loading {name} for the cloud")
            self._clouds[name] = TransformersModel.open_source(name)
        return self._clouds[name]

    def decode(self, cell: Cell) -> Callable[..., str]:
        """See `Models`."""
        return self._bundle(cell.bundle)[1].decode

    def weights_mb(self, cell: Cell) -> float:
        """See `Models`."""
        return self._bundle(cell.bundle)[0].manifest.memory.weights_bytes / 1e6

    def _bundle(self, name: str) -> tuple[Bundle, Text]:
        if name not in self._bundles:
            from edge_runtime.bundle import open_bundle
            from edge_runtime.text import Text

            self._told(f"opening {name} for the device")
            bundle = open_bundle(export_if_needed(name), check=False)
            self._bundles[name] = bundle, Text.open(bundle)
        return self._bundles[name]

    def _open_branches(self, cell: Cell, bundle: Bundle, text: Text) -> Any:
        from edge_runtime.branches import open_branches

        prompts = text.prompts(cell.case.query, cell.case.context)
        needed = max(len(prompts.aware), len(prompts.agnostic)) + cell.max_tokens
        # One buffer serves all shorter questions too: round up, so that few are opened.
        length = min(-(-needed // 512) * 512, bundle.manifest.architecture.max_context)
        key = (cell.bundle, max(length, needed))
        if key not in self._branches:
            self._branches[key] = open_branches(bundle, max_length=key[1])
        return self._branches[key]
