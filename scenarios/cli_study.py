"""The verbs `sweep`, `report`, `table` and `compare`."""

from __future__ import annotations

import json
from pathlib import Path

import typer

LIBRARY = Path(__file__).resolve().parent / "library"


def sweep(
    study: str = typer.Argument(help="Study file (TOML), or the name of one that ships."),
    out: Path = typer.Option(..., "--out", help="Folder for the results; what is there is kept."),
    settings: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Change the study, as in case.limit=8."
    ),
    jobs: int = typer.Option(1, "--jobs", min=1, help="Workers."),
    engine: str = typer.Option("local", "--engine", help="local, ray or dask."),
    address: str = typer.Option("", "--address", help="Of a running cluster; empty: one here."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object as the last line."),
) -> None:
    """Run all cells of a study; stopped, it goes on where it was."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    from edge_runtime.errors import UsageError, did_you_mean
    from edge_runtime.files import check_writable
    from scenarios.spec import read_scenario
    from scenarios.sweep import sweep as run

    if engine not in ("local", "ray", "dask"):
        raise UsageError(
            "--engine",
            "no such engine",
            got=engine,
            todo=did_you_mean(engine, ["local", "ray", "dask"]),
        )
    plan = read_scenario(study_path(study), settings)
    check_writable(out, "--out")
    columns = (TextColumn(plan.name), BarColumn(), MofNCompleteColumn(), Left())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(plan))
        path = run(
            plan,
            out,
            jobs=jobs,
            engine=engine,  # type: ignore[arg-type]  # checked above
            address=address,
            told=lambda done, total: bar.update(task, completed=done, total=total),
        )
    result = {"study": plan.name, "cells": len(plan), "results": str(path)}
    if as_json:
        print(json.dumps(result))
    else:
        print(f"{plan.name}: {len(plan)} cells in {path}. Next: costeer report {out}")


def report(
    folder: Path = typer.Argument(help="Folder of a finished study."),
    quality: Path = typer.Option(
        None, "--quality", help="What costeer evaluate --json printed, to set beside the times."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object as the last line."),
) -> None:
    """Make a study's page and its figures."""
    from rich.console import Console

    from scenarios.report import write_report

    stderr = Console(stderr=True)
    with stderr.status("reading the results") as status:
        made = write_report(folder, status.update, quality=quality)
    if as_json:
        paths = [str(path) for path in made.figures]
        trace = str(made.trace) if made.trace else None
        print(json.dumps({"page": str(made.page), "figures": paths, "trace": trace}))
    else:
        print(f"Page: {made.page}")


def table(
    folder: Path = typer.Argument(help="Folder of a finished study."),
    rows: str = typer.Option(..., "--rows", help="Axes, with commas: a line for each value."),
    show: str = typer.Option(..., "--show", help="Figures, with commas, as in gap,token_ms."),
    columns: str = typer.Option("", "--columns", help="Axes: a column for each value."),
    where: list[str] = typer.Option(
        [], "--where", metavar="AXIS=VALUE", help="Only these cells, as in network=lte."
    ),
    against: str = typer.Option(
        "", "--against", metavar="AXIS=VALUE", help="Also subtract this arm, pair by pair."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object as the last line."),
) -> None:
    """Print a finished study's figures as a Markdown table, with 90 % intervals."""
    from edge_runtime.transcript import finite
    from scenarios.figures.table import only
    from scenarios.figures.table import table as make
    from scenarios.store import Store

    found = make(
        only(Store(folder).rows(), where),
        down=_names(rows),
        across=_names(columns),
        show=_names(show),
        against=against,
    )
    print(found.markdown())
    over = found.samples or "one sample, so there are none"
    typer.echo(f"90 % intervals over {over}. {found.warning}".rstrip(), err=True)
    if as_json:
        answer = finite({"samples": found.samples, "cells": found.cells})
        print(json.dumps(answer, allow_nan=False))


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def compare(
    a: Path = typer.Argument(help="Folder of the study before."),
    b: Path = typer.Argument(help="Folder of the study after."),
    tolerance: float = typer.Option(0.02, "--tolerance", min=0.0, help="Relative change allowed."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object as the last line."),
) -> None:
    """Compare two studies; exit code 4 when a figure got worse beyond the tolerance."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from edge_runtime.errors import FELL_SHORT
    from edge_runtime.transcript import finite
    from scenarios.compare import compare as run
    from scenarios.store import Store

    changes = run(Store(a), Store(b))
    table = Table()
    for name in ("figure", "before", "after", "change", "90 % interval", "cells", ""):
        table.add_column(name, justify="left" if name in ("figure", "") else "right")
    for change in changes:
        table.add_row(
            change.figure,
            f"{change.a:.4g}",
            f"{change.b:.4g}",
            f"{change.change:+.1%}",
            f"{change.low:+.1%} to {change.high:+.1%}",
            str(change.cells),
            change.verdict(tolerance),
        )
    Console(stderr=as_json).print(table)
    worse = [change.figure for change in changes if change.verdict(tolerance) == "worse"]
    if as_json:
        rows = [{**asdict(c), "verdict": c.verdict(tolerance)} for c in changes]
        print(json.dumps(finite({"worse": worse, "figures": rows}), allow_nan=False))
    if worse:
        raise typer.Exit(FELL_SHORT)


def study_path(name: str) -> Path:
    """A study's file: the user's own, or one that ships, by its name."""
    from edge_runtime.errors import UsageError, did_you_mean

    own = Path(name)
    if own.suffix == ".toml" or own.is_file():
        return own
    shipped = LIBRARY / f"{name}.toml"
    if shipped.is_file():
        return shipped
    known = [path.stem for path in LIBRARY.glob("*.toml")]
    raise UsageError("study", "no such study", got=name, todo=did_you_mean(name, known))
