"""The second table of docs/quality.md: greedy answers, from what `costeer evaluate` keeps.

    python -m benchmarks.answer_table cogenesis_dev.jsonl --device float:SMALL --cloud LARGE \\
        --cache STORE

With the options of `costeer evaluate ... --generate N --codec C`, whose store is read: answers that
it holds are not written again. All is paired over cases: each rule with the informed cloud's own
answers (`upload`), and the rules of `--pairs` with each other. The last rows are what the device
would choose (`costeer evaluate --choose`) among the answers of the rules in `--among`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.kept_pair import opened, parser, plain
from scenarios.evaluate import Evaluation, Plan, Result, chosen, evaluate
from scenarios.methods import parse_all
from scenarios.metrics import Estimate, difference, mean, quotient, ratio
from scenarios.models.written import Answer

METHODS = "cloud-only,upload,light,names,costeer@1"
PAIRS = "names/light,names/costeer@1,light/cloud-only,costeer/names"
AMONG = "light,names,costeer@1"
WORTH = (0.05, 0.1)
"""Nats that a name of the note is worth where the device chooses among its answers."""


def against(first: Sequence[Answer], second: Sequence[Answer]) -> dict[str, Estimate]:
    """What `first` has more than `second`: nats a token by the informed cloud, times the facts."""
    logp = [
        ([a.upload_logp for a in some], [float(a.tokens) for a in some]) for some in (first, second)
    ]
    cases = [1.0] * len(first)
    told = [([float(a.note_facts) for a in some], cases) for some in (first, second)]
    return {"upload_logp": difference(*logp), "note_facts": quotient(*told)}


def row(answers: Sequence[Answer], upload: Sequence[Answer]) -> dict[str, Any]:
    """One rule's figures: estimates, and plain counts."""
    tokens = [float(a.tokens) for a in answers]
    rouges = [a.rouge1 for a in answers if a.rouge1 is not None]
    return {
        "upload_logp": ratio([a.upload_logp for a in answers], tokens),
        "cloud_logp": ratio([a.cloud_logp for a in answers], tokens),
        "less_upload": against(answers, upload),
        "note_facts": sum(a.note_facts for a in answers),
        "facts": sum(a.facts for a in answers),
        "of_facts": sum(a.of_facts for a in answers),
        "rouge1": mean(rouges) if rouges else None,
        "differs": sum(a.diverged for a in answers) / sum(tokens),
    }


def table(result: Evaluation, among: str = AMONG) -> dict[str, dict[str, Any]]:
    """The rows by name, those of the device's own choice `among` some last."""
    named = {name: found.answers for name, found in result.results.items()}
    several = {n: r for n, r in result.results.items() if n in among.split(",")}
    if len(several) > 1:
        for worth in WORTH:
            best = chosen(replace(result, results=several), worth)
            named[f"chosen, {worth:g} nats a name"] = best.answers
    return {name: row(answers, named["upload"]) for name, answers in named.items()}


def within(one: Estimate, digits: int) -> str:
    """An estimate and its interval as the page has them."""
    return f"{one.value:.{digits}f} [{one.low:.2f}, {one.high:.2f}]"


def line(name: str, found: dict[str, Any]) -> str:
    """One line of the page's table."""
    less = found["less_upload"]
    cells = [
        f"`{name}`",
        within(found["upload_logp"], 3),
        within(less["upload_logp"], 3),
        within(found["cloud_logp"], 3),
        str(found["note_facts"]),
        within(less["note_facts"], 2),
        f"{found['facts']} of {found['of_facts']}",
        "" if found["rouge1"] is None else f"{found['rouge1'].value:.3f}",
        f"{found['differs']:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def paired(results: dict[str, Result], pairs: str) -> dict[str, dict[str, Estimate]]:
    """`names/light,...`: the first of each against the second, where both were measured."""
    split = [pair.split("/") for pair in pairs.split(",")]
    return {
        f"{one} against {other}": against(results[one].answers, results[other].answers)
        for one, other in split
        if {one, other} <= set(results)
    }


def main() -> None:
    options = parser(__doc__, METHODS)
    options.add_argument("--generate", type=int, default=64)
    options.add_argument("--codec", default="topk:1024")
    options.add_argument("--pairs", default=PAIRS)
    options.add_argument("--among", default=AMONG)
    asked = options.parse_args()
    rules = parse_all(asked.methods)
    if "upload" not in {rule.name for rule in rules}:
        options.error("--methods must name upload: the others are paired with it")
    kept = opened(asked)
    plan = Plan(rules, kept.lengths, asked.generate, asked.codec)
    result = evaluate(kept.cases, kept.pair, plan, kept.store)
    found = table(result, asked.among)
    print("| rule | log p with note | minus upload's own | without | facts of the note |"
          " / upload's | of the reference | ROUGE-1 | differs |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for name, one in found.items():
        print(line(name, one))
    pairs = paired(result.results, asked.pairs)
    print("\n| paired | log p with note | facts of the note |\n|---|---|---|")
    for name, more in pairs.items():
        print(
            f"| {name} | {within(more['upload_logp'], 3)} | {within(more['note_facts'], 2)} times |"
        )
    print(json.dumps({"cases": len(kept.cases), "rules": plain(found), "paired": plain(pairs)}))


if __name__ == "__main__":
    main()
