"""Links from recordings of drives: `trace:FILE` for one's own, `made:NAME` for two that need none.

    trace:DIR/ATT-LTE-driving      a mahimahi pair: DIR/ATT-LTE-driving.up and .down (or .gz)
    trace:DIR/urban.csv            round trips (t_ms, rtt_ms), or rates for both directions
    made:lte-driving               rates that come and go, between 20 and 0.2 Mbit/s
    made:5g-driving                round trips of 16 ms with a handover's 150 to 280 ms now and then

A recording of rates has no round trip, one of round trips no rates: what is missing is a published
median of the same kind of network, and the row says `assumed`. A cell's seed is where in the
recording its answer begins, so seeds are different stretches of the road.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from cloud_sim.net import traces
from cloud_sim.net.catalogue import Network, network
from cloud_sim.net.made_traces import markov
from cloud_sim.net.schema import Direction, RoundTrip
from cloud_sim.net.streams import stream
from edge_runtime.errors import UsageError
from edge_runtime.files import write_whole
from edge_runtime.weights import cache_dir

MADE_SECONDS = 240.0
_LTE_MBPS, _LTE_STAY_MS = (20.0, 8.0, 2.0, 0.2), 3000.0
"""States of the made LTE drive, near the ATT and T-Mobile drives of mahimahi."""
_5G_RTT_MS, _5G_SPREAD, _5G_STEP_MS, _5G_HANDOVER_S = 16.0, 0.2, 50.0, 12.0
"""The made 5G drive, near CICV5G's n78 drives: p50 16, p95 22, now and then a handover."""


def is_trace(name: str) -> bool:
    """Whether `name` is one of those above."""
    return name.startswith(("trace:", "made:"))


def in_folder(folder: Path) -> tuple[str, ...]:
    """Every mahimahi LTE pair and every recording of round trips below `folder`, by name.

    Raises `UsageError` when there are none.
    """
    pairs = {
        path.parent / path.name.partition(".")[0]
        for path in folder.rglob("*LTE*.up*")
        if _direction(path.parent / path.name.partition(".")[0], "down") is not None
    }
    trips = {path for path in folder.rglob("*.csv") if "rtt_ms" in _header(path)}
    if not pairs | trips:
        raise UsageError(
            "network.traces",
            "neither NAME.up with NAME.down nor a CSV with rtt_ms is in this folder",
            got=str(folder),
        )
    return tuple(f"trace:{path}" for path in (*sorted(pairs), *sorted(trips)))


def files(name: str) -> tuple[Path, ...]:
    """The files that `name` is made of. Raises `UsageError` when they are not there."""
    kind, _, rest = name.partition(":")
    if kind == "made":
        return (_made(rest),)
    path = Path(rest)
    if path.is_file():
        return (path,)
    up, down = _direction(path, "up"), _direction(path, "down")
    if up is None or down is None:
        raise UsageError(
            "network",
            "no such recording",
            got=name,
            allowed="a file, or NAME.up and NAME.down",
        )
    return up, down


def linked(name: str, seed: int) -> Network:
    """The network that `name` describes, begun at the place of `seed`. Raises `UsageError`."""
    found = files(name)
    read = traces.read(found[0])
    offset_ms = float(stream(seed, "trace", name).random() * read.period_ms)
    base = network("5g-n78" if read.form == "rtt" else "us-mobile")
    told = {"origin": "assumed", "source": f"{base.name}, since the recording has none"}
    if read.form == "rtt":
        trip = RoundTrip(
            trace=found[0].name, offset_ms=offset_ms, origin="measured", source=found[0].name
        )
        both = [table.model_copy(update=told) for table in (base.file.uplink, base.file.downlink)]
    else:
        trip = base.file.round_trip.model_copy(update=told)
        both = [
            Direction(trace=path.name, offset_ms=offset_ms, origin="measured", source=path.name)
            for path in (found[0], found[-1])
        ]
    file = base.file.model_copy(
        update={
            "name": name,
            "summary": "a recording",
            "round_trip": trip,
            "uplink": both[0],
            "downlink": both[1],
            "jitter": None,
            "loss": None,
        }
    )
    return Network(file, found[0])


def _direction(stem: Path, direction: str) -> Path | None:
    names = (f"{stem.name}.{direction}", f"{stem.name}.{direction}.gz")
    return next((stem.parent / name for name in names if (stem.parent / name).is_file()), None)


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().strip().split(",")


@lru_cache(maxsize=4)
def _made(name: str) -> Path:
    """The made recording, written into the cache at its first use."""
    path = cache_dir() / "traces" / f"made-{name}-1.csv"
    if name == "lte-driving":
        text = markov(
            _LTE_MBPS, _LTE_STAY_MS, 1e3 * MADE_SECONDS, stream(0, path.name), spread=0.3
        ).text()
    elif name == "5g-driving":
        text = _round_trips(stream(0, path.name)).text()
    else:
        raise UsageError("network", "no such made drive", got=name, allowed="lte- or 5g-driving")
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    return path


def _round_trips(draw: np.random.Generator) -> traces.Trace:
    """A sample every 50 ms, and a handover about every twelve seconds that holds one sample up."""
    count = int(1e3 * MADE_SECONDS / _5G_STEP_MS)
    values = _5G_RTT_MS * np.exp(_5G_SPREAD * draw.standard_normal(count))
    handover = draw.random(count) < _5G_STEP_MS / (1e3 * _5G_HANDOVER_S)
    values[handover] = draw.uniform(150.0, 280.0, int(handover.sum()))
    times = tuple(_5G_STEP_MS * index for index in range(count))
    return traces.Trace("rtt", times, tuple(np.round(values, 1).tolist()), 1e3 * MADE_SECONDS)
