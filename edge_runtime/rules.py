"""Rules by name: the presets, and a preset with other numbers, as a user writes it.

    light                          a preset
    costeer@1.2                    the same with another gain
    names:temper=1:copy=0.5        the same with other numbers: any field of `steering.Method`

One spelling serves `--method`, `--methods` and the axis `answer.method` of a scenario file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, get_args

from edge_runtime.errors import UsageError, did_you_mean
from edge_runtime.steering import Base, Method, Rule, gain

PRESETS: Mapping[str, Method] = MappingProxyType(
    {
        m.name: m
        for m in (
            Method("costeer", gain(20)),
            Method("light", gain(1)),
            Method("tempered", 1.0, temper=1.2),
            Method("names", gain(1), temper=1.2, copy=1.0),
            Method("blend", 0.75, rule="positive", mix=0.15),
            Method("context-steering", 1.0, base="aware"),
            Method("linear-alignment", 1.0, base="agnostic"),
            Method("proxy", 1.0, tuned=True),
            Method("cloud-only"),
            Method("device-only", base="aware"),
            Method("upload", base="informed-cloud"),
        )
    }
)
"""`costeer`, `light`: the paper with T = 20 and T = 1. `names`: our default, measured in
docs/quality.md. `context-steering` (CoS, arXiv 2405.01768) and `linear-alignment` (arXiv
2401.11458): the small model steers itself. `proxy`: `edge_runtime.tuned`."""

WORDS: Mapping[str, tuple[str, ...]] = {"rule": get_args(Rule), "base": get_args(Base)}
NUMBERS = ("gain", "mix", "clip", "late_gain", "decay_tokens", "temper", "copy")
"""What may follow a preset's name: fields that are words, and fields that are numbers."""


def method(text: str, gain: float | None = None) -> Method:
    """The rule written as NAME, NAME@GAIN or NAME:FIELD=VALUE..., with another `gain` if given.

    Its name is what was written, so that a table says which rule it shows. Raises `UsageError`.
    """
    head, *settings = (part.strip() for part in text.split(":"))
    preset, at, number = head.partition("@")
    if preset not in PRESETS:
        raise UsageError("method", "no such method", got=preset, todo=did_you_mean(preset, PRESETS))
    rule, name = PRESETS[preset], preset
    if at:
        written = _number(text, "gain", number)
        name += f"@{written:g}"
        gain = written if gain is None else gain
    if gain is not None and (not rule.steers or preset == "device-only"):
        raise UsageError(
            f"method {preset}", "this method has no gain", got=gain, todo="Leave the gain out"
        )
    fields: dict[str, Any] = {} if gain is None else {"gain": gain}
    for setting in settings:
        field, value = _setting(text, setting)
        fields[field] = value
        name += f":{field}={value}" if isinstance(value, str) else f":{field}={value:g}"
    rule = replace(rule, name=name, **fields)
    if "temper" in fields and not rule.steers:
        raise UsageError(
            f"method {text}", "this method does not steer, so nothing is tempered", got=rule.temper
        )
    return rule


def _setting(text: str, setting: str) -> tuple[str, Any]:
    field, _, value = (part.strip() for part in setting.partition("="))
    where = f"method {text}"
    if field in WORDS:
        if value not in WORDS[field]:
            raise UsageError(
                where, f"no such {field}", got=value, allowed=", ".join(WORDS[field]),
                todo=did_you_mean(value, WORDS[field]),
            )  # fmt: skip
        return field, value
    if field not in NUMBERS:
        known = (*NUMBERS, *WORDS)
        raise UsageError(
            where, "a rule has no such number", got=field, allowed=", ".join(known),
            todo=did_you_mean(field, known),
        )  # fmt: skip
    number = _number(text, field, value)
    return field, int(number) if field == "decay_tokens" else number


def _number(text: str, field: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"method {text}", f"the {field} is no number", got=value or "nothing")
    return number
