"""What the TOML files of `profiles/` may say (networks, devices, clouds).

Every section says where its figures are from (`origin`, `source`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edge_runtime.checked import Checked

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Sourced(Checked):
    """A table whose figures have a source."""

    origin: Literal["published", "measured", "assumed"]
    source: Annotated[str, Field(min_length=1)]


class RoundTrip(Sourced):
    """Propagation there and back, half each way; or a recording of it."""

    ms: Positive | None = None
    trace: str | None = None


class Direction(Sourced):
    """One direction's rate: constant, or a trace (a mahimahi file, or a CSV of rates)."""

    mbps: Positive | None = None
    trace: str | None = None
    queue_kb: Positive | None = None


class JitterTable(Sourced):
    """See `impairments.Jitter`; each direction draws its own."""

    distribution: Literal["uniform", "normal", "lognormal", "pareto"]
    mean_ms: NotNegative
    sd_ms: NotNegative
    correlation_ms: NotNegative = 0.0


class LossTable(Sourced):
    """Share of packets lost, in bursts of `burst` packets on average (1: independent)."""

    rate: Share
    burst: Annotated[float, Field(ge=1)] = 1.0


class RadioTable(Sourced):
    """See `impairments.Radio`."""

    idle_ms: Positive
    wake_ms: Positive


class OutageTable(Sourced):
    """See `impairments.Outages`."""

    every_ms: Positive
    lasting_ms: Positive
    fixed: bool = False
    drops: bool = False


class NetworkFile(Checked):
    """A network profile."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["network"]
    name: str
    summary: str
    round_trip: RoundTrip
    uplink: Direction
    downlink: Direction
    transport: Literal["tcp", "quic"] = "tcp"
    jitter: JitterTable | None = None
    loss: LossTable | None = None
    radio: RadioTable | None = None
    outages: OutageTable | None = None


class DecodeTable(Sourced):
    """One published decode figure: tokens/s of one row, and the model it was read on."""

    tokens_per_s: Positive
    prefill_tokens_per_s: Positive | None = None
    model: str
    weights_mb: Positive
    """What one step reads."""


class PowerTable(Sourced):
    """Power while decoding."""

    watts: Positive


class DeviceFile(Checked):
    """A device profile."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["device"]
    name: str
    summary: str
    engine: str
    decode: list[DecodeTable]
    power: PowerTable | None = None


class StepPoint(Checked):
    """A published decode step: milliseconds per token at a number of concurrent sequences."""

    batch: Annotated[int, Field(ge=1)]
    ms: Positive


class CloudFile(Sourced):
    """A GPU with a model on it."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["cloud"]
    name: str
    summary: str
    gpus: Annotated[int, Field(ge=1)] = 1
    gpu: str
    model: str
    weights_gb: Positive
    layers: Annotated[int, Field(ge=1)]
    kv_bytes_per_token: Positive
    memory_gb: Positive
    """Of all GPUs together."""
    parameters_b: Positive
    steps: list[StepPoint]
