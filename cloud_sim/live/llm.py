"""The cloud model over transformers: sequences with their own KV cache, many in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cloud_sim.live.load import Loaded, load
from cloud_sim.live.ragged import ATTENTION, KeyValues, Span
from cloud_sim.model import Logprobs, ScoreRequest
from edge_runtime.weights import Progress

PASS_TOKENS = 512
"""New tokens in one forward pass, all sequences together: a longer prompt is cut into chunks, so
that memory stays bounded."""


class TransformersModel:
    """A frozen causal LM (`cloud_sim.model.CloudModel`) on CPU or CUDA.

    Log-probabilities are `log_softmax` of the logits in float32 whatever the weights' format (in
    float64 for a float64 model). Calls must come from one thread at a time
    (`cloud_sim.live.engine` sees to that); `fork` and `close` touch only their own sequence.
    """

    def __init__(self, loaded: Loaded, pass_tokens: int = PASS_TOKENS) -> None:
        """`loaded` with `ragged.ATTENTION`: any other would see no token before the pass's own,
        without a word, so it is a ValueError."""
        attention = loaded.model.config._attn_implementation
        if attention != ATTENTION:
            raise ValueError(f"loaded with attention {attention!r}, needs {ATTENTION!r}")
        self._loaded = loaded
        self._model = loaded.model
        self._device = next(loaded.model.parameters()).device
        self._pass_tokens = pass_tokens
        self.name = loaded.name
        self.vocabulary = loaded.text.fingerprint
        self.vocabulary_size = int(loaded.model.get_output_embeddings().weight.shape[0])
        self.end_ids = loaded.end_ids
        self.held: set[KeyValues] = set()
        """Sequences that are open."""

    @classmethod
    def open_source(
        cls,
        source: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        progress: Progress | None = None,
    ) -> TransformersModel:
        """The model that `source` names (see `cloud_sim.live.load`)."""
        return cls(load(source, device=device, dtype=dtype, attention=ATTENTION, progress=progress))

    def prompt(self, query: str) -> list[int]:
        """Token ids of the chat prompt around the public `query`."""
        return list(self._loaded.text.prompts(query).agnostic)

    def open(self) -> KeyValues:
        """A new, empty sequence."""
        sequence = KeyValues()
        self.held.add(sequence)
        return sequence

    def fork(self, sequence: KeyValues, keep: int) -> KeyValues:
        """A new sequence with a copy of the first `keep` tokens' keys and values."""
        new = sequence.fork(keep)
        self.held.add(new)
        return new

    def close(self, sequence: KeyValues) -> None:
        """Free the sequence's cache."""
        self.held.discard(sequence)
        sequence.clear()

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Logprobs]:
        """All requests in one forward pass (several, if they are long together).

        Each result is [1, V], or [n, V] with `every`; float32.
        """
        for request in requests:
            if not 0 <= request.keep <= request.sequence.length:
                held = request.sequence.length
                raise ValueError(f"asked to keep {request.keep} of {held} tokens")
        parts: list[list[Logprobs]] = [[] for _ in requests]
        done = [0] * len(requests)
        while any(done[i] < len(r.tokens) for i, r in enumerate(requests)):
            for i, rows in self._pass(requests, done):
                parts[i].append(rows)
        return [p[0] if len(p) == 1 else np.concatenate(p) for p in parts]

    def _pass(
        self, requests: Sequence[ScoreRequest], done: list[int]
    ) -> list[tuple[int, Logprobs]]:
        """One forward pass over what is left, up to the limit; advances `done`."""
        ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        wanted: list[int] = []
        owners: list[tuple[int, int]] = []
        for i, request in enumerate(requests):
            take = min(len(request.tokens) - done[i], self._pass_tokens - len(ids))
            if take <= 0:
                continue
            past = request.keep + done[i]
            start, stop = len(ids), len(ids) + take
            ids += request.tokens[done[i] : done[i] + take]
            positions += range(past, past + take)
            spans.append(Span(start, stop, request.sequence, past))
            done[i] += take
            rows = (
                range(start, stop)
                if request.every
                else range(stop - 1, stop)
                if done[i] == len(request.tokens)
                else range(0)
            )
            wanted += rows
            if rows:
                owners.append((i, len(rows)))
        logits = self._model(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            logits_to_keep=torch.tensor(wanted, device=self._device, dtype=torch.long),
            ragged=tuple(spans),
        ).logits[0]
        for span in spans:
            span.cache.length = span.past + span.stop - span.start
        if logits.dtype != torch.float64:
            logits = logits.float()
        logprobs = torch.log_softmax(logits, dim=-1).cpu().numpy()
        ends = np.cumsum([0, *(count for _, count in owners)])
        return [(i, logprobs[ends[n] : ends[n + 1]]) for n, (i, _) in enumerate(owners)]
