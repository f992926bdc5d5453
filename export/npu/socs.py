"""The Qualcomm SoCs an NPU bundle can be compiled for: names, numbers, HTP generations.

Numbers are the QNN SDK's own (`Qnn_SocModel_t`), not Android's `soc_id`. A context binary made
for one generation does not load on another, so the name is asked for, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.errors import UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Soc:
    """One system on a chip: part name, QNN number, HTP generation, what it is sold as."""

    name: str
    number: int
    architecture: int
    sold_as: str

    @property
    def float16(self) -> bool:
        """Whether its HTP computes in fp16; v68 is integer only."""
        return self.architecture >= 69


SOCS = (
    Soc("SM8350", 30, 68, "Snapdragon 888"),
    Soc("SM7325", 35, 68, "Snapdragon 778G, QCS6490"),
    Soc("SA8295", 39, 68, "Snapdragon Cockpit Gen 4"),
    Soc("SM8450", 36, 69, "Snapdragon 8 Gen 1"),
    Soc("SM8475", 42, 69, "Snapdragon 8+ Gen 1"),
    Soc("SXR2230P", 53, 69, "Snapdragon XR2 Gen 2"),
    Soc("SM8550", 43, 73, "Snapdragon 8 Gen 2"),
    Soc("SA8255", 52, 73, "Snapdragon Ride Flex"),
    Soc("QCS9100", 77, 73, "Dragonwing IQ-9100"),
    Soc("SM8650", 57, 75, "Snapdragon 8 Gen 3"),
    Soc("SM8750", 69, 79, "Snapdragon 8 Elite"),
    Soc("SXR2330P", 75, 79, "Snapdragon XR2+ Gen 3"),
    Soc("SM8850", 87, 81, "Snapdragon 8 Elite Gen 5"),
)
DEFAULT_SOC = "SM8650"

NPU_TARGETS = ("npu-qnn", "npu-qnn-w8a16")
"""Export targets that are compiled for one of these."""


def soc(name: str) -> Soc:
    """The SoC called `name` (any case). Raises `UsageError` with the nearest name."""
    by_name = {entry.name: entry for entry in SOCS}
    found = by_name.get(name.upper())
    if found is None:
        raise UsageError("--soc", "no such SoC", got=name, todo=did_you_mean(name.upper(), by_name))
    return found
