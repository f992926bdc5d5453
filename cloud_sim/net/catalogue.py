"""Networks by name or file, and fresh links made from them.

network("lte").links(seed)              the built-in profiles, cloud_sim/net/profiles/networks
network("my-office.toml").links(seed)   a file of one's own, of the same form
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from cloud_sim.net.impairments import Jitter, Outages, Radio, bursty_loss
from cloud_sim.net.links import ConstantDelay, Delay, Link
from cloud_sim.net.rates import ConstantRate, Rate
from cloud_sim.net.schema import Direction, NetworkFile, RoundTrip
from cloud_sim.net.streams import stream
from cloud_sim.net.traces import Trace, read
from cloud_sim.net.transport import QUIC, TCP, Transport
from edge_runtime.checked import check, read_toml
from edge_runtime.errors import UsageError, did_you_mean

PROFILES = Path(__file__).parent / "profiles"


@dataclass(frozen=True, slots=True)
class Network:
    """A checked network profile, ready to make links from."""

    file: NetworkFile
    path: Path

    @property
    def name(self) -> str:
        """As it is asked for."""
        return self.file.name

    @property
    def transport(self) -> Transport:
        """The transport the profile names, with TLS."""
        return QUIC if self.file.transport == "quic" else TCP

    @property
    def origin(self) -> str:
        """`published`, `measured` or `assumed`: the weakest of its sections."""
        tables = (self.file.round_trip, self.file.uplink, self.file.downlink)
        origins = [table.origin for table in tables]
        order = ("assumed", "published", "measured")
        return next(name for name in order if name in origins)

    def links(self, seed: int, *names: str | int, elsewhere: bool = False) -> tuple[Link, Link]:
        """A fresh uplink and downlink; `names` tell one device's streams from another's.

        `elsewhere`: a trace begins at a place of the device's own (the same in all its traces), so
        that not all devices of a fleet see the same fade at the same time.
        """
        if elsewhere and self._traced:
            return self._shifted(float(stream(seed, *names, "trace").random())).links(seed, *names)
        file = self.file
        radio = Radio(file.radio.idle_ms, file.radio.wake_ms) if file.radio else None
        return (
            self._link(file.uplink, radio, seed, *names, "uplink"),
            self._link(file.downlink, radio, seed, *names, "downlink"),
        )

    @property
    def _traced(self) -> bool:
        file = self.file
        return any(t.trace for t in (file.round_trip, file.uplink, file.downlink))

    def _shifted(self, share: float) -> Network:
        """The same network, its traces begun later by that share of the longest."""
        file = self.file
        parts: tuple[RoundTrip | Direction, ...] = (file.round_trip, file.uplink, file.downlink)
        shift_ms = share * max(
            _trace(self.path.parent / part.trace).period_ms for part in parts if part.trace
        )
        moved = {
            name: part.model_copy(update={"offset_ms": part.offset_ms + shift_ms})
            for name, part in zip(("round_trip", "uplink", "downlink"), parts, strict=True)
        }
        return replace(self, file=file.model_copy(update=moved))

    def _link(
        self, direction: Direction, radio: Radio | None, seed: int, *names: str | int
    ) -> Link:
        file = self.file
        jitter = loss = outages = None
        if file.jitter:
            table = file.jitter
            jitter = Jitter(
                table.distribution,
                table.mean_ms,
                table.sd_ms,
                stream(seed, *names, "jitter"),
                correlation_ms=table.correlation_ms,
            )
        if file.loss and file.loss.rate:
            loss = bursty_loss(file.loss.rate, file.loss.burst, stream(seed, *names, "loss"))
        if file.outages:
            # Both directions of a device are out at the same time: one stream for the two.
            outages = Outages(
                file.outages.every_ms,
                file.outages.lasting_ms,
                stream(seed, *names[:-1], "outages"),
                fixed=file.outages.fixed,
                drops=file.outages.drops,
            )
        return Link(
            self._rate(direction),
            self._delay(),
            jitter=jitter,
            loss=loss,
            outages=outages,
            radio=radio,
            queue_bytes=int(direction.queue_kb * 1e3) if direction.queue_kb else None,
        )

    def _rate(self, direction: Direction) -> Rate:
        if direction.trace is not None:
            return _trace(self.path.parent / direction.trace).as_rate(offset_ms=direction.offset_ms)
        assert direction.mbps is not None  # checked in the schema
        return ConstantRate(direction.mbps * 1e6)

    def _delay(self) -> Delay:
        table = self.file.round_trip
        if table.trace is not None:
            return _trace(self.path.parent / table.trace).as_delay(offset_ms=table.offset_ms)
        assert table.ms is not None
        return ConstantDelay(table.ms / 2)

    def with_rtt(self, rtt_ms: float) -> Network:
        """The same network with another constant round trip. Raises `SpecError`."""
        assumed = check(
            {"ms": rtt_ms, "origin": "assumed", "source": "set by the scenario"},
            RoundTrip,
            where=f"{self.name}: another round trip",
        )
        return replace(self, file=self.file.model_copy(update={"round_trip": assumed}))


@lru_cache(maxsize=64)
def _trace(path: Path) -> Trace:
    """Read once, however many devices replay it."""
    return read(path)


def names(kind: str) -> list[str]:
    """Names of the built-in profiles of a kind: `networks`, `devices`, `clouds`."""
    return sorted(path.stem for path in (PROFILES / kind).glob("*.toml"))


def find(kind: str, name: str) -> Path:
    """The file of a built-in profile, or the user's own file. Raises `UsageError`."""
    path = PROFILES / kind / f"{name}.toml"
    if path.is_file():
        return path
    own = Path(name)
    if own.suffix == ".toml":
        return own
    raise UsageError(kind, "no such profile", got=name, todo=did_you_mean(name, names(kind)))


def network(name: str) -> Network:
    """The network called `name`, or in the TOML file `name`. Raises `UsageError`, `SpecError`."""
    path = find("networks", name)
    return Network(read_toml(path, NetworkFile), path)
