"""Sweeps: nothing twice, nothing lost, and the same bytes however many hands did the work."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.errors import EnvironmentFailure, UsageError
from scenarios.spec import Scenario, scenario
from scenarios.store import Store
from scenarios.sweep import Group, groups, key_of, put, sweep


def study(**axes: Any) -> Scenario:
    return scenario(
        {
            "name": "test",
            "case": {"query": "q", "context": "c"},
            "answer": {"method": ["light", "costeer"], "codec": ["topk:4", "topk:8"]},
            "network": {"profile": ["5g", "lte", "slow-4g"], "rtt_ms": [20.0, 100.0]},
            **axes,
        }
    )


def fake(group: Group, folder: str) -> list[str]:
    """Rows from the cells alone; each call leaves a mark."""
    results = [
        {"row": {**cell.settings(), "case": cell.case.id, "ms": len(cell.network) * 1.5}}
        for _, cell in group
    ]
    calls = Path(folder) / "calls"
    calls.mkdir(parents=True, exist_ok=True)
    (calls / group[0][0]).touch()
    return put(group, results, folder)


def dies_once(group: Group, folder: str) -> list[str]:
    """The first worker to come here is killed, as by the system when memory is out."""
    grave = Path(folder) / "grave"
    try:
        grave.parent.mkdir(parents=True, exist_ok=True)
        grave.touch(exist_ok=False)
    except FileExistsError:
        return fake(group, folder)
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def fails(group: Group, folder: str) -> list[str]:
    raise UsageError("cell", "no good")


def test_every_cell_has_a_row_in_the_studys_order(tmp_path: Path) -> None:
    plan = study()
    sweep(plan, tmp_path, worker=fake)
    rows = Store(tmp_path).rows()
    cells = list(plan.cells())
    assert len(rows) == len(cells) == 24
    assert list(rows["network"]) == [cell.network for cell in cells]
    assert Store(tmp_path).study()["varied"] == ["method", "codec", "network", "rtt_ms"]


@pytest.mark.parametrize("jobs", [2])
def test_the_bytes_do_not_depend_on_the_number_of_jobs(tmp_path: Path, jobs: int) -> None:
    one = sweep(study(), tmp_path / "one", worker=fake).read_bytes()
    more = sweep(study(), tmp_path / "more", jobs=jobs, worker=fake).read_bytes()
    assert one == more


def test_a_stopped_study_goes_on_and_a_changed_one_runs_only_what_is_new(tmp_path: Path) -> None:
    sweep(study(), tmp_path, worker=fake)
    calls = tmp_path / "calls"
    before = {path.name: path.stat().st_mtime_ns for path in calls.iterdir()}
    sweep(study(), tmp_path, worker=fake)
    assert {path.name: path.stat().st_mtime_ns for path in calls.iterdir()} == before
    plan = study(seed=[0, 1])
    sweep(plan, tmp_path, worker=fake)
    assert len(Store(tmp_path).rows()) == 48
    done = {key_of(cell) for cell in study().cells()}
    new = {path.name for path in calls.iterdir()} - set(before)
    assert new
    assert not new & done


def test_a_killed_worker_loses_no_cell(tmp_path: Path) -> None:
    path = sweep(study(), tmp_path / "killed", jobs=2, worker=dies_once)
    assert (tmp_path / "killed" / "grave").exists()
    assert path.read_bytes() == sweep(study(), tmp_path / "whole", worker=fake).read_bytes()


def test_what_a_cell_refuses_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cell: no good"):
        sweep(study(), tmp_path, jobs=2, worker=fails)
    with pytest.raises(EnvironmentFailure, match="no finished study"):
        Store(tmp_path).rows()


def test_cells_that_share_an_answer_run_together() -> None:
    cells = [(key_of(cell), cell) for cell in study().cells()]
    found = groups(cells, 1)
    assert len(found) == 4
    assert all(len({cell.method for _, cell in group}) == 1 for group in found)


def test_a_key_follows_the_content_of_a_users_own_profile(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"

    def key() -> str:
        return key_of(next(study(network={"profile": str(own)}).cells()))

    own.write_text("a = 1")
    first = key()
    own.write_text("a = 2")
    assert key() != first


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_a_cluster_whose_worker_is_killed_gives_the_same_bytes(engine: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray" if engine == "ray" else "distributed")
    told: list[tuple[int, int]] = []
    there = sweep(
        study(),
        tmp_path / engine,
        jobs=2,
        engine=engine,
        worker=dies_once,
        told=lambda done, total: told.append((done, total)),
    )
    assert (tmp_path / engine / "grave").exists()
    assert there.read_bytes() == sweep(study(), tmp_path / "local", worker=fake).read_bytes()
    assert told == sorted(told)
    assert told[-1] == (24, 24)


def test_progress_counts_up_to_all(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    report: Callable[[int, int], None] = lambda done, total: told.append((done, total))  # noqa: E731
    sweep(study(), tmp_path, worker=fake, told=report)
    assert told[0] == (0, 24)
    assert told[-1] == (24, 24)
    assert told == sorted(told)
