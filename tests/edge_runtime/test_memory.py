"""Large pages under what is held already: nothing changes but the time to find a page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.graphs.memory import join_pages, rss_mb

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked of Linux")

ROOT = Path(__file__).parents[2]


def large_pages_mb() -> float:
    found = re.findall(r"^AnonHugePages: +(\d+) kB", Path("/proc/self/smaps").read_text(), re.M)
    return sum(map(int, found)) * 1024 / 1e6


def test_contents_stay_and_nothing_grows() -> None:
    kept = [np.random.default_rng(seed).integers(0, 255, 3_000_000, np.uint8) for seed in range(8)]
    before = rss_mb()
    join_pages()
    # Pages in a block that were not in memory would now be: 2 MB for each such block.
    assert rss_mb() - before < 2
    for seed, block in enumerate(kept):
        anew = np.random.default_rng(seed).integers(0, 255, 3_000_000, np.uint8)
        np.testing.assert_array_equal(block, anew)


def test_blocks_get_large_pages() -> None:
    code = (
        "import ctypes, numpy as np;"
        "from edge_runtime.graphs.memory import join_pages, keep_heap_small;"
        "from tests.edge_runtime.test_memory import large_pages_mb; keep_heap_small();"
        "kept = [np.ones(3_500_000, np.uint8) for _ in range(16)]; before = large_pages_mb();"
        "join_pages(); print(large_pages_mb() - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    more = float(run.stdout)
    if more == 0:
        pytest.skip("this system has no large pages to give (Linux before 6.1, or switched off)")
    assert more > 20
