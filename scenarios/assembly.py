"""From the names in a scenario or on a command line to the things that answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edge_runtime.device import CloudOnlyDevice, SteeredDevice
from edge_runtime.errors import UsageError, did_you_mean
from edge_runtime.sampling import GREEDY, Sampler
from edge_runtime.schedules.actions import Schedule
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.steering import method as preset

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle
    from edge_runtime.text import Text

SCHEDULES: Mapping[str, Callable[..., Schedule]] = {"lockstep": lockstep, "runahead": runahead}

AnyDevice = SteeredDevice | CloudOnlyDevice


def device_for(
    bundle: Bundle,
    text: Text,
    query: str,
    context: str,
    *,
    method: str = "light",
    gain: float | None = None,
    max_tokens: int = 64,
    sampler: Sampler = GREEDY,
    branches: Any = None,
) -> AnyDevice:
    """The device that answers `query` with the private `context` under the named method.

    `branches`: opened ones to use again; otherwise the bundle's are opened, and only if the method
    steers at all. Raises `UsageError` for an unknown method.
    """
    rule = preset(method, gain)
    ends = bundle.manifest.tokens.end_ids
    if not rule.steers:
        return CloudOnlyDevice(sampler, ends, rule)
    prompts = text.prompts(query, context)
    if branches is None:
        from edge_runtime.branches import open_branches

        longest = max(len(prompts.aware), len(prompts.agnostic))
        branches = open_branches(bundle, max_length=longest + max_tokens)
    return SteeredDevice(branches, prompts, rule, sampler, ends)


def public_query(method: str, query: str, context: str) -> str:
    """What the cloud is asked: the query; with `upload`, which gives privacy up, the note too."""
    if preset(method).base == "informed-cloud" and context:
        return f"{context}\n\n{query}"
    return query


def schedule_for(name: str, device: Any, request: Request) -> Schedule:
    """The schedule that `name` describes: `lockstep`, or with options as in `runahead:window=8`.

    Raises `UsageError` for a name or an option that is none.
    """
    kind, _, rest = name.partition(":")
    options: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"schedule {name}", "not an option", got=pair, allowed="NAME=VALUE")
        options[key.strip()] = _number(value.strip())
    if kind not in SCHEDULES:
        raise UsageError(
            "schedule", "no such schedule", got=kind, todo=did_you_mean(kind, SCHEDULES)
        )
    make = SCHEDULES[kind]
    known = [p for p in inspect.signature(make).parameters if p not in ("device", "request")]
    for option in options:
        if option not in known:
            raise UsageError(
                f"schedule {kind}", "no such option", got=option, todo=did_you_mean(option, known)
            )
    return make(device, request, **options)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
