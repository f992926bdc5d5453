"""What fewer bits on the device cost a real pair, paired over cases (docs/quality.md).

    python -m benchmarks.quantized_quality cogenesis_dev.jsonl --device float:SMALL --cloud LARGE \\
        --cache STORE --bundles INT8 INT4 ...

The float model's and the cloud's predictions along each reference are those of `costeer evaluate`
with the same options: what its store holds is not computed again, so that a further bundle costs
two passes of the small model a case. Each bundle's predictions are read at the tokens that the
float pair's are kept at; the rest of its vocabulary is one entry, as there.

points   of the gap gained over the float model on the device, paired over cases
kl       of the steered policy, float against bundle, nats a token
same     positions where the best steered token is the float model's
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.kept_pair import opened, parser, plain
from edge_runtime.branches import open_branches
from edge_runtime.bundle import open_bundle
from edge_runtime.steering import Method
from scenarios.datasets import Case
from scenarios.methods import about_names, parse_all, score, steered
from scenarios.metrics import Estimate, gap_captured, kl, ratio
from scenarios.models.pair import Pair, both_along
from scenarios.models.predictions import (
    AGNOSTIC,
    AWARE,
    CLOUD,
    UPLOAD,
    Predictions,
    with_rest,
)

METHODS = "light,names,blend,tempered,costeer@1,device-only,costeer"
MAX_LENGTH = 2048


def on_bundle(kept: Predictions, case: Case, pair: Pair) -> Predictions:
    """`kept` with the device's two rows from `pair`'s branches, at the same tokens."""
    tables = both_along(pair.branches, pair.prompts(case), kept.tokens.tolist())
    logprobs = kept.logprobs.copy()
    for at in range(len(kept)):
        ids, _ = kept.position(at)
        part = slice(int(kept.starts[at]), int(kept.starts[at + 1]))
        there = np.stack([table[at][ids[:-1]] for table in tables]).astype(np.float64)
        logprobs[[AWARE, AGNOSTIC], part] = with_rest(there)
    return replace(kept, logprobs=logprobs)


def apart(rule: Method, one: Predictions, other: Predictions) -> tuple[float, float]:
    """Summed KL of the steered policies of `rule`, and positions with the same best token."""
    divergence = same = 0.0
    for at in range(len(one)):
        placed = about_names(rule, one.names, one.position(at)[0])
        policies = [steered(placed, each.position(at)[1], at) for each in (one, other)]
        divergence += float(kl(*policies))
        same += int(np.argmax(policies[0][:-1])) == int(np.argmax(policies[1][:-1]))
    return divergence, same


def compare(
    rule: Method, floats: Sequence[Predictions], bundles: Sequence[Predictions]
) -> dict[str, Estimate]:
    """The row of one rule and one bundle."""
    cloud, upload = ([one.nll(row) for one in floats] for row in (CLOUD, UPLOAD))
    before = [score(rule, one).nll for one in floats]
    after = [score(rule, one).nll for one in bundles]
    differ = [apart(rule, one, other) for one, other in zip(floats, bundles, strict=True)]
    tokens = [float(len(one)) for one in floats]
    gaps = [c - u for c, u in zip(cloud, upload, strict=True)]
    return {
        "float": gap_captured(before, cloud, upload),
        "bundle": gap_captured(after, cloud, upload),
        "points": ratio([b - a for b, a in zip(before, after, strict=True)], gaps),
        "kl": ratio([d for d, _ in differ], tokens),
        "same": ratio([s for _, s in differ], tokens),
    }


def main() -> None:
    options = parser(__doc__, METHODS)
    options.add_argument("--bundles", type=Path, nargs="+", required=True)
    options.add_argument("--threads", type=int, default=1)
    asked = options.parse_args()
    rules = parse_all(asked.methods)
    measured = opened(asked)
    pair, cases, floats = measured.pair, measured.cases, measured.predictions()
    print("| device | rule | float | bundle | points gained | KL | same best token |")
    print("|---|---|---|---|---|---|---|")
    for folder in asked.bundles:
        bundle = open_bundle(folder)
        small = replace(
            pair, branches=open_branches(bundle, max_length=MAX_LENGTH, threads=asked.threads)
        )
        made = []
        for number, (case, kept) in enumerate(zip(cases, floats, strict=True)):
            made.append(on_bundle(kept, case, small))
            print(f"{folder.name}: {number + 1} of {len(cases)}", file=sys.stderr, flush=True)
        rows = {rule.name: compare(rule, floats, made) for rule in rules}
        for name, row in rows.items():
            print(
                f"| {bundle.manifest.target} | {name} | {percent(row['float'])} | "
                f"{percent(row['bundle'])} | {points(row['points'])} | {row['kl'].value:.4f} | "
                f"{row['same'].value:.1%} |",
                flush=True,
            )
        told = {"bundle": bundle.manifest.target, "cases": len(cases), "rules": plain(rows)}
        print(json.dumps(told))


def percent(share: Estimate) -> str:
    """With its interval."""
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"


def points(share: Estimate) -> str:
    """In hundredths, with its interval."""
    return f"{100 * share.value:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


if __name__ == "__main__":
    main()
