"""Devices and clouds by name or file, as the cost models that a simulation charges.

    device("oneplus-12").costs(weights_mb=137.5)   published decode figures, scaled to a bundle
    device("my-phone.toml").costs()                measured with `costeer profile --json`
    cloud("a100-qwen2.5-7b").costs()               one session alone on it

Scaling a device takes decoding to be bound by memory: its time goes with the bytes of the weights,
from the published figure nearest in size. Results on one chip differ by up to 3x between
publications: measure your own.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from cloud_sim.net.catalogue import find
from cloud_sim.net.schema import CloudFile, CostsTable, DecodeTable, DeviceFile, ProfileReport
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.roofline import Roofline, roofline
from edge_runtime.checked import check, read_toml
from edge_runtime.errors import SpecError

TWO_ROWS = 1.24
"""A step of two rows over one of one row (19.6 / 15.8 ms: 8-bit blocks of 32, x86, one thread)."""

HEAD_SHARE = 0.2
"""The language-model head's share of a step's weights (20-28 % measured)."""

PREFILL_OVER_DECODE = 5.0
"""Prefill tokens/s over decode tokens/s where only decode is published (3 to 8 where both are)."""

MEMORY_SHARE = 0.9
"""Of a GPU's memory, what weights, keys and values may take (vLLM's default)."""


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A checked device profile."""

    file: DeviceFile
    path: Path

    @property
    def name(self) -> str:
        """As it is asked for."""
        return self.file.name

    def costs(self, *, weights_mb: float | None = None, vocabulary: int = 49_152) -> DeviceCosts:
        """What a bundle of that size would cost on this device (None: the profile's own)."""
        if self.file.costs is not None:
            return _measured(self.file.costs, weights_mb)
        if not self.file.decode:
            raise SpecError(str(self.path), "a device needs a [costs] table or [[decode]] figures")
        return _scaled(self.file.decode, weights_mb, vocabulary)


def _measured(table: CostsTable, weights_mb: float | None) -> DeviceCosts:
    factor = 1.0 if weights_mb is None else weights_mb / table.weights_mb
    return DeviceCosts(
        step_ms=table.step_ms * factor,
        step_ms_per_past_token=table.step_ms_per_past_token,
        chunk_ms_per_token=table.chunk_ms_per_token * factor,
        prefill_ms=table.prefill_ms,
        prefill_ms_per_token=table.prefill_ms_per_token * factor,
        head_ms=table.head_ms,
        head_ms_per_candidate=table.head_ms_per_candidate,
        steer_ms=table.steer_ms,
        steer_ms_per_candidate=table.steer_ms_per_candidate,
        # Another bundle's size is scaled to, no longer read on the device.
        origin="measured" if abs(factor - 1) < 0.02 and table.origin == "measured" else "modelled",
    )


def _scaled(
    points: tuple[DecodeTable, ...], weights_mb: float | None, vocabulary: int
) -> DeviceCosts:
    size = weights_mb or points[0].weights_mb
    nearest = min(points, key=lambda point: abs(point.weights_mb - size))
    factor = size / nearest.weights_mb
    one_row_ms = 1e3 / nearest.tokens_per_s * factor
    rate = nearest.prefill_tokens_per_s or PREFILL_OVER_DECODE * nearest.tokens_per_s
    both_ms = one_row_ms * TWO_ROWS
    return DeviceCosts(
        step_ms=both_ms * (1 - HEAD_SHARE),
        chunk_ms_per_token=2 * 1e3 / rate * factor,
        prefill_ms_per_token=1e3 / rate * factor,
        head_ms_per_candidate=both_ms * HEAD_SHARE / vocabulary,
        steer_ms=0.05,
        origin="published" if factor == 1 else "modelled",
    )


def device(name: str) -> DeviceProfile:
    """The device called `name`, or in the TOML file `name`. Raises `UsageError`, `SpecError`."""
    path = find("devices", name)
    return DeviceProfile(read_toml(path, DeviceFile), path)


@dataclass(frozen=True, slots=True)
class CloudProfile:
    """A checked cloud profile and the roofline fitted to its published steps."""

    file: CloudFile
    path: Path

    @property
    def name(self) -> str:
        """As it is asked for."""
        return self.file.name

    def roofline(self) -> Roofline:
        """Step times for any batch."""
        return roofline(self.file)

    def kv_tokens(self) -> int:
        """Tokens whose keys and values fit beside the weights."""
        file = self.file
        room_gb = MEMORY_SHARE * file.gpu.memory_gb - file.model.weights_gb
        if room_gb <= 0:
            raise SpecError(
                str(self.path),
                "the model does not fit on the GPU",
                got=f"{file.model.weights_gb:g} GB of weights",
                allowed=f"under {MEMORY_SHARE * file.gpu.memory_gb:g} GB",
            )
        return int(room_gb * 1e6 / file.model.kv_kb_per_token)

    def costs(self) -> CloudCosts:
        """What a pass costs a session that is alone on this cloud."""
        line = self.roofline()
        origin = self.file.steps.origin
        return CloudCosts(
            step_ms=line.step_ms(rows=1),
            ms_per_token=line.prefill_ms_per_token,
            ms_per_row=line.ms_per_row,
            ms_per_past_token=line.ms_per_context_token,
            origin="modelled" if origin == "assumed" else origin,
        )


def cloud(name: str) -> CloudProfile:
    """The cloud called `name`, or in the TOML file `name`. Raises `UsageError`, `SpecError`."""
    path = find("clouds", name)
    return CloudProfile(read_toml(path, CloudFile), path)


def device_toml(name: str, report: ProfileReport) -> str:
    """A device profile (TOML text) from what `costeer profile --json` printed.

    It is read back before it is handed out: a file must not be replaced by what is no profile.
    Raises `SpecError`.
    """
    text = {
        "name": name,
        "summary": f"Measured: {report.machine}",
        "engine": report.engine,
    }
    terms = "\n".join(f"{key} = {value}" for key, value in report.costs.model_dump().items())
    head = "\n".join(f"{key} = {_string(value)}" for key, value in text.items())
    made = (
        f'schema = 1\nkind = "device"\n{head}\n\n'
        f"[costs]\nbundle = {_string(report.bundle)}\n{terms}\n"
        f'origin = "measured"\nsource = {_string(f"costeer profile, {report.date}")}\n'
    )
    try:
        check(tomllib.loads(made.encode().decode()), DeviceFile, where="--device-from")
    except (tomllib.TOMLDecodeError, UnicodeError) as error:
        raise SpecError(
            "--device-from", f"what the report says cannot be written as TOML: {error}"
        ) from error
    return made


def _string(text: str) -> str:
    """As TOML: JSON's strings, but letters beyond ASCII as they are, and one escape more."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
