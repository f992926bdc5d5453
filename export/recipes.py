"""What each export target does to the weights and activations. `docs/export.md` has the figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edge_runtime.errors import UsageError, did_you_mean

Body = Literal["int8", "block", "float"]

INT8_FORM = 3
"""Of the nodes around integer products (`export.products`): a bundle of another form has other bits
and another speed, and runs as well."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One CPU target. Head and embedding share one tensor in every recipe."""

    target: str
    summary: str
    body: Body
    """`int8`: per-channel int8 weights and integer activations; `block`: MatMulNBits."""
    terms: int = 2
    """8-bit integers per activation (`export.quantize`)."""
    head_terms: int = 2
    """The same for the head; 0: float."""
    site_terms: dict[str, int] = field(default_factory=dict)
    """Exceptions to `terms` by site: qkv, o, gate_up, down."""
    bits: int = 8
    block: int = 32
    tolerance: int = 1
    """How many times the default's error in a logit its users accept (`export.marks`)."""
    graph: Literal["fused", "portable"] = "fused"
    """`portable`: optimum's graph, whose keys and values grow (`export.portable`)."""

    def terms_at(self, site: str) -> int:
        """Integers per activation at `site`."""
        return self.site_terms.get(site, self.terms)

    def options(self) -> dict[str, Any]:
        """What the manifest records: the fields that apply to this kind of body."""
        options = asdict(self) | {"form": INT8_FORM}
        del options["target"], options["summary"], options["tolerance"]
        kept = {
            "int8": {"body", "terms", "head_terms", "site_terms", "form"},
            "block": {"body", "head_terms", "bits", "block"},
            "float": {"body"},
        }[self.body] | ({"graph"} if self.graph == "portable" else set())
        return {key: value for key, value in options.items() if key in kept}


RECIPES = {
    recipe.target: recipe
    for recipe in (
        Recipe("cpu-int8", "int8 weights per channel, two-term int8 activations", "int8"),
        Recipe("cpu-int8-block", "8-bit weights in blocks of 32 (MatMulNBits)", "block",
            tolerance=2,
        ),
        Recipe(
            "cpu-int8-fast", "int8 weights per channel, one-term int8 activations", "int8",
            terms=1, head_terms=1, tolerance=8,
        ),
        Recipe("cpu-int4", "4-bit weights in blocks of 32, int8 head", "block", bits=4,
            tolerance=8,
        ),
        Recipe(
            "portable", "as cpu-int8-block, without GroupQueryAttention", "block",
            tolerance=2, graph="portable",
        ),
        Recipe("cpu-fp32", "float, the reference", "float", head_terms=0),
    )
}  # fmt: skip

DEFAULT_TARGET = "cpu-int8"


def recipe(target: str) -> Recipe:
    """The recipe of a CPU target. Raises `UsageError` for a name that is none."""
    try:
        return RECIPES[target]
    except KeyError:
        raise UsageError(
            "--target", "no such target", got=target, todo=did_you_mean(target, RECIPES)
        ) from None
