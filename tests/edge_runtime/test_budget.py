"""Admission: what is computed beforehand, and that a real limit never kills."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.budget import Budget, Meter, admit, longest_context, need
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BudgetExceeded, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process holds 100 MB, whatever the tests before it did."""
    monkeypatch.setattr("edge_runtime.budget._resident", lambda: 10**8)


def test_the_need_is_the_sum_of_its_parts(tiny_bundle: Bundle) -> None:
    small, large = need(tiny_bundle, 100, process=0), need(tiny_bundle, 200, process=0)
    memory, hidden = tiny_bundle.manifest.memory, tiny_bundle.manifest.architecture.hidden
    per_token = 2 * memory.kv_bytes_per_token_per_row + 2 * 4 * hidden
    assert large.total - small.total == 100 * per_token
    assert small.weights == memory.weights_bytes
    assert small.total == small.weights + small.kv + small.workspace


@pytest.mark.usefixtures("at_rest")
def test_what_does_not_fit_is_refused_with_what_would(tiny_bundle: Bundle) -> None:
    enough = need(tiny_bundle, 130).total_mb
    assert admit(tiny_bundle, 100, Budget(memory_mb=enough)) == 100
    with pytest.raises(BudgetExceeded) as caught:
        admit(tiny_bundle, 4096, Budget(memory_mb=enough))
    assert "with 4096 tokens of context does not fit into the budget" in str(caught.value)
    assert "A context of 128 tokens would fit." in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("at_rest")
def test_it_may_be_shortened_instead(tiny_bundle: Bundle) -> None:
    enough = need(tiny_bundle, 257).total_mb
    assert admit(tiny_bundle, 4096, Budget(memory_mb=enough), shorten_to=64) == 256


def test_with_no_room_for_the_weights_a_smaller_bundle_is_named(tiny_bundle: Bundle) -> None:
    with pytest.raises(BudgetExceeded, match=r"an int4 bundle .* may fit"):
        admit(tiny_bundle, 64, Budget(memory_mb=1))
    assert longest_context(tiny_bundle, 1e6) == 0


@pytest.mark.parametrize("name", ["memory_mb", "first_token_ms", "token_ms"])
def test_a_budget_is_positive(name: str) -> None:
    with pytest.raises(UsageError, match="a budget must be positive"):
        Budget(**{name: 0})


def test_the_verdict_names_each_limit() -> None:
    lines = Budget(memory_mb=10, token_ms=5).verdict(memory_mb=11, first_token_ms=1.0, token_ms=5.0)
    assert lines == [
        {"name": "memory_mb", "limit": 10, "measured": 11, "ok": False},
        {"name": "token_ms", "limit": 5, "measured": 5.0, "ok": True},
    ]


def test_the_meter_keeps_a_window() -> None:
    meter = Meter(window=3)
    for spent in (100.0, 1.0, 2.0, 3.0):
        meter.token(spent)
    assert (meter.recent_ms, meter.worst_ms, meter.tokens) == (2.0, 100.0, 4)
    assert meter.peaks()["peak_rss_mb"] >= meter.peaks()["uss_mb"] * 0.5


UNDER_A_LIMIT = """
import resource, sys
import edge_runtime.branches, psutil
from edge_runtime.budget import admit
from edge_runtime.bundle import open_bundle
from edge_runtime.errors import BudgetExceeded
bundle = open_bundle(sys.argv[1])
tokens = min(512, bundle.manifest.architecture.max_context)
room = int(sys.argv[2])
limit = psutil.Process().memory_info().vms + room
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    admitted = admit(bundle, tokens, shorten_to=64)
    branches = edge_runtime.branches.open_branches(bundle, max_length=admitted)
    branches.prefill([1] * (admitted - 2), [2])
    branches.extend([3])
    branches.logits()
    print("ran", admitted)
except BudgetExceeded as error:
    print("refused", error)
"""


@pytest.mark.parametrize("room_mb", [1, 4, 16, 40, 80, 160, 1000])
def test_a_run_under_a_real_limit_is_refused_or_lives(tiny_bundle: Bundle, room_mb: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, str(tiny_bundle.path), str(room_mb * 10**6)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.startswith(("ran", "refused"))
    if room_mb == 1000:
        assert run.stdout.startswith("ran")
    if room_mb == 1:
        assert run.stdout.startswith("refused")


@pytest.mark.weights
@pytest.mark.parametrize("room_mb", [60, 200, 280, 330, 1000])
def test_smollm2_under_a_real_limit_is_refused_or_lives(
    smollm2_bundle: Bundle, room_mb: int
) -> None:
    command = [sys.executable, "-c", UNDER_A_LIMIT, str(smollm2_bundle.path), str(room_mb * 10**6)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.startswith("refused" if room_mb == 60 else ("ran", "refused"))
    if room_mb == 1000:
        assert run.stdout.startswith("ran 512")
