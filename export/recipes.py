"""What each export target does to the weights and activations. `docs/export.md` has the figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edge_runtime.errors import UsageError, did_you_mean

Body = Literal["int8", "block", "float"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a bundle must reach on the shipped cases to be called ready (`export.verify`)."""

    kl: float
    """Of each branch, nats a token."""
    steered_kl: dict[str, float]
    """By gain."""
    steered_top1: float
    """At gain 0.476."""


GOOD = Limits(0.01, {"0.476": 0.004, "1.783": 0.014}, 0.97)
"""What the default must reach."""
FAIR = Limits(0.02, {"0.476": 0.006, "1.783": 0.05}, 0.95)
"""What 8-bit weights with the usual kernels reach."""
LOOSE = Limits(0.6, {"0.476": 0.12, "1.783": 1.2}, 0.75)
"""For those who accept the error for speed or size: wrong in every fourth token is a failure."""


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
    limits: Limits = GOOD

    def terms_at(self, site: str) -> int:
        """Integers per activation at `site`."""
        return self.site_terms.get(site, self.terms)

    def options(self) -> dict[str, Any]:
        """What the manifest records: the fields that apply to this kind of body."""
        options = asdict(self)
        del options["target"], options["summary"], options["limits"]
        kept = {
            "int8": {"body", "terms", "head_terms", "site_terms"},
            "block": {"body", "head_terms", "bits", "block"},
            "float": {"body"},
        }[self.body]
        return {key: value for key, value in options.items() if key in kept}


RECIPES = {
    recipe.target: recipe
    for recipe in (
        Recipe("cpu-int8", "int8 weights per channel, two-term int8 activations", "int8"),
        Recipe("cpu-int8-block", "8-bit weights in blocks of 32 (MatMulNBits)", "block",
            limits=FAIR,
        ),
        Recipe(
            "cpu-int8-fast", "int8 weights per channel, one-term int8 activations", "int8",
            terms=1, head_terms=1, limits=LOOSE,
        ),
        Recipe("cpu-int4", "4-bit weights in blocks of 32, int8 head", "block", bits=4,
            limits=LOOSE,
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
