"""From the names in a scenario or on a command line to the things that answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.device import CloudOnlyDevice, SteeredDevice
from edge_runtime.sampling import GREEDY, Sampler
from edge_runtime.steering import method as preset

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle
    from edge_runtime.text import Text

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
