"""The verb `simulate`."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def simulate(
    scenario: str = typer.Argument(help="Scenario file (TOML), or the name of one that ships."),
    settings: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Change the scenario, as in answer.method=costeer."
    ),
    schedule: str = typer.Option(
        "", help="lockstep, runahead, draft or auto, instead of the scenario's own."
    ),
    window: int = typer.Option(0, help="runahead: how far; 0: adapts."),
    branches: int = typer.Option(0, help="runahead: continuations at once."),
    draft_tokens: int = typer.Option(0, help="draft: tokens at a time; 0: adapts."),
    gate: str = typer.Option("none", help="none, latch or reopen."),
    token_deadline_ms: float = typer.Option(0.0, help="When a token is late (with --on-late)."),
    on_late: str = typer.Option("wait", help="Then: wait, device or cloud."),
    tapes: Path | None = typer.Option(
        None, help="Folder of recorded answers: replayed and added to. As private as the note."
    ),
    offline: bool = typer.Option(
        False, "--offline", help="With --tapes: no model is opened, what is not there is refused."
    ),
    out: Path | None = typer.Option(None, "--out", help="Folder for rows.json."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object as the last line."),
) -> None:
    """Run a scenario in virtual time: one row for each network profile (and each other axis)."""
    from rich.console import Console
    from rich.progress import track

    from edge_runtime.assembly import Plan
    from edge_runtime.errors import UsageError
    from edge_runtime.files import check_writable, write_whole
    from edge_runtime.transcript import finite
    from scenarios.cli_study import study_path
    from scenarios.models.opened import LocalModels
    from scenarios.names import check_names
    from scenarios.plans import text_of
    from scenarios.run import run
    from scenarios.spec import read_scenario

    asked = Plan(
        schedule or "lockstep",
        window,
        branches,
        0,
        draft_tokens,
        gate,
        token_deadline_ms,
        on_late,  # type: ignore[arg-type]  # Deadline checks it
    )
    if schedule or asked != Plan():
        if not schedule:
            raise UsageError(
                "simulate", "these options need a schedule to belong to", todo="Set --schedule"
            )
        asked.check()
        settings = [*settings, f'answer.schedule="{text_of(asked)}"']
    plan = read_scenario(study_path(scenario), settings)
    if plan.measure != "time":
        raise UsageError(
            f"simulate {plan.name}",
            "this study does not measure times of single answers",
            got=plan.measure,
            todo="Run it with costeer sweep",
        )
    check_names(plan)
    if offline and tapes is None:
        raise UsageError("--offline", "there is nothing to replay", todo="Set --tapes")
    if out is not None:
        check_writable(out, "--out")
    stderr = Console(stderr=True)
    cells = list(plan.cells())
    models = LocalModels(tapes, lambda what: stderr.print(f"[dim]{what}[/dim]"), offline=offline)
    results = run(cells, models)
    rows = [
        result.row
        for result in track(
            results, description=plan.name, total=len(cells), console=stderr, transient=True
        )
    ]
    models.keep()
    answer = finite({"scenario": plan.name, "rows": rows})
    if out is not None:
        text = json.dumps(answer, indent=1, allow_nan=False)
        write_whole(out / "rows.json", text + "\n", private=True)
    Console(stderr=as_json).print(table(rows, plan.varied))
    if as_json:
        print(json.dumps(answer, allow_nan=False))


def table(rows: list[dict[str, object]], varied: tuple[str, ...]) -> object:
    """Rows as a table: what varies, then the times and bytes."""
    from rich.table import Table

    from scenarios.figures.arms import none

    shown = {"network": "profile", "device": "device_profile", "cloud": "cloud_profile"}
    axes = [shown.get(name, name) for name in varied if name != "network"]
    axes = ["profile", *(name for name in axes if rows and name in rows[0])]
    columns = {
        "ttft_ms": "first token, ms",
        "token_ms_p50": "per token p50",
        "token_ms_p95": "p95",
        "tokens_per_s": "tokens/s",
        "uplink_bytes": "bytes up",
        "downlink_bytes": "bytes down",
    }
    table = Table()
    for axis in axes:
        table.add_column(axis, overflow="fold")
    for title in columns.values():
        table.add_column(title, justify="right")
    for row in rows:
        values = [row[name] for name in columns]
        table.add_row(
            *(str(row[axis]) for axis in axes),
            *("–" if none(v) else f"{v:.1f}" if isinstance(v, float) else str(v) for v in values),
        )
    return table
