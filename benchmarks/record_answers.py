"""Record steered answers of a real pair of models, position by position, to replay at will.

    python -m benchmarks.record_answers --cloud LARGE --device SMALL --data FILE.jsonl --out DIR

Greedy, `softmax(L + gain * D)` over the cloud's 64 best tokens. For each position the recording
keeps what any schedule may ask on the way of the answer: the cloud's 64 best, both rows of the
small model over these, and the aware row's own 64 best. Several answers are made in one pass, as
rows of one sequence that do not see each other. That sums in another order than one at a time
would, but the recording is the reference: all that is replayed from it is exact.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from cloud_sim.live.load import load

BEST = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """Keys and values [layers, heads, n, size] of a prompt, and its last hidden state."""

    keys: torch.Tensor
    values: torch.Tensor
    hidden: torch.Tensor


def prefill(model: Any, ids: list[int]) -> Prompt:
    """One prompt through `model`."""
    cache = DynamicCache()
    hidden = model.model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return Prompt(
        torch.stack([layer.keys[0] for layer in cache.layers]),
        torch.stack([layer.values[0] for layer in cache.layers]),
        hidden.last_hidden_state[0, -1],
    )


class Packed:
    """Answers to `prompts` as rows of one sequence; row r goes on from prompt `of[r]`."""

    def __init__(self, model: Any, prompts: list[Prompt], of: list[int]) -> None:
        self.model = model
        self.cache = DynamicCache()
        for layer in range(len(prompts[0].keys)):
            keys = torch.cat([p.keys[layer] for p in prompts], 1)[None].to(model.dtype)
            values = torch.cat([p.values[layer] for p in prompts], 1)[None].to(model.dtype)
            self.cache.update(keys, values, layer)
        lengths = [p.keys.shape[2] for p in prompts]
        ends = np.cumsum(lengths)
        self.mask = torch.zeros(len(of), int(ends[-1]), dtype=torch.bool)
        for row, prompt in enumerate(of):
            self.mask[row, ends[prompt] - lengths[prompt] : ends[prompt]] = True
        self.positions = torch.tensor([[lengths[prompt] for prompt in of]])
        self.logits = self._head(torch.stack([prompts[prompt].hidden for prompt in of]))

    def push(self, tokens: list[int]) -> None:
        """One token more for each row."""
        dtype = self.model.dtype
        self.mask = torch.cat([self.mask, torch.eye(len(tokens), dtype=torch.bool)], 1)
        hidden = torch.zeros(1, 1, *self.mask.shape, dtype=dtype)
        out = self.model.model(
            torch.tensor([tokens]),
            attention_mask=hidden.masked_fill(~self.mask, torch.finfo(dtype).min),
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.positions = self.positions + 1
        self.logits = self._head(out.last_hidden_state[0])

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model.lm_head(hidden.to(self.model.dtype)).float()
        return logits


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to be made."""

    name: str
    gain: float
    query: str
    agnostic: Prompt
    """The cloud's."""
    small: tuple[Prompt, Prompt]
    """The small model's: aware, agnostic."""


FIELDS = ("tokens", "ids", "logprobs", "scores", "own_ids", "own_logprobs")


@torch.inference_mode()
def record(
    cloud: Any,
    small: Any,
    jobs: list[Job],
    tokens: int,
    end_ids: tuple[int, ...],
    until: float = float("inf"),
) -> dict[str, dict[str, Any]]:
    """The answers, as arrays by position; shorter ones if `time.monotonic()` passes `until`."""
    count = len(jobs)
    shared = list(dict.fromkeys(id(job.agnostic) for job in jobs))
    of = [shared.index(id(job.agnostic)) for job in jobs]
    firsts = [jobs[of.index(prompt)] for prompt in range(len(shared))]
    base = Packed(cloud, [job.agnostic for job in firsts], of)
    both = [job.small[branch] for branch in (0, 1) for job in firsts]
    rows = Packed(small, both, [*of, *(prompt + len(shared) for prompt in of)])
    kept: list[dict[str, list[Any]]] = [{name: [] for name in FIELDS} for _ in jobs]
    done = [False] * count
    next_tokens: list[int] = []
    for step in range(tokens):
        if step:
            base.push(next_tokens)
            rows.push(next_tokens * 2)
        own = torch.log_softmax(rows.logits[:count], -1).topk(BEST)
        best = torch.log_softmax(base.logits, -1).topk(BEST)
        next_tokens = []
        for row, job in enumerate(jobs):
            ids, order = best.indices[row].sort()
            logprobs = best.values[row][order].half()
            scores = torch.stack([rows.logits[row][ids], rows.logits[row + count][ids]])
            steered = logprobs.float() + job.gain * (scores[0] - scores[1])
            next_tokens.append(int(ids[int(steered.argmax())]))
            if done[row]:
                continue
            values = (next_tokens[-1], ids, logprobs, scores, own.indices[row], own.values[row])
            for name, value in zip(FIELDS, values, strict=True):
                kept[row][name].append(np.asarray(value))
            done[row] = next_tokens[-1] in end_ids
        if all(done) or time.monotonic() > until:
            break
    return {
        job.name: {
            **{name: np.array(values) for name, values in kept[row].items()},
            "gain": np.array(job.gain),
            "prompts": np.array([job.agnostic.keys.shape[2], job.small[0].keys.shape[2]]),
            "query": np.array(job.query),
            "end_ids": np.array(end_ids),
            "vocabulary_size": np.array(base.logits.shape[-1]),
        }
        for row, job in enumerate(jobs)
    }


def save(folder: Path, name: str, arrays: dict[str, Any]) -> None:
    """Whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.npz"
    np.savez_compressed(temporary, **arrays)
    temporary.rename(folder / f"{name}.npz")


def answer_name(case: dict[str, Any], gain: float) -> str:
    """What the recording of an answer is called."""
    return f"{case['id']}@{gain:.3g}"


def made(folder: Path, case: dict[str, Any], gain: float) -> bool:
    """Whether an earlier run has made it: a stopped one goes on where it was."""
    return (folder / f"{answer_name(case, gain)}.npz").exists()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cloud", required=True)
    options.add_argument("--device", required=True)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--cases", type=int, default=40)
    options.add_argument("--tokens", type=int, default=128)
    options.add_argument("--note-tokens", type=int, default=500, help="longer notes are cut")
    options.add_argument("--gains", type=float, nargs="+", default=[0.4761904762, 1.0])
    options.add_argument("--at-once", type=int, default=5, help="cases in one pass")
    options.add_argument("--dtype", default="float32")
    chosen = options.parse_args()
    cloud, small = (load(name, dtype=chosen.dtype) for name in (chosen.cloud, chosen.device))
    lines = chosen.data.read_text(encoding="utf-8").splitlines()[: chosen.cases]
    cases = [json.loads(line) for line in lines]
    if not all({"input", "personalized_input"} <= case.keys() for case in cases):
        options.error("--data wants CoGenesis's lines, with `input` and `personalized_input`")
    cases = [c for c in cases if not all(made(chosen.out, c, gain) for gain in chosen.gains)]
    for begin in range(0, len(cases), chosen.at_once):
        began, jobs = time.perf_counter(), []
        for case in cases[begin : begin + chosen.at_once]:
            query = case["input"].strip()
            note = case["personalized_input"].rstrip().removesuffix(query).rstrip()
            note = small.text.decode(small.text.encode(note)[: chosen.note_tokens])
            ids = cloud.text.prompts(query, note)
            with torch.inference_mode():
                agnostic = prefill(cloud.model, list(ids.agnostic))
                both = (
                    prefill(small.model, list(ids.aware)),
                    prefill(small.model, list(ids.agnostic)),
                )
            jobs += [
                Job(answer_name(case, gain), gain, query, agnostic, both) for gain in chosen.gains
            ]
        answers = record(cloud.model, small.model, jobs, chosen.tokens, cloud.end_ids)
        for name, arrays in answers.items():
            save(chosen.out, name, arrays)
        print(f"case {begin} to {begin + chosen.at_once}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
