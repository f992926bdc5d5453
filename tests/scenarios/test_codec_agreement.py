"""What leaving candidates out changes, on real weights and the cases that ship with the product."""

from __future__ import annotations

import pytest

from cloud_sim.live.llm import TransformersModel
from cloud_sim.model import ScoreRequest
from edge_runtime.assembly import device_for
from edge_runtime.branches import open_branches
from edge_runtime.bundle import Bundle
from edge_runtime.candidates import codec
from edge_runtime.rules import method
from edge_runtime.text import Text
from scenarios.datasets import read

CASES, TOKENS = 3, 16


@pytest.mark.weights
def test_64_candidates_choose_as_the_whole_vocabulary_does(smollm2_bundle: Bundle) -> None:
    """At each position of the answer that the whole vocabulary gives: would 64 give that token?"""
    cloud = TransformersModel.open_source("smollm2-135m")
    text, rule = Text.open(smollm2_bundle), method("light")
    branches = open_branches(smollm2_bundle, max_length=512)
    full, top = codec("full"), codec("topk:64")
    same = asked = 0
    for case in read("notes", limit=CASES):
        device = device_for(
            smollm2_bundle,
            text,
            case.query,
            case.context,
            rule,
            max_tokens=TOKENS,
            branches=branches,
        )
        device.prefill()
        sequence, keep, new = cloud.open(), 0, tuple(cloud.prompt(case.query))
        for position in range(TOKENS):
            (row,) = cloud.score([ScoreRequest(cloud, sequence, keep, new)])
            keep, chosen = keep + len(new), []
            for form in (full, top):
                candidates = form.decode(form.encode(row[-1]))
                scores = device.head(candidates)
                chosen.append(device.choose(position, candidates, scores).token)
            asked += 1
            same += chosen[0] == chosen[1]
            if chosen[0] in device.end_ids:
                break
            new = (chosen[0],)
            device.extend(new)
        cloud.close(sequence)
    print(f"topk:64 chose the same token at {same} of {asked} positions")
    assert asked > CASES * TOKENS // 2
    assert same >= 0.98 * asked
