"""What the TOML files of `profiles/` may say (networks, devices, clouds).

Every section says where its figures are from (`origin`, `source`).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cloud_sim.net.traces import LONGEST_MS, MOST_MBPS, MOST_MS
from edge_runtime.checked import Checked

# What is beyond these bounds is a slip of the pen, or of the unit: times that no clock can wait
# for, or sums and ratios that are no longer numbers.
Positive = Annotated[float, Field(gt=1e-9, le=1e12)]
Ms = Annotated[float, Field(gt=0, le=MOST_MS)]
Pause = Annotated[float, Field(ge=0, le=MOST_MS)]
Offset = Annotated[float, Field(ge=0, le=LONGEST_MS)]
Mbps = Annotated[float, Field(ge=1e-6, le=MOST_MBPS)]
Count = Annotated[int, Field(ge=1, le=10**9)]
QueueKb = Annotated[float, Field(ge=1.5, le=1e9)]
"""At least one full packet: what is larger than the queue never gets through."""
LossRate = Annotated[float, Field(ge=0, le=0.5)]
"""With more, a sender's timers double so often that nothing arrives in a lifetime."""

MOST_SPREAD = 1e6
"""An `sd_ms` over its `mean_ms` for the two distributions that are defined by the ratio."""
MOST_SHARE_OUT = 0.9
"""Of the time, in outages that drop packets: else what is sent again is hardly ever lucky."""


class Sourced(Checked):
    """A table whose figures have a source."""

    origin: Literal["published", "measured", "assumed"]
    source: Annotated[str, Field(min_length=1)]


class RoundTrip(Sourced):
    """Propagation there and back, half each way; or a recording of it."""

    ms: Ms | None = None
    trace: str | None = None
    """A CSV of round trips, relative to this file."""
    offset_ms: Offset = 0.0
    """Where in the trace the run begins."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.ms is None) == (self.trace is None):
            raise ValueError("give either ms or trace")
        return self


class Direction(Sourced):
    """One direction's rate: constant, or a trace (a mahimahi file, or a CSV of rates)."""

    mbps: Mbps | None = None
    trace: str | None = None
    """Relative to this file."""
    offset_ms: Offset = 0.0
    """Where in the trace the run begins."""
    queue_kb: QueueKb | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.mbps is None) == (self.trace is None):
            raise ValueError("give either mbps or trace")
        return self


class JitterTable(Sourced):
    """See `impairments.Jitter`; each direction draws its own."""

    distribution: Literal["uniform", "normal", "lognormal", "pareto"]
    mean_ms: Pause
    sd_ms: Pause
    correlation_ms: Pause = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.distribution in ("lognormal", "pareto") and self.mean_ms == 0:
            raise ValueError(f"a {self.distribution} delay needs a mean_ms above 0")
        if self.distribution in ("lognormal", "pareto") and self.sd_ms > MOST_SPREAD * self.mean_ms:
            raise ValueError(f"sd_ms is more than {MOST_SPREAD:g} times mean_ms")
        if self.distribution == "pareto" and self.sd_ms < self.mean_ms:
            raise ValueError("a pareto delay has an sd_ms of at least its mean_ms")
        return self


class LossTable(Sourced):
    """Share of packets lost, in bursts of `burst` packets on average (1: independent)."""

    rate: LossRate
    burst: Annotated[float, Field(ge=1, le=10_000)] = 1.0

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

    idle_ms: Ms
    wake_ms: Ms


class OutageTable(Sourced):
    """See `impairments.Outages`."""

    every_ms: Annotated[float, Field(ge=1, le=MOST_MS)]
    lasting_ms: Ms
    fixed: bool = False
    drops: bool = False

    @model_validator(mode="after")
    def _possible(self) -> Self:
        share = self.lasting_ms / (self.every_ms + self.lasting_ms)
        if self.drops and share > MOST_SHARE_OUT:
            raise ValueError(
                f"outages that drop packets take {share:.3g} of the time, "
                f"and at most {MOST_SHARE_OUT:g} can be stood"
            )
        return self


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
    step_ms: Ms
    step_ms_per_past_token: Pause = 0.0
    chunk_ms_per_token: Pause = 0.0
    prefill_ms: Pause = 0.0
    prefill_ms_per_token: Pause
    head_ms: Pause = 0.0
    head_ms_per_candidate: Pause = 0.0
    steer_ms: Pause = 0.0
    steer_ms_per_candidate: Pause = 0.0


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
    count: Count = 1
    memory_gb: Positive
    bandwidth_gb_per_s: Positive
    tflops: Positive
    """Dense, in the precision of the weights."""


class ModelTable(Sourced):
    """What is served."""

    name: str
    parameters_b: Positive
    weights_gb: Positive
    layers: Count
    kv_kb_per_token: Positive
    """Keys and values of one token over all layers."""


class StepsTable(Sourced):
    """Decode steps: milliseconds per token at numbers of concurrent sequences."""

    batch: Annotated[tuple[Count, ...], Field(min_length=1)]
    ms: tuple[Ms, ...]
    prefill_ms_per_token: Ms | None = None

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.batch) != len(self.ms):
            raise ValueError("batch and ms are lists of the same length")
        return self


class CloudFile(Checked):
    """A cloud profile: GPUs, a model, and how long its steps take."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["cloud"]
    name: str
    summary: str
    gpu: GpuTable
    model: ModelTable
    steps: StepsTable
