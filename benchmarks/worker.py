"""A peer in its own process: reads what to do, one JSON line each, answers with milliseconds.

    {"do": "one" | "two" | "candidates" | "prefill", "n": rounds, "past": 256, "length": 512}
    -> {"ms": [...]}

Only one peer is asked at a time, so all run under the same conditions, round by round.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np


class Peer(Protocol):
    """What a peer can do; each call is one round of it. `past` tokens are in the cache."""

    def ready(self, past: int) -> None: ...  # noqa: D102
    def one(self) -> None: ...  # noqa: D102
    def two(self) -> None: ...  # noqa: D102
    def prefill(self, length: int) -> None: ...  # noqa: D102


def tokens(count: int) -> list[int]:
    """The same arbitrary token ids for every peer."""
    return [int(t) for t in np.random.default_rng(0).integers(1000, 40_000, count)]


def serve(peer: Peer, more: dict[str, Callable[[], None]] | None = None) -> None:
    """Answer requests until standard input ends."""
    print(json.dumps({"ready": True}), flush=True)
    past = -1
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] != "prefill" and past != asked["past"]:
            past = asked["past"]
            peer.ready(past)
        if asked["do"] == "prefill":
            past = -1
            length = asked["length"]
            work = lambda: peer.prefill(length)  # noqa: E731, B023
        else:
            work = (more or {}).get(asked["do"]) or getattr(peer, asked["do"])
        spent = []
        for _ in range(asked["n"]):
            began = time.perf_counter()
            work()
            spent.append((time.perf_counter() - began) * 1e3)
        print(json.dumps({"ms": spent}), flush=True)


class Ours:
    """Two rows in one call, this product's runtime."""

    def __init__(self, bundle: str) -> None:
        from edge_runtime.branches import TwoBranches
        from edge_runtime.bundle import open_bundle

        self.branches = TwoBranches.open(open_bundle(bundle, check=False), max_length=1024)
        ids = np.random.default_rng(1).permutation(self.branches.vocabulary_size)[:64]
        self.ids = np.sort(ids)
        self.past = 0

    def ready(self, past: int) -> None:
        """Prompts of `past` tokens in both rows."""
        self.past = past
        self.branches.prefill(tokens(past), tokens(past))

    def one(self) -> None:
        """The aware row alone, without a head."""
        self.branches._decoder.one(0, [504], self.past)

    def two(self) -> None:
        """Both rows and the full head."""
        self.branches.rollback(0)
        self.branches.extend([504])
        self.branches.logits()

    def candidates(self) -> None:
        """Both rows and the head over 64 candidates."""
        self.branches.rollback(0)
        self.branches.extend([504])
        self.branches.logits(self.ids)

    def both(self) -> None:
        """Both rows without a head, as `one` is."""
        self.branches.rollback(0)
        self.branches.extend([504])

    def prefill(self, length: int) -> None:
        """One row of `length` tokens (the other has one), and the candidates' head."""
        self.branches.prefill(tokens(length), [504])
        self.branches.logits(self.ids)


class Floor:
    """What memory allows: reads, once, as many bytes as our step with 64 candidates has to."""

    def __init__(self, bundle: str) -> None:
        from edge_runtime.bundle import open_bundle

        self.bundle = open_bundle(bundle, check=False)
        self.one = self.two = self.read

    def ready(self, past: int) -> None:
        """Two blocks that are that many bytes together."""
        from edge_runtime.roofline import step_bytes

        count = sum(step_bytes(self.bundle, past)) // 8
        self.a, self.b = np.ones(count, np.float32), np.ones(count, np.float32)

    def read(self) -> None:
        """A dot product, which adds little arithmetic to the reading."""
        np.dot(self.a, self.b)

    def prefill(self, length: int) -> None:
        """Nothing: a prefill is bound by arithmetic."""


class Authors:
    """The paper's released form, written anew: two torch passes, 20 rounds over the vocabulary."""

    def __init__(self, weights: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache

        torch.set_num_threads(1)
        self.torch, self.new_cache = torch, DynamicCache
        path = Path(weights)
        self.model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        ).eval()
        self.caches: list = []
        self.past = 0

    def _pass(self, cache: object, ids: list[int]) -> object:
        with self.torch.inference_mode():
            out = self.model(
                input_ids=self.torch.tensor([ids]), past_key_values=cache, logits_to_keep=1
            )
        return out.logits[0, -1]

    def ready(self, past: int) -> None:
        """Two caches."""
        self.past = past
        self.caches = [self.new_cache() for _ in range(2)]
        for cache in self.caches:
            self._pass(cache, tokens(past))

    def one(self) -> None:
        """One pass."""
        self._pass(self.caches[0], [504])
        self.caches[0].crop(self.past)

    def two(self) -> None:
        """Two passes, then the online-learning rounds on the whole vocabulary."""
        torch = self.torch
        aware, agnostic = (torch.log_softmax(self._pass(c, [504]), -1) for c in self.caches)
        for cache in self.caches:
            cache.crop(self.past)
        alpha, beta, lam, eta = 2.0, 1.0, 2.0, 10.0
        base, delta = agnostic, aware - agnostic
        x, u = base, torch.zeros_like(base)
        for t in range(1, 21):
            u = u + alpha * (x - base) + beta * delta
            x = torch.log_softmax((t * lam * base + u + x / eta) / (t * lam + 1 / eta), -1)

    def prefill(self, length: int) -> None:
        """One row."""
        self._pass(self.new_cache(), tokens(length))


class GenAI:
    """onnxruntime-genai's Generator, one or two rows."""

    def __init__(self, folder: str) -> None:
        import onnxruntime_genai as og

        self.og, self.model = og, og.Model(folder)
        self.generators: dict[int, object] = {}
        self.past = 0

    def _generator(self, rows: int, length: int) -> object:
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=1024, batch_size=rows, do_sample=False)
        generator = self.og.Generator(self.model, params)
        generator.append_tokens(np.array([tokens(length)] * rows, np.int32))
        return generator

    def ready(self, past: int) -> None:
        """A generator a number of rows."""
        self.past = past
        self.generators = {}

    def _step(self, rows: int) -> None:
        # Several rows cannot be rewound: they go on, and begin anew before they are 5 % longer.
        generator = self.generators.get(rows)
        if generator is None or generator.token_count() > self.past + 12:  # type: ignore[attr-defined]
            generator = self.generators[rows] = self._generator(rows, self.past)
            generator.generate_next_token()  # type: ignore[attr-defined]  # the prefill
        generator.generate_next_token()  # type: ignore[attr-defined]

    def one(self) -> None:
        """One row."""
        self._step(1)

    def two(self) -> None:
        """Two rows of one length."""
        self._step(2)

    def prefill(self, length: int) -> None:
        """One row."""
        self._generator(1, length).get_logits()  # type: ignore[attr-defined]


PEERS: dict[str, Callable[[str], Peer]] = {
    "ours": Ours,
    "floor": Floor,
    "authors": Authors,
    "genai": GenAI,
}


if __name__ == "__main__":
    made = PEERS[sys.argv[1]](sys.argv[2])
    extra = {"candidates": made.candidates, "both": made.both} if isinstance(made, Ours) else {}
    serve(made, extra)
