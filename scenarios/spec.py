"""A scenario file: what to answer, with what on the device, over which link, with which cloud.

    name = "dinner"
    [case]
    query = "Where should I eat tonight?"
    context = "I am a vegetarian."
    [device]
    bundle = "smollm2-135m"
    [network]
    profile = ["5g", "lte"]            # any of these may be one value or a list: an axis

TOML in, checked by `edge_runtime.checked` (an unknown key is refused, with the nearest known one),
frozen dataclasses out. Axes multiply: `Scenario.cells` is every combination, in a fixed order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field

from edge_runtime.candidates import codec
from edge_runtime.checked import Checked, check, toml
from edge_runtime.errors import SpecError
from scenarios.cells.recordings import cases as recorded_cases
from scenarios.cells.trace_links import in_folder
from scenarios.datasets import Case, read
from scenarios.settings import apply

T = TypeVar("T")
Name = Annotated[str, Field(min_length=1)]
Gain = Annotated[float, Field(ge=0, le=100)]
Seed = Annotated[int, Field(ge=0)]
RoundTrip = Annotated[float, Field(gt=0, le=86_400_000)]
"""A day is long enough; with more, times are no longer numbers."""
Axis = Annotated[
    tuple[T, ...],
    BeforeValidator(lambda value: value if isinstance(value, list) else (value,)),
    Field(min_length=1),
]
"""One value or a list of them."""
Names = Axis[Name]
Measure = Literal["time", "quality", "both", "fleet", "codec"]
Align = Literal["none", "map", "byte"]
Placement = Literal["device", "cloud"]
Vectors = Literal["whole", "kept"]


class DeviceTable(Checked):
    """What runs on the phone, and how fast it is taken to be."""

    bundle: Names = ("smollm2-135m",)
    """A bundle's folder; a model that can be fetched, with an export target behind @
    ("smollm2-135m@cpu-int4"); or "float:MODEL", unquantized (quality only)."""
    profile: Names = ("this-machine",)
    align: Axis[Align] = ("none",)
    """How a small model with another tokenizer is heard (`edge_runtime.alignment`)."""
    weights_mb: Annotated[float, Field(gt=0)] | None = None
    """What one step reads, where no bundle says so (recorded answers)."""


class CloudTable(Checked):
    """The model whose predictions are steered, and how fast it is taken to be."""

    model: Names = ("smollm2-135m",)
    profile: Names = ("this-machine",)


class NetworkTable(Checked):
    """Links: built-in names, profile files, or recordings (`scenarios.cells.trace_links`); `rtt_ms`
    replaces the round trip."""

    profile: Names = ("lte",)
    traces: str = ""
    """A folder of recordings: each LTE pair and each CSV of round trips in it is a link."""
    rtt_ms: Axis[RoundTrip] | None = None


class AnswerTable(Checked):
    """How the answer is made."""

    method: Names = ("light",)
    gain: Axis[Gain] | None = None
    codec: Names = ("topk:64",)
    schedule: Names = ("lockstep",)
    placement: Axis[Placement] = ("device",)
    """Where steering happens; "cloud" sends what the note changes up (`cells.placement`)."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class CaseTable(Checked):
    """One case in place, or a data set by name or file."""

    query: str = ""
    context: str = ""
    dataset: str = ""
    """A data set's name (`scenarios.datasets`), or a .jsonl file of one's own notes."""
    file: str = ""
    """Where a data set that does not ship is, relative to the scenario's folder."""
    recorded: str = ""
    """A folder of answers that a real pair gave (`cells.recordings`): instead of the above."""
    limit: Annotated[int, Field(ge=1)] | None = None
    note_tokens: Annotated[int, Field(ge=1)] = 1000
    reference_tokens: Annotated[int, Field(ge=1)] = 150
    """Longer notes and references are cut, where quality is measured."""
    vectors: Vectors = "whole"
    """What a study of codecs puts through them (`scenarios.cells.codec_vectors`)."""


class FleetTable(Checked):
    """`measure = "fleet"`: phones that share one cloud."""

    devices: Axis[Annotated[int, Field(ge=1)]] = (200,)
    arrivals_per_s: Axis[Annotated[float, Field(gt=0)]] = (1.0,)
    """New answers a second, Poisson."""


class ScenarioTable(Checked):
    """The whole file."""

    name: Name
    about: str = ""
    measure: Measure = "time"
    seed: Axis[Seed] = (0,)
    case: CaseTable
    device: DeviceTable = DeviceTable()
    cloud: CloudTable = CloudTable()
    network: NetworkTable = NetworkTable()
    answer: AnswerTable = AnswerTable()
    fleet: FleetTable | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of all axes: everything its result depends on."""

    measure: Measure
    bundle: str
    cloud_model: str
    method: str
    gain: float | None
    codec: str
    schedule: str
    network: str
    rtt_ms: float | None
    device: str
    cloud: str
    seed: int
    case: Case
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    devices: int = 1
    arrivals_per_s: float = 0.0
    align: Align = "none"
    placement: Placement = "device"
    weights_mb: float | None = None
    recorded: str = ""
    note_tokens: int = 1000
    reference_tokens: int = 150
    vectors: Vectors = "whole"

    def settings(self) -> dict[str, Any]:
        """All of it as plain values, for a row or a hash."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A checked scenario file."""

    name: str
    about: str
    measure: Measure
    cases: tuple[Case, ...]
    axes: Mapping[str, tuple[Any, ...]]
    """Field of `Cell` to its values, in the file's order."""
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    weights_mb: float | None = None
    recorded: str = ""
    note_tokens: int = 1000
    reference_tokens: int = 150
    vectors: Vectors = "whole"
    varied: tuple[str, ...] = field(default=())
    """Axes with more than one value."""

    def cells(self) -> Iterator[Cell]:
        """Every combination; the last axis changes fastest."""
        for case in self.cases:
            for values in itertools.product(*self.axes.values()):
                yield Cell(
                    measure=self.measure,
                    case=case,
                    max_tokens=self.max_tokens,
                    temperature=self.temperature,
                    top_p=self.top_p,
                    weights_mb=self.weights_mb,
                    recorded=self.recorded,
                    note_tokens=self.note_tokens,
                    reference_tokens=self.reference_tokens,
                    vectors=self.vectors,
                    **dict(zip(self.axes, values, strict=True)),
                )

    def __len__(self) -> int:
        count = len(self.cases)
        for values in self.axes.values():
            count *= len(values)
        return count


def read_scenario(path: Path, settings: Sequence[str] = ()) -> Scenario:
    """The scenario in the file `path`, changed by `settings` ("answer.method=costeer").

    Raises `SpecError` for what is wrong in the file, `UsageError` for a setting.
    """
    content = toml(path)
    for setting in settings:
        apply(content, setting, ScenarioTable)
    return scenario(content, where=str(path))


def scenario(content: Mapping[str, Any], *, where: str = "scenario") -> Scenario:
    """The scenario that `content` (a file's tables) describes. Raises `SpecError`."""
    table = check(dict(content), ScenarioTable, where=where)
    case, folder = table.case, Path(where).parent
    if bool(case.query) == bool(case.dataset) and not case.recorded:
        raise SpecError(
            f"{where}: case",
            "needs either a query (with its context) or a dataset",
            got="both" if case.query else "neither",
            todo="Keep one of them",
        )
    if set(table.device.align) != {"none"} and table.measure != "quality":
        raise SpecError(
            f"{where}: device.align",
            f'only measure = "quality" looks across two tokenizers, not "{table.measure}"',
            todo="For whole answers: costeer evaluate --align ... --generate N",
        )
    axes: dict[str, tuple[Any, ...]] = {
        "bundle": table.device.bundle,
        "cloud_model": table.cloud.model,
        "method": table.answer.method,
        "gain": table.answer.gain or (None,),
        "codec": table.answer.codec,
        "align": table.device.align,
        "placement": table.answer.placement,
        "schedule": table.answer.schedule,
        "device": table.device.profile,
        "cloud": table.cloud.profile,
        "network": in_folder(_beside(folder, table.network.traces))
        if table.network.traces
        else table.network.profile,
        "rtt_ms": table.network.rtt_ms or (None,),
        "devices": table.fleet.devices if table.fleet else (1,),
        "arrivals_per_s": table.fleet.arrivals_per_s if table.fleet else (0.0,),
        "seed": table.seed,
    }
    if table.measure != "codec":  # that study has names of its own (`scenarios.cells.codecs`)
        for name in table.answer.codec:
            codec(name)
    for name, values in axes.items():
        if len(set(values)) < len(values):
            raise SpecError(
                f"{where}: {name}", "a value is there twice", got=", ".join(map(str, values))
            )
    return Scenario(
        name=table.name,
        about=table.about,
        measure=table.measure,
        cases=_cases(case, folder),
        axes=axes,
        max_tokens=table.answer.max_tokens,
        temperature=table.answer.temperature,
        top_p=table.answer.top_p,
        weights_mb=table.device.weights_mb,
        recorded=case.recorded and str(_beside(folder, case.recorded).resolve()),
        note_tokens=case.note_tokens,
        reference_tokens=case.reference_tokens,
        vectors=case.vectors,
        varied=tuple(name for name, values in axes.items() if len(values) > 1),
    )


def _beside(folder: Path, name: str) -> Path:
    """A path in a scenario: relative to its folder, or, as `--set` means it, to where we are."""
    return folder / name if (folder / name).exists() else Path(name)


def _cases(table: CaseTable, folder: Path) -> tuple[Case, ...]:
    if table.recorded:
        return recorded_cases(_beside(folder, table.recorded))[: table.limit]
    if table.dataset:
        path = _beside(folder, table.file) if table.file else None
        return tuple(read(table.dataset, path, table.limit))
    aware = f"{table.context}\n\n{table.query}" if table.context else table.query
    return (Case("case", table.query, table.context, aware),)
