"""How much memory this process has held."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


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
