"""`costeer demo`: the whole path once, for real, on this machine.

Small model to the device, cloud model behind a real server on loopback, one question with a
private note: the cloud alone and the steered answer side by side, what they cost, the same answer
over simulated links, and a page that shows it all.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from edge_runtime.files import check_writable
from scenarios.cli_study import study_path
from scenarios.models.opened import Models
from scenarios.run import Machines, run
from scenarios.spec import Cell, read_scenario


def demo(
    example: str = typer.Option(
        "dinner", "--example", help="Scenario with a query and a private note: a name or a file."
    ),
    out: Path = typer.Option(Path("demo-out"), "--out", help="Folder for the page."),
    settings: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Change the example, as in answer.gain=1.5."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object as the last line."),
) -> None:
    """Answer a question with a private note, cloud alone and steered, on real weights."""
    console = Console(stderr=as_json)
    cells = list(read_scenario(study_path(example), settings).cells())
    check_writable(out, "--out")
    result = show(cells, console)
    page = out / "demo.html"
    from edge_runtime.transcript import finite
    from scenarios.pages.page import write_page

    write_page(page, result)
    console.print(f"\nPage: [bold]{page}[/bold]")
    if as_json:
        print(json.dumps(finite({**result, "page": str(page)}), allow_nan=False))


def show(cells: list[Cell], console: Console) -> dict[str, Any]:
    """Run the demo of `cells` (one per link) on `console`; all that the page needs."""
    from scenarios.demo import panes
    from scenarios.demo.recorded import Recorded
    from scenarios.demo.server_process import ServerProcess
    from scenarios.models.opened import LocalModels, export_if_needed

    cell = cells[0]
    console.print(f"[bold]Question:[/bold] {cell.case.query}")
    console.print(f"[bold]Only on the device:[/bold] [yellow]{cell.case.context}[/yellow]\n")
    began = time.monotonic()
    bundle = export_if_needed(cell.bundle)
    with tempfile.TemporaryDirectory(prefix="costeer-") as private:
        tape = Path(private) / "answer.tape"
        with ServerProcess(cell.cloud_model) as server:
            with _waiting(console) as progress:
                starting = f"starting the cloud server ({cell.cloud_model})"
                task = progress.add_task(starting, total=None)
                server.wait(lambda seconds: progress.update(task))
            answers = live(cell, str(bundle), server.url, tape, console)
        console.print(panes.figures(answers))
        models: Models = Recorded.open(bundle, tape) if tape.is_file() else LocalModels()
        simulated = over_links(cells, answers, models, console)
    console.print(panes.links(simulated))
    return {
        "query": cell.case.query,
        "context": cell.case.context,
        "answers": answers,
        "simulated": simulated,
        "simulated_note": (
            "Simulated: the very same schedule, rule and frames in virtual time, from a recording "
            "of the live answer. Device and cloud are charged what they took live here; the "
            "links are published profiles."
        ),
        "about": (
            f"Device: {cell.bundle} ({bundle.name}), two branches in one INT8 pass. Cloud: "
            f"{cell.cloud_model} in float32 on this machine. Codec {cell.codec}, schedule "
            f"{cell.schedule}. Up and down of a loopback round trip are an estimate, their sum is "
            f"measured. Made in {time.monotonic() - began:.0f} s."
        ),
    }


def live(cell: Cell, bundle: str, url: str, tape: Path, console: Console) -> list[dict[str, Any]]:
    """The cloud alone, then the steered answer, each by a device process of its own."""
    from scenarios.demo.device_process import Job, events
    from scenarios.demo.panes import Panes

    steered = Job(
        url=url,
        query=cell.case.query,
        context=cell.case.context,
        method=cell.method,
        gain=cell.gain,
        bundle=bundle,
        codec=cell.codec,
        schedule=cell.schedule,
        max_tokens=cell.max_tokens,
        tape=str(tape),
    )
    alone = replace(steered, method="cloud-only", gain=None, tape="")
    jobs = [("The cloud alone", alone), (_label(cell), steered)]
    answers = []
    with Panes(console, [label for label, _ in jobs]) as panes:
        for pane, (label, job) in enumerate(jobs):
            panes.push(pane, "")
            for event in events(job):
                if event["kind"] == "token":
                    panes.push(pane, event["text"])
                elif event["kind"] == "done":
                    answer = {
                        "label": label,
                        "steered": pane > 0,
                        "row": event["row"],
                        "tokens": event["tokens"],
                    }
                    answers.append(answer)
                    panes.replace(pane, answer["tokens"])
    return answers


def over_links(
    cells: list[Cell], answers: list[dict[str, Any]], models: Models, console: Console
) -> list[dict[str, Any]]:
    """The steered answer again over each cell's simulated link."""
    runs = []
    with _waiting(console) as progress:
        task = progress.add_task("simulating the links", total=len(cells))
        machines = measured(*answers)
        for cell, result in zip(cells, run(cells, models, machines=machines), strict=True):
            progress.update(task, advance=1, description=f"simulated {cell.network}")
            runs.append(
                {
                    "label": cell.network,
                    "row": result.row,
                    "tokens": result.tokens,
                    "same": result.row["tokens"] == answers[-1]["row"]["tokens"],
                }
            )
    return runs


def measured(alone: dict[str, Any], steered: dict[str, Any]) -> Machines:
    """Device and cloud as fast as they were in two live answers on this machine.

    The cloud's time is read from the answer without a device model: in the other one it is partly
    hidden behind the device's own step.
    """
    device, first = steered["row"]["ms_per_token"], steered["tokens"][0]["parts"]
    cloud = alone["row"]["ms_per_token"]["cloud"]
    return Machines(
        DeviceCosts(
            step_ms=device["device"],
            steer_ms=device["steer"],
            prefill_ms=max(0.0, first["device"] - device["device"]),
            origin="measured",
        ),
        CloudCosts(step_ms=cloud, origin="measured"),
    )


def _label(cell: Cell) -> str:
    gain = "" if cell.gain is None else f", gain {cell.gain:g}"
    return f"Steered ({cell.method}{gain})"


def _waiting(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
