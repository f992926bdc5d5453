"""onnxruntime, set up for small steps on few cores: options, threads, and buffers bound by address.

Import onnxruntime through this module: one switch must be in the environment before it loads.
"""

from __future__ import annotations

import os
from pathlib import Path

# onnxruntime 1.31's GroupQueryAttention prefills 12 % faster without its flash form (measured on
# x86); the variable is read when the library loads. A user's own setting is respected.
os.environ.setdefault("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge_runtime.errors import BudgetExceeded, BundleError, UsageError

MAX_THREADS = 64
_ELEMENT_TYPES = {
    np.dtype(np.float32): np.float32,
    np.dtype(np.int64): np.int64,
    np.dtype(np.int32): np.int32,
}


def open_session(
    path: Path, *, threads: int = 1, profile_prefix: str | None = None, arena: bool = False
) -> ort.InferenceSession:
    """A CPU session on the graph at `path`; its external weights are mapped, not read.

    `arena` keeps freed memory for the next call, and takes one block for all that a call of known
    shapes needs: 5 % of a step and of a prefill, and it never shrinks.
    `profile_prefix` makes onnxruntime record the time of every node. Raises `BundleError`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = check_threads(threads)
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena
    options.enable_mem_pattern = arena
    # Reused buffers live as long as the longest chain of their users: all layers. Freed ones come
    # back, and a prefill holds a quarter as much.
    options.enable_mem_reuse = False
    # A phone that waits for its cloud must not burn a core in the meantime.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    cores = _cores()
    if 1 < threads <= len(cores):
        # The calling thread is the first of them and stays where the system puts it.
        pinned = ";".join(str(core + 1) for core in cores[1:threads])
        options.add_session_config_entry("session.intra_op_thread_affinities", pinned)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise_if_out_of_memory(error)
        reason = str(error).splitlines()[0][:200]
        raise BundleError(
            str(path), f"onnxruntime cannot load this graph: {reason}", todo="Export it again"
        ) from error


def raise_if_out_of_memory(error: Exception) -> None:
    """Turn an allocation that failed, in whatever words, into `BudgetExceeded`."""
    text = str(error).lower()
    signs = ("bad_alloc", "bad allocation", "failed to allocate", "cannot allocate memory")
    if isinstance(error, MemoryError) or any(sign in text for sign in signs):
        raise BudgetExceeded(
            "memory",
            "the system refused memory that was needed",
            todo="Ask for a shorter context, or allow more memory",
        ) from error


def check_threads(threads: int) -> int:
    """`threads` if a session may have that many. Raises `UsageError`."""
    if not 1 <= threads <= MAX_THREADS:
        raise UsageError(
            "threads", "not a possible number", got=threads, allowed=f"1 to {MAX_THREADS}"
        )
    return threads


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class Binding:
    """Inputs and outputs of a session by address: numpy memory in, numpy memory out, no copies.

    The arrays must be C-contiguous and stay alive as long as they are bound; `offset` and `shape`
    bind a part of one.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._io = session.io_binding()

    def input(
        self, name: str, array: npt.NDArray, shape: tuple[int, ...] | None = None, offset: int = 0
    ) -> None:
        """Read `name` from `array`, from its byte `offset` on, seen as `shape`."""
        self._io.bind_input(
            name,
            "cpu",
            0,
            _ELEMENT_TYPES[array.dtype],
            array.shape if shape is None else shape,
            array.__array_interface__["data"][0] + offset,
        )

    def output(
        self, name: str, array: npt.NDArray, shape: tuple[int, ...] | None = None, offset: int = 0
    ) -> None:
        """Write `name` into `array`, likewise."""
        self._io.bind_output(
            name,
            "cpu",
            0,
            _ELEMENT_TYPES[array.dtype],
            array.shape if shape is None else shape,
            array.__array_interface__["data"][0] + offset,
        )

    def run(self) -> None:
        """One call; what is bound stays bound. Raises `BudgetExceeded` when memory ran out."""
        try:
            self._session.run_with_iobinding(self._io)
        except Exception as error:
            raise_if_out_of_memory(error)
            raise
