"""Run every cell of a study, on this machine's cores or on a cluster, and lose none.

Cells that share an answer (same models, method, codec, schedule and case; only links, machines or
seeds differ) are run together by one worker, so the models run once. A worker that dies takes at
most the group it was at with it: what is finished is on disk, and what is not is run again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from edge_runtime.checked import toml
from edge_runtime.errors import CosteerError, EnvironmentFailure, UsageError
from scenarios.cells.recordings import file_of
from scenarios.cells.trace_links import files, is_trace
from scenarios.identity import code, content_of, digest
from scenarios.names import check_names
from scenarios.spec import Cell, Scenario
from scenarios.store import Store, content_key

Engine = Literal["local", "ray", "dask"]
Group = list[tuple[str, Cell]]
Worker = Callable[[Group, str], list[str]]
"""Runs a group, puts each cell into the store in that folder, returns their keys."""

WATCH_S = 1.0
"""How often the store is looked at while a cluster works."""

MOST_JOBS = 256
"""Workers on one machine, unless it has processors for more: each holds models in memory."""

ATTEMPTS = 3
"""Times in a row that workers may die without one cell being finished, before we give up."""


def sweep(
    study: Scenario,
    folder: Path,
    *,
    jobs: int = 1,
    engine: Engine = "local",
    address: str = "",
    worker: Worker | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Run what is missing of `study` in `folder`; the path of the Parquet file of all rows.

    `told` is called with (finished, all) cells. Raises `EnvironmentFailure` when workers keep
    dying or the cluster is not there, `UsageError` for a name that is none before the first cell,
    and what a cell itself raises.
    """
    _check_jobs(jobs, address)
    check_names(study)
    store = Store(folder)
    cells = [(key_of(cell), cell) for cell in study.cells()]
    keys = [key for key, _ in cells]
    todo = [(key, cell) for key, cell in cells if not store.has(key)]
    told(len(keys) - len(todo), len(keys))
    fruitless = 0
    # A worker without a group would only be started.
    jobs = max(1, min(jobs, len(groups(todo, jobs))))
    with _engine(engine, jobs, address) as options:
        while todo:
            before = len(todo)
            told_of = len(keys) - len(todo)
            work = groups(todo, jobs)
            try:
                with _watched(store, todo, keys, told, engine):
                    for finished in _parallel(work, worker or run_group, folder, options):
                        told_of += len(finished)
                        if engine == "local":
                            told(told_of, len(keys))
            except CosteerError:
                raise
            except Exception as error:
                if not _worker_died(error):
                    raise
            todo = [(key, cell) for key, cell in todo if not store.has(key)]
            told(len(keys) - len(todo), len(keys))
            fruitless = fruitless + 1 if len(todo) == before else 0
            if todo and fruitless >= ATTEMPTS:
                raise EnvironmentFailure(
                    "sweep",
                    f"workers keep dying before they finish a cell; {len(todo)} are left",
                    got=f"{jobs} jobs",
                    todo="Use fewer jobs (memory?), then run the same command again",
                )
    described = {
        "name": study.name,
        "about": study.about,
        "measure": study.measure,
        "varied": list(study.varied),
        "axes": {name: list(values) for name, values in study.axes.items()},
    }
    return store.finish(described, keys)


@contextlib.contextmanager
def _watched(
    store: Store,
    todo: Sequence[tuple[str, Cell]],
    keys: Sequence[str],
    told: Callable[[int, int], None],
    engine: Engine,
) -> Iterator[None]:
    """Tell what is in the store now and then: a cluster's back end answers when all is done."""
    if engine == "local":
        yield
        return
    over = threading.Event()

    def watch() -> None:
        left = [key for key, _ in todo]
        while not over.wait(WATCH_S):
            left = [key for key in left if not store.has(key)]
            told(len(keys) - len(left), len(keys))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def key_of(cell: Cell) -> str:
    """The hash of all that the cell's result depends on: its settings and its case, the files of
    the user's own that they name, models included, and the code that computes it."""
    content = {**cell.settings(), "code": code()}
    for name in ("network", "device", "cloud"):
        if found := _own_files(str(content[name])):
            content[name] = {"name": content[name], "files": [digest(path) for path in found]}
    for name in ("bundle", "cloud_model"):
        content[name] = {"name": content[name], "content": content_of(content[name])}
    if cell.recorded:
        content["recorded"] = digest(file_of(cell))
    return content_key(content)


def _own_files(name: str) -> tuple[Path, ...]:
    """What the value of an axis names of the user's own: a profile's file, recordings."""
    if is_trace(name):
        return files(name)
    own = Path(name)
    if not own.is_file():
        return ()
    # A profile may name recordings, relative to itself.
    tables = toml(own).values() if own.suffix == ".toml" else ()
    named = [table.get("trace") for table in tables if isinstance(table, dict)]
    return own, *(own.parent / str(trace) for trace in named if trace)


def groups(cells: Sequence[tuple[str, Cell]], jobs: int) -> list[Group]:
    """Cells by the answer they share, in order; one with many cells is not cut."""
    found: dict[tuple[Any, ...], Group] = {}
    for key, cell in cells:
        found.setdefault(answer_of(cell), []).append((key, cell))
    return list(found.values())


def answer_of(cell: Cell) -> tuple[Any, ...]:
    """What the cell's tokens depend on."""
    sampled = cell.seed if cell.temperature > 0 else None
    return (
        *(cell.measure, cell.bundle, cell.cloud_model, cell.method, cell.gain, cell.codec),
        *(cell.schedule, cell.case, cell.max_tokens, cell.temperature, cell.top_p, sampled),
    )


_measures: dict[str, Any] = {}


def run_group(group: Group, folder: str) -> list[str]:
    """The real worker: what it opens stays open for the next group in the same process."""
    from scenarios.cells.measures import Measures

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if folder not in _measures:
        _measures.clear()
        _measures[folder] = Measures(Path(folder))
    return put(group, _measures[folder].run([cell for _, cell in group]), folder)


def put(group: Group, results: Iterable[dict[str, Any]], folder: str) -> list[str]:
    """Keep each result as soon as it is there; their keys."""
    store = Store(Path(folder))
    for (key, _), result in zip(group, results, strict=True):
        store.put(key, result)
    return [key for key, _ in group]


def _check_jobs(jobs: int, address: str) -> None:
    # A cluster elsewhere has as many processors as it has.
    most = max(MOST_JOBS, 4 * (os.cpu_count() or 1))
    if jobs < 1 or (jobs > most and not address):
        raise UsageError(
            "--jobs",
            "not a number of workers for one machine" if jobs > most else "not a number of workers",
            got=jobs,
            allowed=f"1 to {most}" if not address else "1 or more",
            todo="Use about as many as there are processors",
        )


def _parallel(
    work: list[Group], worker: Worker, folder: Path, options: dict[str, Any]
) -> Iterator[list[str]]:
    from joblib import Parallel, delayed

    pool = Parallel(**options)
    yield from pool(delayed(worker)(group, str(folder)) for group in work)


@contextlib.contextmanager
def _engine(engine: Engine, jobs: int, address: str) -> Iterator[dict[str, Any]]:
    """joblib's options for the engine; a cluster is connected meanwhile."""
    unordered = {"n_jobs": jobs, "return_as": "generator_unordered", "batch_size": 1}
    if engine == "local":
        yield unordered | ({"backend": "loky", "pre_dispatch": "all"} if jobs > 1 else {})
        return
    import joblib

    connect = {"ray": _ray, "dask": _dask}[engine]
    with connect(jobs, address) as backend, joblib.parallel_config(**backend):
        # These back ends answer when all is done; progress is read from the store.
        yield {"n_jobs": jobs, "batch_size": 1, "return_as": "list"}


@contextlib.contextmanager
def _ray(jobs: int, address: str) -> Iterator[dict[str, Any]]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ModuleNotFoundError as error:
        raise _missing("ray") from error
    register_ray()
    try:
        own = {"num_cpus": jobs, "include_dashboard": False} if not address else {}
        ray.init(address=address or None, log_to_driver=False, logging_level="error", **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EnvironmentFailure(
            "--address", f"no Ray cluster answers: {error}", got=address
        ) from error
    try:
        yield {"backend": "ray"}
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _dask(jobs: int, address: str) -> Iterator[dict[str, Any]]:
    try:
        from distributed import Client, LocalCluster
    except ModuleNotFoundError as error:
        raise _missing("dask") from error
    try:
        cluster = (
            None
            if address
            else LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
        )
        client = Client(address or cluster, timeout="10s")
    except (OSError, ValueError) as error:
        raise EnvironmentFailure(
            "--address", f"no Dask scheduler answers: {error}", got=address
        ) from error
    try:
        yield {"backend": "dask"}
    finally:
        client.close()
        if cluster is not None:
            cluster.close()


def _missing(engine: str) -> EnvironmentFailure:
    return EnvironmentFailure(
        f"--engine {engine}", "it is not installed", todo='pip install "costeer-edge[cluster]"'
    )


def _worker_died(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        names & {"TerminatedWorkerError", "BrokenProcessPool", "KilledWorker", "RayActorError"}
        | (names & {"WorkerCrashedError", "ActorDiedError"})
    )
