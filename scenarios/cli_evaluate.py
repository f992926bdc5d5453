"""`costeer evaluate`: how good answers are, on a data set, without a network."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from edge_runtime.errors import UsageError
from edge_runtime.transcript import finite
from edge_runtime.weights import cache_dir
from scenarios.datasets import read
from scenarios.evaluate import Evaluation, Plan, Result
from scenarios.evaluate import chosen as best_of
from scenarios.evaluate import evaluate as run
from scenarios.fit import fit as fitted_on
from scenarios.methods import parse_all, score
from scenarios.metrics import mean
from scenarios.models.judge import Judge
from scenarios.models.pair import Align, Lengths, NotesHow, open_pair
from scenarios.models.predictions import Store

JUDGE_KEY = "COSTEER_JUDGE_KEY"
"""Environment variable: the bearer token of the judge's server, if it wants one."""

DEFAULT_METHODS = "cloud-only,light,costeer,names,tempered,blend,upload"


def evaluate(
    dataset: Annotated[
        str, typer.Argument(help="A data set's name, or a .jsonl file of your own notes.")
    ],
    device: Annotated[
        str, typer.Option(help="A bundle's folder; float:MODEL for the unquantized model.")
    ],
    cloud_model: Annotated[
        str, typer.Option(help="The cloud's model: a folder, a .gguf file, or a hub id.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="The data set's file or folder, if it is not shipped.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods, with commas: NAME, NAME@GAIN, NAME:FIELD=VALUE.")
    ] = DEFAULT_METHODS,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first N cases only.")] = None,
    generate: Annotated[
        int, typer.Option(min=0, help="Also write greedy answers of at most N tokens.")
    ] = 0,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit gain and mixture on half, report on the other.")
    ] = False,
    choose: Annotated[
        float | None,
        typer.Option(
            help="Also choose among each case's steered answers, on the device: nats a name told."
        ),
    ] = None,
    codec: Annotated[str, typer.Option(help="What crosses the wire in answers.")] = "full",
    note_tokens: Annotated[int, typer.Option(min=1, help="Cut longer notes.")] = 1000,
    reference_tokens: Annotated[int, typer.Option(min=1, help="Cut longer references.")] = 150,
    cloud_dtype: Annotated[
        str, typer.Option(help="Number format of the cloud model.")
    ] = "bfloat16",
    align: Annotated[
        Align, typer.Option(help="For two vocabularies: map (tokens of both) or byte.")
    ] = "none",
    notes: Annotated[
        NotesHow, typer.Option(help="A case's notes: together, or apart, each with its delta.")
    ] = "together",
    tuned: Annotated[
        str, typer.Option(help="A tuned form of the device's model, for the method proxy.")
    ] = "",
    weights: Annotated[str, typer.Option(help="Of notes apart, with commas; 1 each.")] = "",
    cache: Annotated[
        Path | None, typer.Option(help="Where predictions and answers are kept.")
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            help="An OpenAI-compatible server that grades the answers (it sees the notes!)."
        ),
    ] = "",
    judge_model: Annotated[str, typer.Option(help="The model that the judge's server runs.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object, keyed by method.")
    ] = False,
) -> None:
    """Measure answer quality on a data set: likelihood of references, and answers themselves."""
    rules = parse_all(methods)
    if judge and not generate:
        raise UsageError("evaluate", "a judge needs answers to grade", todo="Add --generate N")
    cases = read(dataset, data, limit)
    lengths = Lengths(note_tokens, reference_tokens)
    pair = open_pair(
        device,
        cloud_model,
        cloud_dtype=cloud_dtype,
        max_length=2 * note_tokens + reference_tokens + generate + 512,
        align=align,
        notes=notes,
        weights=_numbers(weights),
        tuned=tuned,
    )
    store = Store(cache or cache_dir() / "evaluate")
    errors = Console(stderr=True)
    plan = Plan(rules, lengths, generate, codec)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=errors
    ) as bar:
        task = bar.add_task("", total=None)
        result = run(
            cases,
            pair,
            plan,
            store,
            lambda what, done, of: bar.update(task, description=what, completed=done, total=of),
        )
    if choose is not None:
        result.results["chosen"] = best_of(result, choose)
    rows: dict[str, Any] = {name: result.row(name) for name in result.results}
    if fit:
        rows["fitted"] = _fitted(result)
    if judge:
        server = Judge(judge, judge_model, os.environ.get(JUDGE_KEY, ""))
        for name, found in result.results.items():
            pairs = zip(cases, found.answers, strict=False)
            rows[name]["judge"] = mean([server.grade(c, a.text) for c, a in pairs]).dict()
    errors.print(_table(rows))
    if as_json:
        print(json.dumps(finite(rows), allow_nan=False))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError("--weights", "not numbers", got=text, allowed="as in 1,0.5") from None


def _fitted(result: Evaluation) -> dict[str, Any]:
    if not result.kept:
        raise UsageError("evaluate", "without reference answers there is nothing to fit")
    found = fitted_on(result.kept)
    # What it was chosen on says nothing of other cases: its row is of those it never saw.
    kept = [result.kept[at] for at in found.unseen]
    fitted = Result(found.method, [score(found.method, one) for one in kept])
    unseen = Evaluation(
        [result.cases[at] for at in found.unseen], kept, {"fitted": fitted}, result.level
    )
    numbers = {k: v for k, v in dataclasses.asdict(found.method).items() if v is not None}
    return unseen.row("fitted") | {
        "method": numbers,
        "gap_on_fitted_half": found.fitted.dict(),
        "gap_expected": found.expected.dict(),
    }


_COLUMNS = (
    ("gap captured", "gap_captured", 100, "%"),
    ("log p with note", "upload_logp", 1, ""),
    ("without", "cloud_logp", 1, ""),
    ("facts", "facts", 100, "%"),
    ("ROUGE-1", "rouge1", 1, ""),
    ("judge", "judge", 1, ""),
)


def _table(rows: dict[str, Any]) -> Table:
    table = Table(title="Means with 90 % bootstrap intervals over cases", title_justify="left")
    table.add_column("method")
    present = [c for c in _COLUMNS if any(c[1] in row for row in rows.values())]
    for title, *_ in present:
        table.add_column(title, justify="right")
    table.add_column("KL to upload", justify="right")
    for name, row in rows.items():
        cells = [_cell(row.get(key), scale, unit) for _, key, scale, unit in present]
        cells.append(f"{row['kl_upload']:.3f}" if "kl_upload" in row else "")
        table.add_row(name, *cells)
    return table


def _cell(figure: dict[str, float] | None, scale: int, unit: str) -> str:
    if figure is None or math.isnan(figure["value"]):
        return ""
    digits = 0 if unit else 3
    # + 0.0: what is rounded to nothing has no sign.
    value, low, high = (
        f"{round(figure[k] * scale, digits) + 0.0:.{digits}f}" for k in ("value", "low", "high")
    )
    return f"{value}{unit} [{low}, {high}]"
