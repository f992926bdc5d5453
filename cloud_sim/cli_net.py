"""`costeer profiles`, `trace` and `shape`."""

from __future__ import annotations

import asyncio
import json
import math
import re
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cloud_sim.net import traces
from cloud_sim.net.catalogue import Network, names, network
from cloud_sim.net.links import Link
from cloud_sim.net.made_traces import convert, markov
from cloud_sim.net.schema import ProfileReport
from cloud_sim.net.streams import stream
from edge_runtime.checked import read_json
from edge_runtime.errors import UsageError
from edge_runtime.files import write_whole

_STDOUT, _STDERR = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def profiles(
    device_from: Annotated[
        Path | None,
        typer.Option("--device-from", help="Make a device profile from costeer profile --json."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write it (NAME.toml).")] = None,
    as_json: Json = False,
) -> None:
    """List the network, device and cloud profiles with their sources, or make a device profile."""
    from cloud_sim.sim.machines import cloud, device, device_toml

    if device_from is not None:
        if out is None or out.suffix != ".toml":
            raise UsageError("profiles", "a made profile needs a file", allowed="--out NAME.toml")
        write_whole(out, device_toml(out.stem, read_json(device_from, ProfileReport)))
        _STDERR.print(f"wrote {out}")
        if as_json:
            print(json.dumps({"path": str(out)}))
        return
    if out is not None:
        raise UsageError("--out", "without --device-from there is nothing to write", got=out)
    found: dict[str, list[dict[str, Any]]] = {
        "networks": [_network_row(network(name)) for name in names("networks")],
        "devices": [_device_row(device(name)) for name in names("devices")],
        "clouds": [_cloud_row(cloud(name)) for name in names("clouds")],
    }
    if as_json:
        print(json.dumps(found))
        return
    for kind, rows in found.items():
        # Sources are long: they follow the table, one line a profile.
        shown = [column for column in rows[0] if column != "source"]
        table = Table(title=kind, title_justify="left", title_style="bold", box=None)
        for column in shown:
            table.add_column(column, justify="left" if column in ("name", "origin") else "right")
        for row in rows:
            table.add_row(*(_cell(row[column]) for column in shown))
        _STDOUT.print(table)
        for row in rows:
            _STDOUT.print(f"  {row['name']}: {row['source']}", style="dim", highlight=False)
        _STDOUT.print()


def _cell(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _network_row(profile: Network) -> dict[str, Any]:
    file = profile.file
    return {
        "name": profile.name,
        "rtt ms": file.round_trip.ms or file.round_trip.trace,
        "up Mbit/s": file.uplink.mbps or file.uplink.trace,
        "down Mbit/s": file.downlink.mbps or file.downlink.trace,
        "origin": profile.origin,
        "source": file.round_trip.source,
    }


def _device_row(profile: Any) -> dict[str, Any]:
    file, costs = profile.file, profile.costs(weights_mb=137.5)
    source = file.costs.source if file.costs else file.decode[0].source
    return {
        "name": profile.name,
        "two-row step ms, 137.5 MB": round(costs.step_ms, 2),
        "prompt ms/token": round(costs.prefill_ms_per_token, 3),
        "origin": costs.origin,
        "source": source,
    }


def _cloud_row(profile: Any) -> dict[str, Any]:
    line = profile.roofline()
    return {
        "name": profile.name,
        "step ms": round(line.step_ms(1), 2),
        "ms/row more": round(line.ms_per_row, 3),
        "prompt ms/token": round(line.prefill_ms_per_token, 4),
        "origin": profile.file.steps.origin,
        "source": profile.file.steps.source,
    }


trace = typer.Typer(no_args_is_help=True, help="Look at, convert or make link traces.")


class _Form(StrEnum):
    mahimahi = "mahimahi"
    rate = "rate"
    rtt = "rtt"


@trace.command("info")
def trace_info(
    file: Annotated[Path, typer.Argument(help="mahimahi (also .gz), or CSV of rates or RTTs.")],
    form: Annotated[_Form | None, typer.Option(help="Default: told from the content.")] = None,
    as_json: Json = False,
) -> None:
    """What a trace holds: length, mean and spread of its rate or round trip."""
    facts = traces.read(file, form.value if form else None).info()
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        shown = f"{value:,.4g}" if isinstance(value, float) else value
        _STDOUT.print(f"{name:>16}  {shown}", highlight=False)


@trace.command("convert")
def trace_convert(
    file: Annotated[Path, typer.Argument(help="The trace to read.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    to: Annotated[_Form, typer.Option(help="The form to write.")],
    step_ms: Annotated[float, typer.Option(min=1, help="Width of a rate's steps.")] = 100.0,
    as_json: Json = False,
) -> None:
    """Write a trace in another form, carrying the same bytes up to one packet a loop."""
    source = traces.read(file)
    if out.exists() and out.samefile(file):
        raise UsageError("OUT", "this is the trace to read", got=out, todo="Name another file")
    converted = convert(source, to.value, step_ms=step_ms)
    write_whole(out, converted.text())
    _said(out, converted, as_json)


@trace.command("make")
def trace_make(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    mbps: Annotated[str, typer.Option(help="Mean rates of the states, low to high.")] = "1,5,20",
    rtt_ms: Annotated[
        str, typer.Option(help="With --form rtt: mean round trips instead, low to high.")
    ] = "20,50,200",
    stay_s: Annotated[float, typer.Option(min=0.01, help="Mean time in a state.")] = 5.0,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=604_800, help="Length before it loops.")
    ] = 120.0,
    spread: Annotated[
        float, typer.Option(min=0, max=100, help="Relative deviation in a state.")
    ] = 0.2,
    form: Annotated[_Form, typer.Option(help="mahimahi, rate or rtt.")] = _Form.mahimahi,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Make a trace from a Markov chain over mean rates, or over mean round trips."""
    if form is _Form.rtt:
        means = _means("--rtt-ms", "round trips", rtt_ms)
    else:
        means = _means("--mbps", "rates", mbps)
    made = markov(
        means,
        stay_s * 1e3,
        seconds * 1e3,
        stream(seed, "trace"),
        spread=spread,
        form="rtt" if form is _Form.rtt else "rate",
    )
    made = convert(made, form.value)
    text = made.text()
    if form is not _Form.mahimahi:
        traces.parse(text, str(out), made.form)  # nothing is written that nobody can read
    write_whole(out, text)
    _said(out, made, as_json)


def _means(option: str, what: str, text: str) -> list[float]:
    try:
        means = [float(part) for part in text.split(",")]
    except ValueError:
        means = []
    if not means or not all(0 < mean < math.inf for mean in means):
        raise UsageError(
            option, f"not a list of {what}", got=text, allowed="positive, as in 1,5,20"
        )
    return means


def _said(out: Path, made: traces.Trace, as_json: bool) -> None:
    _STDERR.print(f"wrote {out}")
    if as_json:
        print(json.dumps({"path": str(out), **made.info()}))


def shape(
    to: Annotated[str, typer.Option(help="The real server, HOST:PORT.")],
    profile: Annotated[str, typer.Option(help="A network: a name, or a profile file.")] = "lte",
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0: any.")] = "127.0.0.1:0",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    tls: Annotated[bool, typer.Option(help="Count TLS bytes and its round trip as well.")] = False,
    as_json: Json = False,
) -> None:
    """Put a simulated link in front of a real server: a TCP proxy that delays and paces."""
    chosen = network(profile)
    transport = chosen.transport if tls else chosen.transport.plain()
    links = partial(_links, chosen, seed)
    with_address = (_address("--to", to), _address("--listen", listen))
    links(0)  # what is wrong with the profile or its traces shows here, not when a client comes
    try:
        asyncio.run(_shape(links, transport, *with_address, profile, as_json))
    except KeyboardInterrupt:
        _STDERR.print("stopped")


def _links(chosen: Network, seed: int, number: int) -> tuple[Link, Link]:
    return chosen.links(seed, "connection", number)


async def _shape(
    links: Any,
    transport: Any,
    target: tuple[str, int],
    listen: tuple[str, int],
    profile: str,
    as_json: bool,
) -> None:
    from cloud_sim.net.shaper import shaped

    async with shaped(links, transport, target, listen) as (_, (host, port)):
        _STDERR.print(f"{profile} in front of {target[0]}:{target[1]}: listening on {host}:{port}")
        if as_json:
            print(json.dumps({"host": host, "port": port, "profile": profile}), flush=True)
        await asyncio.Event().wait()


def _address(where: str, text: str) -> tuple[str, int]:
    host, _, port = text.removeprefix("ws://").rstrip("/").rpartition(":")
    if not (host and _is_name(host) and re.fullmatch("[0-9]{1,5}", port)) or int(port) > 65535:
        raise UsageError(where, "not an address", got=text, allowed="HOST:PORT")
    return host.strip("[]"), int(port)


def _is_name(host: str) -> bool:
    """Whether a resolver would take it: a part of more than 63 letters is no name."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True
