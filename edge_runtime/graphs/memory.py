"""How much memory this process has held, and giving back what it does not need."""

from __future__ import annotations

import ctypes
import functools
import mmap
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def peak_rss_mb() -> float:
    """The most memory this process has held resident, in 10^6 bytes.

    On Linux from `VmHWM`, which begins anew with each program: `ru_maxrss` would also count what
    the parent held when it forked.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    if found:
        return int(found[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def rss_mb() -> float:
    """What this process holds resident now, in 10^6 bytes."""
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6


def give_back_heap() -> None:
    """Return freed heap memory to the system, where its allocator offers a way (glibc).

    Loading a model frees many small blocks that would stay resident: 17 MB for SmolLM2-135M.
    """
    libc = _libc()
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def give_back_code(at_least: int = 1 << 20) -> None:
    """Let go of libraries' machine code in memory (Linux): most of it only loaded a model.

    What runs next is brought back from the system's cache in pieces of 64 kB: 10 MB less at the
    peak for a few tenths of a millisecond. Only mappings that can be executed are touched; nobody
    can have written to those.
    """
    libc = _libc()
    if libc is None:
        return
    for start, end, flags, name in _mappings():
        if flags == "r-xp" and name.startswith("/") and end - start >= at_least:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def keep_heap_small() -> None:
    """While a model is loaded: take large blocks from the system, return them when freed (glibc).

    By default the allocator raises its own limit as such blocks are freed, and keeps the next ones.
    """
    _tune_heap(mmap_from_bytes=1 << 18, trim_above_bytes=1 << 17)


def keep_heap_warm() -> None:
    """While a model runs: blocks of a prefill call come from the heap again and again (glibc).

    Asking the system for each of them means page faults for each: a third of a prefill's time.
    """
    _tune_heap(mmap_from_bytes=8 << 20, trim_above_bytes=16 << 20)


def _tune_heap(*, mmap_from_bytes: int, trim_above_bytes: int) -> None:
    libc = _libc()
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, mmap_from_bytes)
        libc.mallopt(_M_TRIM_THRESHOLD, trim_above_bytes)


def join_pages() -> None:
    """Ask for pages of 2 MB under large blocks that are held already: weights, keys and values.

    A step reads all of them once, and finding each 4 kB page anew took 4 to 5 % of it (Linux 6.1;
    measured on a virtual machine, where that takes longest). Only blocks that are resident
    throughout, so that nothing grows.
    """
    libc = _libc()
    if libc is None:
        return
    for start, end, flags, name in _mappings():
        first, last = -(-start // _HUGE), end // _HUGE
        if flags != "rw-p" or name not in ("", "[heap]") or first >= last:
            continue
        pages = (ctypes.c_ubyte * ((last - first) * _HUGE // mmap.PAGESIZE))()
        held = (last - first) * _HUGE
        if libc.mincore(ctypes.c_void_p(first * _HUGE), ctypes.c_size_t(held), pages):
            continue
        whole = np.frombuffer(bytes(pages), np.uint8).reshape(last - first, -1).all(axis=1)
        for block in np.flatnonzero(whole):
            at = (first + int(block)) * _HUGE
            libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(_HUGE), _COLLAPSE)


def mapped_tables(file: Path, at_least: int = 1 << 20) -> list[tuple[int, int]]:
    """Where this process has `file` mapped in pieces of `at_least` bytes: start and end addresses.

    Valid as long as whoever mapped it keeps it mapped. Empty where the system does not tell.
    """
    name = str(file.resolve())
    return [
        (start, end)
        for start, end, _, mapped in _mappings()
        if mapped == name and end - start >= at_least
    ]


def _mappings() -> Iterator[tuple[int, int, str, str]]:
    """Start, end, permissions and file (or another name) of each mapping of this process."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in maps.splitlines():
        edges, flags, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(edge, 16) for edge in edges.split("-"))
        yield start, end, flags, name[0] if name else ""


class MappedPages:
    """This process's view of a mapped file that nobody writes to, and letting go of it (Linux).

    A lookup in a mapped table touches one row, but the system maps the pages around it too: after
    a prompt all of the table would count as resident. Pages that are let go stay in the system's
    cache, and the next touch brings them back.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tables: list[tuple[int, int]] = []
        self.find()

    def find(self) -> None:
        """Look for the file's mappings; call it whenever it was mapped once more, and never after
        one was unmapped: something else may lie there by then."""
        self._tables = mapped_tables(self._file)
        # Otherwise a few rows bring all of a table, in pieces of 2 MB.
        self._advise(_NOHUGEPAGE)

    def give_back(self) -> None:
        """Let go."""
        self._advise(_DONTNEED)

    def _advise(self, how: int) -> None:
        libc = _libc()
        if libc is not None:
            for start, end in self._tables:
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), how)


_DONTNEED, _NOHUGEPAGE, _COLLAPSE = 4, 15, 25
_HUGE = 1 << 21
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@functools.cache
def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None
