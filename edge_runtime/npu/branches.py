"""The two branches of a small model on a phone's NPU: static graphs, slots written by the host.

Same verbs as `edge_runtime.branches.TwoBranches`. `backend` says who computes:

    qnn        the phone's HTP, from the context binaries in the bundle
    simulator  the same binaries on the x86_64 HTP simulator (exact, and minutes a token)
    cpu        the static graphs on onnxruntime's CPU provider (development)
    auto       qnn where a phone's provider is installed, else cpu

Two rows of different length share every call: each has its own positions and its own mask. A
rollback lowers the lengths; stale slots are masked, so nothing is copied or cleared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge_runtime.errors import BudgetExceeded, BundleError, UsageError
from edge_runtime.npu import qnn
from edge_runtime.npu.host import Array, Embedding, Frame
from edge_runtime.npu.manifest import ROWS, NpuGraph, NpuSection

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle

BACKENDS = ("auto", "qnn", "simulator", "cpu")
BACKEND_VARIABLE = "COSTEER_NPU"
"""Environment variable that replaces `auto`."""

_EMPTY = {"float16": 0, "uint16": 32768}
"""What zero is in a slot: uint16 keys and values have their zero point in the middle."""


class NpuBranches:
    """Two rows of keys and values beside the static graphs of one NPU bundle."""

    def __init__(
        self,
        folder: Path,
        section: NpuSection,
        architecture: Any,
        *,
        max_length: int | None = None,
        threads: int = 1,
        backend: str = "auto",
    ) -> None:
        self._folder = folder
        self._npu = section
        self._threads = threads
        self._backend = _resolve(backend)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self.vocabulary_size: int = architecture.vocabulary_size
        self.max_length = max_length or section.past
        if self.max_length > section.past:
            raise BudgetExceeded(
                "context length",
                "prompt and answer do not fit in the slots fixed at export",
                got=f"{self.max_length} tokens",
                allowed=section.past,
                todo="Ask for fewer tokens, shorten the note, or export with a larger --past",
            )
        self._frame = Frame(
            past=section.past,
            group=section.group,
            inv_freq=np.array(section.inv_freq, np.float32),
            rope_scale=section.rope_scale,
            mask_floor=section.mask_floor,
        )
        self._embed = Embedding(folder / section.embedding, architecture.hidden, section.block)
        slots = (ROWS, architecture.kv_heads, section.past, architecture.head_dim)
        self._kv = {
            f"past_{kind}.{layer}": np.full(slots, _EMPTY[section.kv], section.kv)
            for layer in range(architecture.layers)
            for kind in ("key", "value")
        }
        self._first = _first_kv(folder, section)
        self._lengths = [0, 0]
        self._prompts = [0, 0]
        self._hidden: list[npt.NDArray[np.float32]] = []
        self._prompt_states: list[npt.NDArray[np.float32]] = []
        self._logits: tuple[int, npt.NDArray[np.float32]] | None = None

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        *,
        max_length: int | None = None,
        threads: int = 1,
        backend: str = "auto",
    ) -> NpuBranches:
        """Over an opened bundle whose target is an NPU. Graphs are loaded when first used."""
        if not bundle.manifest.npu:
            raise BundleError(
                str(bundle.path), "this bundle is not for an NPU", got=bundle.manifest.target
            )
        return cls(
            Path(bundle.path),
            NpuSection.model_validate(bundle.manifest.npu),
            bundle.manifest.architecture,
            max_length=max_length,
            threads=threads,
            backend=backend,
        )

    @property
    def backend(self) -> str:
        """`qnn`, `simulator` or `cpu`: what `auto` came to."""
        return self._backend

    @property
    def length(self) -> int:
        """Answer tokens in both rows."""
        return self._lengths[0] - self._prompts[0]

    @property
    def past(self) -> int:
        """Tokens in the longer row, prompt included."""
        return max(self._lengths)

    def load(self) -> None:
        """Open all three graphs now; without this, each is opened when it is first used."""
        for name in ("prefill", "decode", "head"):
            self._session(name)

    def prefill(self, aware: Sequence[int], agnostic: Sequence[int], *, note: int = 0) -> None:
        """Begin an answer: both prompts, nothing after them.

        `note` (leading tokens of `aware` whose keys might be kept) is not used here. Raises
        `BudgetExceeded` when a prompt does not fit in the slots fixed at export.
        """
        prompts = [list(aware), list(agnostic)]
        if not all(prompts):
            raise UsageError("npu", "a prompt is empty", got=f"{[len(p) for p in prompts]} tokens")
        self._lengths = [0, 0]
        if self._first:
            prompts = [self._skip_first(prompt) for prompt in prompts]
        self._room([len(prompt) for prompt in prompts])
        self._hidden = []
        states = self._prompt_states = self._run(prompts)
        self._prompts = list(self._lengths)
        self._hidden = [np.stack([state[-1] for state in states])]

    def extend(self, tokens: Sequence[int]) -> None:
        """Append answer tokens to both rows: one decode step, or the chunk graph for several."""
        if not self._hidden:
            raise UsageError("npu", "extend before prefill")
        tokens = list(tokens)
        if not tokens:
            return
        self._room([len(tokens)] * ROWS)
        states = self._run([tokens, tokens])
        self._hidden.extend(np.stack(pair) for pair in zip(*states, strict=True))

    def rollback(self, length: int) -> None:
        """Forget the answer's tokens from `length` on."""
        if not 0 <= length <= self.length:
            raise UsageError("npu", "cannot roll back to there", got=length, allowed=self.length)
        self._lengths = [prompt + length for prompt in self._prompts]
        del self._hidden[length + 1 :]
        if self._logits is not None and self._logits[0] != length:
            self._logits = None

    def logits(
        self, ids: Array | None = None, position: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Raw logits [2, C] over `ids` (None: the whole vocabulary), for the answer's `position`
        (None: the next one)."""
        if not self._hidden:
            raise UsageError("npu", "logits before prefill")
        at = self.length if position is None else position
        if self._logits is None or self._logits[0] != at:
            self._logits = (at, self.head(self._hidden[at]))
        whole = self._logits[1]
        return whole if ids is None else whole[:, ids]

    def delta(self, ids: Array | None = None) -> npt.NDArray[np.float32]:
        """Aware minus agnostic logits [C]: the steering direction, up to a constant."""
        aware, agnostic = self.logits(ids)
        return aware - agnostic

    def states(self, rows: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        """Hidden states [n, hidden] after each token of two sequences: for verification.

        Where position 0 is a shipped constant its state is unknown, and zeros stand for it.
        """
        self.prefill(*rows)
        first = [np.zeros_like(self._prompt_states[0][:1])] if self._first else []
        return [np.concatenate([*first, state]) for state in self._prompt_states]

    def head(self, hidden: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits [2, V] of two hidden states [2, hidden]."""
        (logits,) = self._session("head").run(["logits"], {"hidden": hidden[:, None]})
        return logits[:, 0].astype(np.float32)

    def _room(self, new: Sequence[int]) -> None:
        need = max(length + count for length, count in zip(self._lengths, new, strict=True))
        if need > self.max_length:
            raise BudgetExceeded(
                "npu",
                "prompt and answer do not fit in the slots fixed at export",
                got=f"{need} tokens",
                allowed=f"{self.max_length}",
                todo="Shorten the note, or export with a larger --past",
            )

    def _run(self, rows: list[list[int]]) -> list[npt.NDArray[np.float32]]:
        """Append `rows[r]` to row r; the hidden state after each of its tokens, [n, H] a row."""
        total = max(len(row) for row in rows)
        states: list[list[npt.NDArray[np.float32]]] = [[] for _ in rows]
        done = 0
        while done < total:
            single = total - done == 1
            sequence = 1 if single else self._npu.chunk
            part = [row[done : done + sequence] for row in rows]
            feeds = self._frame.inputs(self._embed, part, self._lengths, sequence) | self._kv
            session = self._session("decode" if single else "prefill")
            names = [output.name for output in session.get_outputs()]
            outputs = dict(zip(names, session.run(names, feeds), strict=True))
            for row, new in enumerate(part):
                self._store(row, len(new), outputs)
                states[row].append(outputs["hidden"][row, : len(new)])
            done += sequence
        self._logits = None
        return [np.concatenate(parts).astype(np.float32) for parts in states]

    def _store(self, row: int, count: int, outputs: dict[str, Array]) -> None:
        """Write `count` new keys and values into the row's next slots."""
        start = self._lengths[row]
        for name, slots in self._kv.items():
            new = outputs[name.removeprefix("past_")]
            slots[row, :, start : start + count] = new[row, :, :count]
        self._lengths[row] += count

    def _skip_first(self, prompt: list[int]) -> list[int]:
        """Put the shipped keys and values of position 0 in their slot instead of computing them."""
        if prompt[0] != self._npu.first_token or len(prompt) < 2:
            raise UsageError(
                "npu",
                "this bundle was calibrated for prompts that begin with one fixed token",
                got=prompt[0],
                allowed=self._npu.first_token,
                todo="Use --target npu-qnn, which takes any prompt",
            )
        for name, slots in self._kv.items():
            slots[:, :, 0] = self._first[name.removeprefix("past_")]
        self._lengths = [1, 1]
        return prompt[1:]

    def _session(self, name: str) -> ort.InferenceSession:
        if name not in self._sessions:
            self._sessions[name] = self._open(getattr(self._npu, name))
        return self._sessions[name]

    def _open(self, graph: NpuGraph) -> ort.InferenceSession:
        if self._backend == "cpu":
            options = ort.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.log_severity_level = 3
            return ort.InferenceSession(
                str(self._folder / graph.static), options, providers=["CPUExecutionProvider"]
            )
        if graph.context is None:
            raise BundleError(
                str(self._folder),
                "this bundle holds no context binary",
                todo="Export it again where onnxruntime-qnn is installed",
            )
        return qnn.htp_session(
            self._folder / graph.context,
            soc_number=self._npu.soc_number,
            architecture=self._npu.architecture,
            threads=self._threads,
        )


def _resolve(backend: str) -> str:
    if backend == "auto":
        backend = os.environ.get(BACKEND_VARIABLE, "auto")
    if backend not in BACKENDS:
        raise UsageError(
            BACKEND_VARIABLE, "no such NPU backend", got=backend, allowed=", ".join(BACKENDS)
        )
    if backend == "auto":
        return "qnn" if qnn.available() and not qnn.simulated() else "cpu"
    return backend


def _first_kv(folder: Path, section: NpuSection) -> dict[str, Array]:
    if section.first_kv is None:
        return {}
    with np.load(folder / section.first_kv, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
