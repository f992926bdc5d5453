"""Run the cells of a scenario: the very schedules and sessions of a live answer, in virtual time.

A cell's answer depends on models, method, codec, schedule and case; its times depend on links and
machines as well. What a row says was measured, modelled or published is in its `origin`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cloud_sim.net.catalogue import Network, network
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.exchange import Labels
from cloud_sim.sim.machines import cloud, device
from cloud_sim.sim.row import row
from cloud_sim.sim.simulate import simulate
from edge_runtime.device import CloudOnlyDevice
from edge_runtime.ledger import ledger
from edge_runtime.policy import Device
from edge_runtime.transcript import Transcript
from scenarios.answers import token_row
from scenarios.cells import placement
from scenarios.cells.trace_links import is_trace, linked
from scenarios.models.opened import Models
from scenarios.plans import plan_of
from scenarios.spec import Cell


@dataclass(frozen=True, slots=True)
class Machines:
    """How long work takes on either side."""

    device: DeviceCosts
    cloud: CloudCosts


@dataclass(frozen=True, slots=True)
class Result:
    """One cell's row of figures, and its answer token by token."""

    row: dict[str, Any]
    tokens: list[dict[str, Any]]
    transcript: Transcript


def run(
    cells: Iterable[Cell],
    models: Models,
    *,
    machines: Machines | None = None,
    done: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Each cell's result, in order. `machines` replaces what the cells' profiles say."""
    for cell in cells:
        yield run_cell(cell, models, machines)
        done()


def run_cell(cell: Cell, models: Models, machines: Machines | None = None) -> Result:
    """One answer over one simulated link. Raises `UsageError` for a name that is none."""
    link = link_of(cell)
    uplink, downlink = link.links(cell.seed)
    machines = machines or machines_of(cell, models)
    replay = models.replay(cell)
    rule = replay.method
    phone: Device = replay.device()
    if not rule.steers:
        phone = CloudOnlyDevice(replay.sampler, replay.tape.end_ids, rule)
    transcript = simulate(
        plan_of(cell.schedule).make(phone, replay.request(cell.max_tokens)),
        replay.session(),
        uplink=uplink,
        downlink=downlink,
        device_costs=machines.device,
        cloud_costs=machines.cloud,
        transport=link.transport,
        labels=Labels(cell.method, rule.gain, cell.schedule, cell.codec),
    )
    if replay.cloud is None:
        # With the models at hand a note would say what was on tape before, not what the answer is.
        transcript.notes.extend(replay.notes())
    if cell.placement == "cloud":
        uplink, downlink = link.links(cell.seed)
        sides = placement.Sides(
            uplink,
            downlink,
            link.transport,
            machines.device,
            machines.cloud,
            replay.tape.vocabulary_size,
            replay.tape.prompt_lengths[0],
        )
        transcript = placement.in_the_cloud(transcript, sides)
    decode = models.decode(cell)
    tokens = [token_row(record, decode([record.token]), decode) for record in transcript.records]
    origins = {
        "device": machines.device.origin,
        "cloud": machines.cloud.origin,
        "network": link.origin,
    }
    figures = {
        "case": cell.case.id,
        "rtt_ms": cell.rtt_ms,
        "device_profile": cell.device,
        "cloud_profile": cell.cloud,
        "device_step_ms": machines.device.step_ms + machines.device.head_ms,
        "bundle": cell.bundle,
        "cloud_model": cell.cloud_model,
        "placement": cell.placement,
        "evidence_bits": ledger(transcript, rule, replay.sampler).bits,
        "context_bits": 0.0,
        **row(transcript, profile=cell.network, seed=cell.seed, origins=origins),
        "text": decode(transcript.tokens),
        "peak_rss_mb": None,
    }
    figures["origin"] |= {
        "rtt_ms": link.origin,
        "device_step_ms": machines.device.origin,
        "evidence_bits": "measured",
        "context_bits": "measured",
    }
    return Result(figures, tokens, transcript)


def link_of(cell: Cell) -> Network:
    """The cell's network, with its own round trip if it names one."""
    link = linked(cell.network, cell.seed) if is_trace(cell.network) else network(cell.network)
    return link if cell.rtt_ms is None else link.with_rtt(cell.rtt_ms)


def machines_of(cell: Cell, models: Models) -> Machines:
    """What the cell's device and cloud profiles say."""
    weights_mb = models.weights_mb(cell)
    return Machines(device(cell.device).costs(weights_mb=weights_mb), cloud(cell.cloud).costs())
