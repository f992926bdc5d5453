"""The first table of docs/quality.md: rules along references, from what `costeer evaluate` keeps.

    python -m benchmarks.rule_table cogenesis_dev.jsonl --device float:SMALL --cloud LARGE \\
        --cache STORE

With the options of `costeer evaluate`, whose store is read: what it holds is not computed again.

other half     the gap on the cases that `--fit` would not look at (`scenarios.fit.halves`)
all tempered   the gap where cloud, upload and rule are each divided by the temperature that suits
               the references best, so that nobody gains by being less sure; what was not kept of a
               prediction counts as one token
differs        positions where the best token is not the cloud's
facts          positions where the best token belongs to a name or number of the note
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.kept_pair import opened, parser, plain
from edge_runtime.rules import method
from edge_runtime.steering import Floats, Method, log_softmax
from scenarios.fit import halves
from scenarios.methods import about_names, parse_all, steered
from scenarios.metrics import gap_captured, kl, ratio
from scenarios.models.predictions import UPLOAD, Predictions

METHODS = (
    "cloud-only,upload,device-only,light,light@0.6,costeer@1,costeer,light@1:rule=positive,blend,"
    "names:temper=1,names,light:temper=1.2,tempered"
)
COOLED = 1.2
TEMPERS = np.arange(0.7, 2.51, 0.05)
"""Temperatures that are tried for `all tempered`."""


@dataclass(frozen=True, slots=True)
class Along:
    """A rule along the reference of `kept`: its log-policy [C] at each position."""

    kept: Predictions
    policies: list[Floats]

    def nll(self, temper: float = 1.0) -> float:
        """Of the reference, with every policy divided by `temper`, nats."""
        each = enumerate(self.policies)
        return -sum(float(log_softmax(one / temper)[self.kept.target(at)]) for at, one in each)

    def cooled(self, temper: float) -> Along:
        """The same, divided by `temper`."""
        return Along(self.kept, [log_softmax(one / temper) for one in self.policies])

    def kl_upload(self) -> float:
        """Summed KL of the informed cloud's predictions from the policies, nats."""
        return sum(
            float(kl(self.kept.position(at)[1][UPLOAD], one))
            for at, one in enumerate(self.policies)
        )

    def best(self) -> list[int]:
        """The best token of each position."""
        each = enumerate(self.policies)
        return [int(self.kept.position(at)[0][int(np.argmax(one[:-1]))]) for at, one in each]


def along(rule: Method, kept: Predictions) -> Along:
    """`rule` along the reference of `kept`."""
    policies = []
    for at in range(len(kept)):
        ids, table = kept.position(at)
        policies.append(steered(about_names(rule, kept.names, ids), table, at))
    return Along(kept, policies)


def best_tempered(cases: Sequence[Along]) -> tuple[float, list[float]]:
    """The temperature that makes all references together likeliest, and each one's nll there."""
    tried = [[case.nll(float(temper)) for case in cases] for temper in TEMPERS]
    best = int(np.argmin([sum(row) for row in tried]))
    return float(TEMPERS[best]), tried[best]


def table(rules: Sequence[Method], kept: Sequence[Predictions]) -> dict[str, dict[str, Any]]:
    """The rows by name: estimates, and the plain numbers `temper` and `facts`. One row more is the
    control that no rule makes: the cloud alone, divided by `COOLED`."""
    ends = [[along(method(name), one) for one in kept] for name in ("cloud-only", "upload")]
    named = {rule.name: [along(rule, one) for one in kept] for rule in rules}
    named[f"cloud-only / {COOLED}"] = [case.cooled(COOLED) for case in ends[0]]
    gap = [[case.nll() for case in cases] for cases in ends]
    suited = [best_tempered(cases)[1] for cases in ends]
    tokens = [float(len(one)) for one in kept]
    clouds = [case.best() for case in ends[0]]
    others = halves(len(kept))[1]
    found: dict[str, dict[str, Any]] = {}
    for name, cases in named.items():
        nll, best = [case.nll() for case in cases], [case.best() for case in cases]
        temper, tempered = best_tempered(cases)
        half = ([one[i] for i in others] for one in (nll, *gap))
        differ = [
            float(sum(one != other for one, other in zip(*pair, strict=True)))
            for pair in zip(best, clouds, strict=True)
        ]
        told = (
            token in case.kept.names for case, of in zip(cases, best, strict=True) for token in of
        )
        found[name] = {
            "nll": ratio(nll, tokens),
            "gap": gap_captured(nll, *gap),
            "other_half": gap_captured(*half),
            "all_tempered": gap_captured(tempered, *suited),
            "kl_upload": ratio([case.kl_upload() for case in cases], tokens),
            "differs": ratio(differ, tokens),
            "temper": temper,
            "facts": sum(told),
        }
    return found


def line(name: str, row: dict[str, Any]) -> str:
    """One line of the page's table."""
    shares = (row[key] for key in ("gap", "other_half", "all_tempered"))
    cells = [
        f"`{name}`",
        f"{row['nll'].value:.3f} [{row['nll'].low:.2f}, {row['nll'].high:.2f}]",
        *(f"{one.value:.0%} [{100 * one.low:.0f}, {100 * one.high:.0f}]" for one in shares),
        f"{row['kl_upload'].value:.3f}",
        f"{row['differs'].value:.0%}",
        f"{row['facts']}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    asked = parser(__doc__, METHODS).parse_args()
    kept = opened(asked).predictions()
    found = table(parse_all(asked.methods), kept)
    print("| rule | nats per token | gap captured | other half | all tempered | KL to upload |"
          " differs | facts |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for name, row in found.items():
        print(line(name, row))
    tokens = sum(map(len, kept))
    print(json.dumps({"cases": len(kept), "tokens": tokens, "rules": plain(found)}))


if __name__ == "__main__":
    main()
