"""Sweeps: nothing twice, nothing lost, and the same bytes however many hands did the work."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import scenarios.store
from edge_runtime.errors import EnvironmentFailure, UsageError
from scenarios.names import check_names
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


@pytest.mark.parametrize("damaged", ["", "[]", "{}", '{"row": {}}', '{"row": 1}'])
def test_a_damaged_cell_is_computed_anew(tmp_path: Path, damaged: str) -> None:
    before = sweep(study(), tmp_path, worker=fake).read_bytes()
    key = key_of(next(study().cells()))
    (tmp_path / "cells" / f"{key}.json").write_text(damaged)
    assert sweep(study(), tmp_path, worker=fake).read_bytes() == before
    assert Store(tmp_path).get(key)["row"]


@pytest.mark.parametrize("fails_at", ["results.parquet", "study.json"])
def test_a_full_disk_leaves_no_study_with_another_ones_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    sweep(study(), tmp_path, worker=fake)
    was = Store(tmp_path).rows()
    write = scenarios.store.write_whole

    def full(path: Path, *content: Any, **how: Any) -> None:
        if path.name == fails_at:
            raise OSError(28, "No space left on device")
        write(path, *content, **how)

    monkeypatch.setattr("scenarios.store.write_whole", full)
    other = study(network={"profile": "5g", "rtt_ms": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]})
    assert len(other) == len(was), "a count alone does not tell the two apart"
    with pytest.raises(OSError, match="No space"):
        sweep(other, tmp_path, worker=fake)
    if fails_at == "results.parquet":
        assert Store(tmp_path).rows().equals(was)
    else:
        with pytest.raises(EnvironmentFailure, match="no finished study"):
            Store(tmp_path).rows()


def test_rows_that_are_not_the_studys_are_refused(tmp_path: Path) -> None:
    sweep(study(), tmp_path, worker=fake)
    kept = (tmp_path / "study.json").read_bytes()
    sweep(study(seed=1), tmp_path, worker=fake)
    (tmp_path / "study.json").write_bytes(kept)
    with pytest.raises(EnvironmentFailure, match="not the rows of study"):
        Store(tmp_path).rows()


@pytest.mark.parametrize(
    ("table", "axis", "line"),
    [
        ("answer", {"method": ["light", "ligth"]}, "ligth.*Did you mean light"),
        ("answer", {"schedule": ["lockstep", "runahed"]}, "runahed"),
        ("network", {"profile": ["5g", "6g"]}, "networks: no such profile"),
        ("network", {"profile": ["5g", "made:boat"]}, "no such made drive"),
        ("device", {"profile": ["this-machine", "toaster"]}, "devices: no such profile"),
        ("cloud", {"profile": ["this-machine", "toaster"]}, "clouds: no such profile"),
        ("answer", {"method": ["light", "cloud-only"], "gain": 1.0}, "has no gain"),
    ],
)
def test_a_name_that_is_none_is_told_before_the_first_cell(
    tmp_path: Path, table: str, axis: dict[str, Any], line: str
) -> None:
    with pytest.raises(UsageError, match=line):
        sweep(study(**{table: axis}), tmp_path / "out", worker=fake)
    assert not (tmp_path / "out").exists()


def test_a_codec_that_only_studies_of_codecs_have_is_looked_up_there(tmp_path: Path) -> None:
    codecs: dict[str, Any] = {"measure": "codec", "network": {}}
    check_names(study(**codecs, answer={"codec": ["topk:4", "delta:8", "zstd:8"]}))
    with pytest.raises(UsageError, match="no such candidate codec"):
        check_names(study(**codecs, answer={"codec": ["topk:4", "delta:x"]}))


def test_there_are_no_more_workers_than_groups_of_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def parallel(work: Any, worker: Any, folder: Path, options: dict[str, Any]) -> Any:
        asked.append(options["n_jobs"])
        return (worker(group, str(folder)) for group in work)

    monkeypatch.setattr("scenarios.sweep._parallel", parallel)
    sweep(study(), tmp_path, jobs=200, worker=fake)
    assert asked == [4]


def test_an_absurd_number_of_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--jobs: .*got 500000; allowed 1 to \d+"):
        sweep(study(), tmp_path, jobs=500_000, worker=fake)


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
