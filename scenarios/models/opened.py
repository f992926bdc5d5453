"""Real models by name, opened once and used by every cell that names them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cloud_sim.model import CloudModel
from cloud_sim.sim.record import blank
from cloud_sim.sim.replay import Replay
from cloud_sim.sim.tape import Tape
from edge_runtime.assembly import public_query
from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.errors import FELL_SHORT, EnvironmentFailure, UsageError
from edge_runtime.rules import method
from edge_runtime.sampling import Sampler
from edge_runtime.text import Prompts, Text
from edge_runtime.tuned import reads_notes
from edge_runtime.weights import ALIASES, cache_dir
from scenarios.identity import content_of
from scenarios.models.reuse import Reusing
from scenarios.spec import Cell
from scenarios.store import content_key

TARGET = "cpu-int8"


class Models(Protocol):
    """What a run needs of the world's models; tests have their own."""

    def replay(self, cell: Cell) -> Replay:
        """The cell's question on tape, with the models at hand for what is not on it yet."""
        ...

    def decode(self, cell: Cell) -> Callable[..., str]:
        """Ids to text, with the device's tokenizer."""
        ...

    def weights_mb(self, cell: Cell) -> float:
        """What one step of the device's model reads, in 10^6 bytes."""
        ...


def bundle_path(name: str) -> Path:
    """Where the bundle called `name` is: a folder, or a known model exported into the cache.

    A known model may name its export target: `smollm2-135m@cpu-int4`. Raises `UsageError` when it
    is neither.
    """
    folder = Path(name)
    if (folder / "manifest.json").is_file() or folder.is_dir():
        return folder
    model, target = model_and_target(name)
    if model in ALIASES:
        return cache_dir() / "bundles" / f"{model}-{target}"
    raise UsageError(
        "bundle",
        "neither a bundle's folder nor a model that can be fetched",
        got=name,
        allowed=f"a folder made by costeer export, or one of {', '.join(sorted(ALIASES))}",
    )


def model_and_target(name: str) -> tuple[str, str]:
    """`MODEL` or `MODEL@TARGET`."""
    model, _, target = name.partition("@")
    return model, target or TARGET


def export_if_needed(name: str) -> Path:
    """`bundle_path`, made by `costeer export` in a process of its own when it is not there."""
    path = bundle_path(name)
    if (path / "manifest.json").is_file():
        return path
    model, target = model_and_target(name)
    if model not in ALIASES:
        raise EnvironmentFailure(
            str(path), "there is no manifest.json in this folder", todo="Make it: costeer export"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "costeer", "export", "--model", model, "--target", target]
    done = subprocess.run([*command, "--out", str(path)], stdout=subprocess.DEVNULL, check=False)
    # A bundle that fails a mark is one all the same: studies ask what that costs.
    if done.returncode not in (0, FELL_SHORT):
        raise EnvironmentFailure(
            "export", f"{name} could not be exported", todo="The line above says why"
        )
    return path


class LocalModels:
    """Models on this machine, each opened at its first use and kept; every answer is recorded.

    `tapes`: a folder that keeps the recordings, so that the next run needs no model. They hold the
    small model's scores, which depend on the private note: as private as the note itself.
    `offline`: no model is opened, and what is not on a tape is refused.
    """

    def __init__(
        self,
        tapes: Path | None = None,
        told: Callable[[str], None] = lambda what: None,
        *,
        offline: bool = False,
    ) -> None:
        self._told, self._folder, self._offline = told, tapes, offline
        self._bundles: dict[str, tuple[Bundle, Text]] = {}
        self._branches: dict[tuple[str, int], Any] = {}
        self._clouds: dict[str, CloudModel] = {}
        self._tapes: dict[str, Tape] = {}
        self._saved: dict[str, int] = {}

    def replay(self, cell: Cell) -> Replay:
        """See `Models`."""
        bundle, text = self._bundle(cell.bundle)
        rule = reads_notes(method(cell.method, cell.gain))
        query = public_query(rule, cell.case.query, cell.case.context)
        prompts = text.prompts(cell.case.query, cell.case.context)
        tape = self._tape(cell, query, prompts)
        sampler = Sampler(cell.temperature, cell.top_p, cell.seed)
        if self._offline:
            return Replay(tape, rule, sampler)
        return Replay(
            tape,
            rule,
            sampler,
            cloud=_Lazy(lambda: Reusing(self._cloud(cell.cloud_model))),
            branches=_Lazy(lambda: self._open_branches(cell, bundle, prompts)),
            prompts=prompts,
        )

    def keep(self) -> None:
        """Write the tapes that have grown."""
        for key, tape in self._tapes.items():
            saved = self._saved.get(key)
            if self._folder is not None and saved != tape.positions:
                tape.save(self._folder / f"{key}.tape")
                self._saved[key] = tape.positions
                if saved is not None:
                    new = tape.positions - saved
                    self._told(f"left a recorded path: the models were asked for {new} positions")

    def decode(self, cell: Cell) -> Callable[..., str]:
        """See `Models`."""
        return self._bundle(cell.bundle)[1].decode

    def weights_mb(self, cell: Cell) -> float:
        """See `Models`."""
        return self._bundle(cell.bundle)[0].manifest.memory.weights_bytes / 1e6

    def _tape(self, cell: Cell, query: str, prompts: Prompts) -> Tape:
        manifest = self._bundle(cell.bundle)[0].manifest
        question = content_key(
            {
                "bundle": {name: file.sha256 for name, file in manifest.files.items()},
                "cloud": cell.cloud_model,
                "codec": cell.codec,
                "query": query,
                "case": cell.case.query,
                "context": cell.case.context,
            }
        )
        key = f"{question}-{content_key({'cloud': content_of(cell.cloud_model)})[:8]}"
        if key not in self._tapes:
            path = self._recorded(question, key, cell.cloud_model)
            if path is not None:
                self._tapes[key] = Tape.load(path)
                self._saved[key] = self._tapes[key].positions
            elif self._offline:
                raise UsageError(
                    "tape",
                    f"no answer to this question was recorded with codec {cell.codec}",
                    got=str(self._folder),
                    todo="Run once without --offline",
                )
            else:
                self._tapes[key] = blank(self._cloud(cell.cloud_model), query, cell.codec)
                self._tapes[key].prompt_lengths = (len(prompts.aware), len(prompts.agnostic))
                self._tapes[key].names = prompts.names
        return self._tapes[key]

    def _recorded(self, question: str, key: str, cloud: str) -> Path | None:
        """The tape of `key`. Offline, where the cloud's model may not be on this machine and its
        content cannot be asked, the one tape of the question from a model of its name."""
        if self._folder is None:
            return None
        found = [self._folder / f"{key}.tape"]
        if self._offline and not Path(cloud).exists():
            found = list(self._folder.glob(f"{question}-*.tape"))
        return found[0] if len(found) == 1 and found[0].is_file() else None

    def _cloud(self, name: str) -> CloudModel:
        if name not in self._clouds:
            from cloud_sim.live.llm import TransformersModel

            self._told(f"loading {name} for the cloud")
            self._clouds[name] = TransformersModel.open_source(name)
        return self._clouds[name]

    def _bundle(self, name: str) -> tuple[Bundle, Text]:
        if name not in self._bundles:
            self._told(f"opening {name} for the device")
            bundle = open_bundle(export_if_needed(name), check=False)
            self._bundles[name] = bundle, Text.open(bundle)
        return self._bundles[name]

    def _open_branches(self, cell: Cell, bundle: Bundle, prompts: Prompts) -> Any:
        from edge_runtime.branches import open_branches

        needed = max(len(prompts.aware), len(prompts.agnostic)) + cell.max_tokens
        # One buffer serves all shorter questions too: round up, so that few are opened.
        length = min(-(-needed // 512) * 512, bundle.manifest.architecture.max_context)
        key = (cell.bundle, max(length, needed))
        if key not in self._branches:
            self._branches[key] = open_branches(bundle, max_length=key[1])
        return self._branches[key]


class _Lazy:
    """Stands in for a model until the first time that something is asked of it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._made = make, None

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = self._make()
        return getattr(self._made, name)
