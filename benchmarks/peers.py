"""What the peers need: the same weights in their formats, and their programs, kept in the cache."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.weights import cache_dir, fetch_smollm2

NODE_LLAMA_CPP = "3.22.1"


class Skipped(Exception):
    """This peer is not run here, and why."""


def bundle(target: str = "cpu-int8") -> Path:
    """SmolLM2-135M for `target`, exported at the first call and when the recipe has changed."""
    from edge_runtime.bundle import open_bundle
    from edge_runtime.errors import BundleError
    from export.recipes import recipe

    out = cache_dir() / "benchmarks" / target
    try:
        current = open_bundle(out, check=False).manifest.recipe == recipe(target).options()
    except BundleError:
        current = False
    if not current:
        from export.pipeline import export_bundle

        export_bundle("smollm2-135m", out, target=target, verify=False, replace=True)
    return out


def q8_gguf() -> Path:
    """SmolLM2-135M as Q8_0, made from the published file with gguf's own quantizer."""
    source = fetch_smollm2()
    out = cache_dir() / "benchmarks" / "smollm2-135m.Q8_0.gguf"
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        _requantize(source, out.with_suffix(".part"))
        out.with_suffix(".part").rename(out)
    return out


def _requantize(source: Path, out: Path) -> None:
    import gguf
    from gguf import quants

    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for field in reader.fields.values():
        if field.name == gguf.Keys.General.ARCHITECTURE or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    q8 = gguf.GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        data = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if data.ndim == 1:
            writer.add_tensor(tensor.name, data)
        else:
            writer.add_tensor(tensor.name, quants.quantize(data, q8), raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def node_llama_cpp() -> Path:
    """Folder with node-llama-cpp and its CPU binaries for this machine, installed if need be."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Skipped("node and npm are not installed")
    folder = cache_dir() / "benchmarks" / f"node-llama-cpp-{NODE_LLAMA_CPP}"
    if (folder / "complete").is_file():
        return folder
    machine = {"x86_64": "linux-x64", "aarch64": "linux-arm64", "arm64": "mac-arm64-metal"}
    binaries = machine.get(platform.machine())
    if binaries is None:
        raise Skipped(f"node-llama-cpp has no binaries for {platform.machine()}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text("{}")
    packages = [f"node-llama-cpp@{NODE_LLAMA_CPP}", f"@node-llama-cpp/{binaries}@{NODE_LLAMA_CPP}"]
    command = ["npm", "install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund"]
    run = subprocess.run(
        [*command, *packages], cwd=folder, capture_output=True, text=True, check=False, timeout=600
    )
    if run.returncode:
        said = (run.stderr.strip().splitlines() or ["npm failed"])[-1]
        raise Skipped(f"node-llama-cpp could not be installed: {said}")
    (folder / "complete").write_text("")
    return folder


def genai_folder() -> Path:
    """A folder for onnxruntime-genai: the builder's graph, 8-bit blocks of 32, one file."""
    out = cache_dir() / "benchmarks" / "genai-int8"
    if (out / "complete").is_file():
        return out
    try:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
        )
        from onnxruntime_genai.models.builder import create_model
    except ImportError as error:
        raise Skipped(f"a library is not installed: {error.name}") from error
    source = fetch_smollm2()
    work = cache_dir() / "benchmarks" / "genai-fp32"
    hf = cache_dir() / "benchmarks" / "hf"
    _as_folder(source, hf)
    create_model("", str(hf), str(work), "fp32", "cpu", str(work / "cache"))
    model = onnx.load(work / "model.onnx")
    config = DefaultWeightOnlyQuantConfig(
        block_size=32, is_symmetric=True, accuracy_level=4, bits=8
    )
    quantizer = MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    out.mkdir(parents=True, exist_ok=True)
    onnx.save_model(
        quantizer.model.model,
        str(out / "model.onnx"),
        save_as_external_data=True,
        location="model.onnx.data",
    )
    for file in work.glob("*.json"):
        shutil.copy(file, out)
    for file in work.glob("*.model"):
        shutil.copy(file, out)
    (out / "complete").write_text("")
    return out


def _as_folder(source: Path, out: Path) -> None:
    if (out / "config.json").is_file():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    model.config.architectures = ["LlamaForCausalLM"]
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(out)
    (out / "tokenizer.model").unlink(missing_ok=True)


def tokens_file(make: Callable[[int], list[int]]) -> Path:
    """The token ids for a peer that is not Python."""
    path = cache_dir() / "benchmarks" / "tokens.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(make(1024)))
    return path


def without_amx(folder: Path) -> Path:
    """A copy of `folder` whose llama.cpp has no AMX build (only the binaries are copied)."""
    if "amx" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        raise Skipped("this processor has no AMX anyway")
    copy = folder.with_name(folder.name + "-no-amx")
    if not (copy / "complete").is_file():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy, symlinks=True)
        for file in copy.glob(
            "node_modules/@node-llama-cpp/*/bins/*/libggml-cpu-sapphirerapids.so"
        ):
            file.unlink()
    return copy
