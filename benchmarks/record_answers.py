"""Record steered answers of a real pair of models, position by position, to replay at will.

    python -m benchmarks.record_answers --cloud LARGE --device SMALL --data X.jsonl --out DIR

Greedy, `softmax(L + gain * D)` over the cloud's 64 best tokens, both models in bfloat16. For each
position the recording keeps all that any schedule may ask on the way of the answer: the cloud's 64
best, both rows of the small model over these, and the aware row's own 64 best. Answers are made
many at once (padded batches), which sums in another order than one at a time would: the recording
is the reference, so near ties do not matter to what is replayed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from cloud_sim.live.load import Loaded, load

BEST = 64


class Rows:
    """Left-padded sequences that grow by one token each; each prompt in `times` rows."""

    def __init__(self, loaded: Loaded, prompts: list[list[int]], times: int) -> None:
        self.model = loaded.model
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        self.mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            self.mask[row, longest - len(prompt) :] = 1
        self.cache = DynamicCache()
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        for begin in range(0, longest, 128):
            end = min(longest, begin + 128)
            self.logits = self._run(ids[:, begin:end], self.mask[:, :end], positions[:, begin:end])
        self.cache.batch_repeat_interleave(times)
        self.mask = self.mask.repeat_interleave(times, 0)
        self.logits = self.logits.repeat_interleave(times, 0)

    def push(self, tokens: list[int]) -> None:
        """One token more for each."""
        ids = torch.tensor(tokens)[:, None]
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        self.logits = self._run(ids, self.mask, self.mask.sum(-1, keepdim=True) - 1)

    def _run(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits


def record(
    cloud: Loaded, small: Loaded, cases: list[tuple[str, str, str]], gains: list[float], tokens: int
) -> dict[str, dict[str, Any]]:
    """Answers to `cases` (id, query, note) at each gain, as arrays by position."""
    jobs = [(case, gain) for case in cases for gain in gains]
    prompts = [cloud.text.prompts(query, note) for _, query, note in cases]
    base = Rows(cloud, [list(p.agnostic) for p in prompts], len(gains))
    aware = Rows(small, [list(p.aware) for p in prompts], len(gains))
    agnostic = Rows(small, [list(p.agnostic) for p in prompts], len(gains))
    kept: list[dict[str, list[Any]]] = [
        {name: [] for name in ("tokens", "ids", "logprobs", "scores", "own_ids", "own_logprobs")}
        for _ in jobs
    ]
    done = [False] * len(jobs)
    for _ in range(tokens):
        own = torch.log_softmax(aware.logits, -1).topk(BEST)
        best = torch.log_softmax(base.logits, -1).topk(BEST)
        next_tokens = []
        for row, (_, gain) in enumerate(jobs):
            ids, order = best.indices[row].sort()
            logprobs = best.values[row][order].half()
            scores = torch.stack([aware.logits[row][ids], agnostic.logits[row][ids]])
            steered = logprobs.float() + gain * (scores[0] - scores[1])
            token = int(ids[int(steered.argmax())])
            next_tokens.append(token)
            if done[row]:
                continue
            into = kept[row]
            into["tokens"].append(token)
            into["ids"].append(ids.numpy().astype(np.uint32))
            into["logprobs"].append(logprobs.numpy())
            into["scores"].append(scores.numpy())
            into["own_ids"].append(own.indices[row].numpy().astype(np.uint32))
            into["own_logprobs"].append(own.values[row].numpy().astype(np.float16))
            done[row] = token in cloud.end_ids
        if all(done):
            break
        for rows in (base, aware, agnostic):
            rows.push(next_tokens)
    recorded = {}
    for row, ((case, query, _), gain) in enumerate(jobs):
        arrays = {name: np.array(values) for name, values in kept[row].items()}
        prompt = prompts[row // len(gains)]
        lengths = np.array([len(prompt.agnostic), len(prompt.aware)])
        recorded[f"{case}@{gain:g}"] = {**arrays, "gain": gain, "prompts": lengths, "query": query}
    return recorded


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cloud", required=True)
    options.add_argument("--device", required=True)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--cases", type=int, default=40)
    options.add_argument("--tokens", type=int, default=128)
    options.add_argument("--gains", type=float, nargs="+", default=[0.4761904762, 1.0])
    options.add_argument("--at-once", type=int, default=8, help="cases in one batch")
    chosen = options.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    cases = []
    for line in chosen.data.read_text(encoding="utf-8").splitlines()[: chosen.cases]:
        case = json.loads(line)
        query = case["input"].strip()
        note = case["personalized_input"].rstrip().removesuffix(query).rstrip()
        if not all((chosen.out / f"{case['id']}@{gain:g}.npz").exists() for gain in chosen.gains):
            cases.append((case["id"], query, note))
    cloud, small = load(chosen.cloud, dtype="bfloat16"), load(chosen.device, dtype="bfloat16")
    print(f"{len(cases)} cases to record", flush=True)
    for begin in range(0, len(cases), chosen.at_once):
        began = time.perf_counter()
        some = cases[begin : begin + chosen.at_once]
        for name, arrays in record(cloud, small, some, chosen.gains, chosen.tokens).items():
            temporary = chosen.out / f".{name}.npz"
            np.savez_compressed(temporary, **arrays)
            temporary.rename(chosen.out / f"{name}.npz")
        print(
            f"cases {begin} to {begin + len(some)}: {time.perf_counter() - began:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
