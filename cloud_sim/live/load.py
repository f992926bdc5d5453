"""A causal language model and its tokenizer from wherever the user keeps one.

Takes the short name of the embedded default, a local folder in transformers' form, a GGUF file, or
a hub id. Weights read from a GGUF file are dequantized: the cloud computes in floating point.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers

from edge_runtime.errors import EnvironmentFailure, UsageError, did_you_mean
from edge_runtime.gguf_reading import UNREADABLE, read_once, what_is_wrong
from edge_runtime.text import Text
from edge_runtime.vocabulary import end_ids
from edge_runtime.weights import ALIASES, Progress, fetch, hub_answers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES |= {"float64": torch.float64}

_FAILURES: tuple[type[Exception], ...] = (*UNREADABLE, ImportError)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run, and what surrounds it."""

    name: str
    model: Any
    """transformers' causal LM, on its device, in evaluation mode."""
    text: Text
    end_ids: tuple[int, ...]


def load(
    source: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str = "sdpa",
    progress: Progress | None = None,
) -> Loaded:
    """The model that `source` names, on `device` (a torch device) in `dtype`.

    `attention` is transformers' name of an attention implementation. Raises `UsageError` for a
    source, device or dtype that is none, `EnvironmentFailure` for a file that cannot be read.
    """
    if dtype not in DTYPES:
        raise UsageError("dtype", "no such number format", got=dtype, allowed=", ".join(DTYPES))
    where = _device(device)
    name, folder, arguments = _find(source, progress)
    with _one_line(source):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], attn_implementation=attention, **arguments
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **arguments)
    model = model.to(where).eval().requires_grad_(False)
    configured = model.generation_config.eos_token_id
    declared = configured if isinstance(configured, list) else [configured]
    text, ends = _language(tokenizer, declared)
    if progress is not None:
        progress(f"{name} is loaded", 1.0)
    return Loaded(name, model, text, ends)


def load_text(source: str, progress: Progress | None = None) -> tuple[Text, tuple[int, ...], int]:
    """Tokenizer and template, end tokens and vocabulary size of a model, without its weights."""
    _, folder, arguments = _find(source, progress)
    with _one_line(source):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **arguments)
        config = transformers.AutoConfig.from_pretrained(folder, **arguments)
    text, ends = _language(tokenizer, [])
    return text, ends, int(config.get_text_config().vocab_size)


def _find(source: str, progress: Progress | None) -> tuple[str, str, dict[str, Any]]:
    """Name, folder or hub id, and how transformers finds the model there."""
    tell = progress or (lambda what, done: None)
    if source in ALIASES:
        source, name = str(fetch(ALIASES[source], progress)), source
    else:
        name = Path(source).name
    path = Path(source).expanduser()
    tell(f"loading {name}", 0.0)
    if path.is_file():
        _check_gguf(path)
        return name, str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        return name, str(path), {"local_files_only": True, "use_safetensors": True}
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        local = not hub_answers(huggingface_hub.constants.ENDPOINT)
        return name, source, {"local_files_only": local, "use_safetensors": True}
    raise UsageError(
        "model",
        "it is no file, no folder and no hub id",
        got=source,
        allowed=f"{', '.join(ALIASES)}, a folder, a .gguf file, or OWNER/NAME",
        todo=did_you_mean(source, ALIASES) if len(ALIASES) > 1 else "",
    )


def _language(tokenizer: Any, declared: list[int | None]) -> tuple[Text, tuple[int, ...]]:
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    known = [int(end) for end in (*declared, tokenizer.eos_token_id) if end is not None]
    ends = end_ids(backend, known)
    eos = (backend.id_to_token(ends[0]) or "") if ends else ""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", "")
    return Text(backend, template or "", bos=tokenizer.bos_token or "", eos=eos), ends


@contextlib.contextmanager
def _one_line(source: str) -> Iterator[None]:
    """Whatever goes wrong in loading, as one line."""
    try:
        with _silence(), read_once():
            yield
    except _FAILURES as error:
        raise EnvironmentFailure(
            "model",
            f"it cannot be loaded: {what_is_wrong(error)}",
            got=source,
            todo="Check the name, the file, and the connection to the hub",
        ) from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            "device", "no such device", got=name, allowed="cpu, cuda, cuda:N"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFailure(
            "device", "this machine or this torch has no CUDA", got=name, todo="Use --device cpu"
        )
    return device


def _check_gguf(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise EnvironmentFailure(
            "model", "the file is no GGUF file", got=path, todo="Name a .gguf file or a folder"
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Loading talks a lot, to standard output among others; the user hears from us alone."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers.logging.set_verbosity(before)
