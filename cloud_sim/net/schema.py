"""What the TOML files of `profiles/` may say (networks, devices, clouds).

Every section says where its figures are from (`origin`, `source`).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    """A CSV of round trips, relative to this file."""
    offset_ms: NotNegative = 0.0
    """Where in the trace the run begins."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.ms is None) == (self.trace is None):
            raise ValueError("give either ms or trace")
        return self


class Direction(Sourced):
    """One direction's rate: constant, or a trace (a mahimahi file, or a CSV of rates)."""

    mbps: Positive | None = None
    trace: str | None = None
    """Relative to this file."""
    offset_ms: NotNegative = 0.0
    """Where in the trace the run begins."""
    queue_kb: Positive | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.mbps is None) == (self.trace is None):
            raise ValueError("give either mbps or trace")
        return self


class JitterTable(Sourced):
    """See `impairments.Jitter`; each direction draws its own."""

    distribution: Literal["uniform", "normal", "lognormal", "pareto"]
    mean_ms: NotNegative
    sd_ms: NotNegative
    correlation_ms: NotNegative = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.distribution in ("lognormal", "pareto") and self.mean_ms == 0:
            raise ValueError(f"a {self.distribution} delay needs a mean_ms above 0")
        if self.distribution == "pareto" and self.sd_ms < self.mean_ms:
            raise ValueError("a pareto delay has an sd_ms of at least its mean_ms")
        return self


class LossTable(Sourced):
    """Share of packets lost, in bursts of `burst` packets on average (1: independent)."""

    rate: Share
    burst: Annotated[float, Field(ge=1)] = 1.0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        by_chance = 1 / (1 - self.rate)
        if 1 < self.burst < by_chance:
            raise ValueError(
                f"losses that are independent come in bursts of {by_chance:.3g} on average, "
                "so burst is 1 (independent) or at least that"
            )
        return self


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
    """One decode figure: tokens/s of one row, and the model it was read on."""

    model: str
    weights_mb: Positive
    """What one step reads."""
    tokens_per_s: Positive
    prefill_tokens_per_s: Positive | None = None


class DeviceTerms(Checked):
    """The terms of `cloud_sim.sim.costs.DeviceCosts`."""

    weights_mb: Positive
    step_ms: Positive
    step_ms_per_past_token: NotNegative = 0.0
    chunk_ms_per_token: NotNegative = 0.0
    prefill_ms: NotNegative = 0.0
    prefill_ms_per_token: NotNegative
    head_ms: NotNegative = 0.0
    head_ms_per_candidate: NotNegative = 0.0
    steer_ms: NotNegative = 0.0
    steer_ms_per_candidate: NotNegative = 0.0


class CostsTable(DeviceTerms, Sourced):
    """The terms as they were read on the device with one bundle."""

    bundle: str = ""


class ProfileReport(BaseModel):
    """What of `costeer profile --json` a device profile is made from; the rest is not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    machine: str = "a device of one's own"
    engine: str = "onnxruntime"
    date: str = "undated"
    bundle: str = ""
    costs: DeviceTerms


class PowerTable(Sourced):
    """Power while decoding."""

    watts: Positive


class DeviceFile(Checked):
    """A device profile: measured `costs`, or published `decode` figures to scale from."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["device"]
    name: str
    summary: str
    engine: str
    decode: tuple[DecodeTable, ...] = ()
    costs: CostsTable | None = None
    power: PowerTable | None = None


class GpuTable(Sourced):
    """All GPUs together."""

    name: str
    count: Annotated[int, Field(ge=1)] = 1
    memory_gb: Positive
    bandwidth_gb_per_s: Positive
    tflops: Positive
    """Dense, in the precision of the weights."""


class ModelTable(Sourced):
    """What is served."""

    name: str
    parameters_b: Positive
    weights_gb: Positive
    layers: Annotated[int, Field(ge=1)]
    kv_kb_per_token: Positive
    """Keys and values of one token over all layers."""


class StepsTable(Sourced):
    """Decode steps: milliseconds per token at numbers of concurrent sequences."""

    batch: tuple[Annotated[int, Field(ge=1)], ...]
    ms: tuple[Positive, ...]
    prefill_ms_per_token: Positive | None = None


class CloudFile(Checked):
    """A cloud profile: GPUs, a model, and how long its steps take."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["cloud"]
    name: str
    summary: str
    gpu: GpuTable
    model: ModelTable
    steps: StepsTable
