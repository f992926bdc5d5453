"""Embedding and head that a file stores twice although they are one matrix.

GGUF files of tied models often hold the matrix once as embedding and once as head, rounded to
different types, and transformers then loads the model as untied: a bundle would carry the matrix
twice, and the embedding in the poorer rounding. What tells such a pair is its content. Two
matrices that were trained apart differ by more than their own size; one matrix rounded twice
differs by the rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from export.sources import ModelSource
from export.verify import kl, log_softmax, torch_reference

ROUNDING = 0.3
"""Largest difference, relative to the matrix's norm, that rounding explains: 2-bit types reach it,
matrices that have nothing to do with each other differ by 1.4."""

SAME_MODEL_KL = 0.02
"""Nats a token between the model as stored and as shared, at most: beyond it, sharing is a change
of the model and both are kept."""


def share_table(
    model: Any, source: ModelSource, texts: Sequence[Sequence[int]]
) -> dict[str, Any] | None:
    """Tie the embedding and head of `model` where they are one matrix; what was found, or None.

    Bit for bit equal tensors are shared as they are. Of a GGUF file's two roundings the one with
    more bits is kept for both, if on `texts` the model says the same with it. None: there is one
    matrix already.
    """
    import torch

    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if embedding.data_ptr() == head.data_ptr():
        return None
    if torch.equal(embedding, head):
        _tie(model, head)
        return {"shared": True, "difference": 0.0, "kl": 0.0}
    with torch.inference_mode():
        difference = float((embedding - head).norm() / head.norm())
    found: dict[str, Any] = {"shared": False, "difference": difference}
    if not source.gguf or difference > ROUNDING:
        return found
    types, kept = _finer(source)
    found |= {"stored": types, "kept": kept}
    stored = [log_softmax(torch_reference(model)(text, len(text) - 1)) for text in texts]
    _tie(model, head if kept == "head" else embedding)
    found["kl"] = sum(
        kl(p, q)
        for text, exact in zip(texts, stored, strict=True)
        for p, q in zip(
            exact, log_softmax(torch_reference(model)(text, len(text) - 1)), strict=True
        )
    ) / sum(map(len, stored))
    found["shared"] = bool(found["kl"] <= SAME_MODEL_KL)
    if not found["shared"]:
        model.get_input_embeddings().weight = embedding
        model.get_output_embeddings().weight = head
        model.config.tie_word_embeddings = False
    return found


def _tie(model: Any, weight: Any) -> None:
    model.get_input_embeddings().weight = weight
    model.get_output_embeddings().weight = weight
    model.config.tie_word_embeddings = True


def _finer(source: ModelSource) -> tuple[dict[str, str], str]:
    """How a GGUF file stores the two, and which of them has more bits a weight."""
    from gguf import GGUFReader

    names = {"token_embd.weight": "embedding", "output.weight": "head"}
    tensors = {names[t.name]: t for t in GGUFReader(source.path).tensors if t.name in names}
    types = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    return types, max(tensors, key=lambda name: (int(tensors[name].n_bytes), name == "head"))
