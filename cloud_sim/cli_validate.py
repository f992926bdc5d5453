"""`costeer validate-sim`: the simulator against real sockets, as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from edge_runtime.errors import UsageError
from edge_runtime.files import check_writable, write_whole

if TYPE_CHECKING:
    from cloud_sim.sim.exchange import Host


def validate_sim(
    rounds: Annotated[int, typer.Option(min=1, help="Real runs of each scenario.")] = 3,
    trace_up: Annotated[
        Path | None, typer.Option(help="A mahimahi uplink; default: a made one.")
    ] = None,
    trace_down: Annotated[Path | None, typer.Option(help="A mahimahi downlink.")] = None,
    only: Annotated[int | None, typer.Option(min=1, help="The n-th scenario alone.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the table here (Markdown).")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
) -> None:
    """Run five scenarios through SimPy and over real loopback sockets, and compare."""
    from cloud_sim.net.made_traces import convert, markov
    from cloud_sim.net.streams import stream
    from cloud_sim.net.traces import read
    from cloud_sim.sim.validate import compare, scenarios
    from cloud_sim.sim.validate import host as measure_host

    if (trace_up is None) != (trace_down is None):
        raise UsageError(
            "validate-sim", "a trace needs both directions", allowed="--trace-up, --trace-down"
        )
    if trace_up is not None and trace_down is not None:
        trace = (read(trace_up), read(trace_down))
        named = f"{trace_up.name}, {trace_down.name}"
    else:
        up, down = (
            convert(markov(means, 4000, 120_000, stream(seed, "trace", name)), "mahimahi")
            for name, means in (("up", [0.5, 2, 5]), ("down", [2, 8, 20]))
        )
        trace, named = (up, down), "made by a Markov chain"
    chosen = scenarios(trace, seed)
    if only is not None:
        if only > len(chosen):
            raise UsageError("--only", "no such scenario", got=only, allowed=f"1 to {len(chosen)}")
        chosen = [chosen[only - 1]]
    if out is not None:
        if out.is_dir():
            raise UsageError("--out", "it is a folder, not a file", got=out)
        check_writable(out.parent, "--out")
    progress = Console(stderr=True)
    with progress.status("measuring the stack without a link"):
        host = measure_host(rounds)
    rows = []
    for scenario in chosen:
        with progress.status(f"{scenario.name}: {rounds} real runs"):
            rows.append(compare(scenario, host, rounds).row())
    text = table(rows, host, rounds, named)
    if out is not None:
        write_whole(out, page(text, out))
        progress.print(f"wrote {out}")
    if as_json:
        print(json.dumps({"host": asdict(host), "trace": named, "rounds": rounds, "rows": rows}))
    else:
        sys.stdout.write(text)


BEGIN, END = "<!-- table: written by costeer validate-sim -->", "<!-- end of table -->"


def page(text: str, out: Path) -> str:
    """`text` in the place of the last table of the file `out`, if it has one."""
    old = out.read_text(encoding="utf-8") if out.is_file() else ""
    if BEGIN in old and END in old:
        return old[: old.index(BEGIN)] + f"{BEGIN}\n{text}{END}" + old[old.index(END) + len(END) :]
    return f"# The simulator against real sockets\n\n{BEGIN}\n{text}{END}\n"


def table(rows: Sequence[dict[str, Any]], host: Host, rounds: int, trace: str) -> str:
    """The comparison as Markdown."""
    lines = [
        f"Median of {rounds} real runs. The stack without a link takes {host.token_ms:.2f} ms per "
        f"token and {host.connect_ms:.1f} ms to connect (measured, charged as `host`). "
        f"Trace: {trace}.",
        "",
        "| scenario | figure | real ms | simulated ms | error | error without host |",
        "|---|---|---|---|---|---|",
    ]
    names = {
        "ttft_ms": "time to first token",
        "token_ms_p50": "per token, p50",
        "token_ms_p95": "per token, p95",
    }
    for row in rows:
        for key, name in names.items():
            lines.append(
                f"| {row['scenario']} | {name} | {row['real'][key]:.1f} "
                f"| {row['simulated'][key]:.1f} | {row[f'{key}_error']:+.1%} "
                f"| {row['without_host'][f'{key}_error']:+.1%} |"
            )
        same = "same tokens" if row["same_tokens"] else "OTHER TOKENS"
        sent = int(row["real"]["uplink_bytes"]), int(row["real"]["downlink_bytes"])
        lines.append(
            f"| {row['scenario']} | bytes up / down | {sent[0]} / {sent[1]} "
            f"| {same} | {row['bytes_error']} B | |"
        )
    return "\n".join(lines) + "\n"
