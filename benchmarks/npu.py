"""The figures in docs/npu.md: whole models, single layers and SoCs on the HTP simulator.

    python -m benchmarks.npu whole --model smollm2-135m --target npu-qnn
    python -m benchmarks.npu layer --model qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
    python -m benchmarks.npu socs --model smollm2-135m
    python -m benchmarks.npu answer NPU_BUNDLE CPU_BUNDLE --backend simulator --tokens 6

Each prints one JSON object as its last line. No phone is involved: simulator times say nothing
about a phone's speed, so none are reported as such.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer

from edge_runtime.branches import open_branches
from edge_runtime.bundle import open_bundle
from edge_runtime.candidates import CandidateSet
from edge_runtime.device import SteeredDevice
from edge_runtime.npu.branches import NpuBranches
from edge_runtime.rules import PRESETS
from edge_runtime.steering import log_softmax
from edge_runtime.text import Text
from export.npu.build import NpuBuild, NpuOptions, build
from export.npu.calibrate import shipped_prompts
from export.npu.compile import HTP
from export.npu.pipeline import export_npu
from export.npu.socs import SOCS, Soc, soc
from export.runner import usable_threads
from export.sources import load_language, load_model, resolve

app = typer.Typer(add_completion=False)
Model = Annotated[str, typer.Option(help="As for costeer export.")]


def tell(what: str, done: float = 0.0) -> None:
    """Progress to stderr."""
    print(f"{100 * done:3.0f} % {what}", file=sys.stderr, flush=True)


@app.command()
def whole(model: Model = "smollm2-135m", target: str = "npu-qnn", soc_name: str = "SM8650") -> None:
    """Export a whole model, run it on the simulator, print its report."""
    with tempfile.TemporaryDirectory() as folder:
        options = NpuOptions(target=target, soc=soc(soc_name))
        made = export_npu(model, Path(folder) / "bundle", options, progress=tell)
    assert made.report is not None
    made.report.pop("coverage_by_graph")
    print(json.dumps(made.report))


@app.command()
def layer(model: Model = "smollm2-135m", target: str = "npu-qnn", layers: int = 1) -> None:
    """The first layers and the head of a model, on the simulator, against the same in float."""
    loaded, prompts = _load(model, layers)
    with tempfile.TemporaryDirectory() as folder:
        made = build(
            loaded,
            Path(folder),
            NpuOptions(target=target, layers=layers, past=256),
            calibration=prompts,
            progress=tell,
        )
        row = _sizes(made) | {
            "model": Path(model).name,
            "layers": layers,
            "target": target,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in loaded.state_dict(),
            "kl": {
                backend: _divergence(Path(folder), made, loaded, prompts[0][:24], backend)
                for backend in ("cpu", "simulator")
            },
        }
    print(json.dumps(row))


@app.command()
def socs(model: Model = "smollm2-135m", only: str = "") -> None:
    """One layer and the head compiled for every SoC in the table (or `only` one), both recipes."""
    loaded, prompts = _load(model, 1)
    rows = []
    for entry in [soc(only)] if only else SOCS:
        for target in ("npu-qnn", "npu-qnn-w8a16"):
            rows.append(_compiles(loaded, prompts, entry, target))
            tell(f"{entry.name} {target}: {rows[-1]}")
    print(json.dumps(rows))


@app.command()
def answer(bundle: Path, against: Path, tokens: int = 24, backend: str = "cpu") -> None:
    """The same greedy steered answer from an NPU bundle and from a CPU one.

    The CPU bundle's agnostic branch stands in for the cloud of both. Where they choose
    differently the CPU's token is taken, so that every position is compared.
    """
    ours, theirs = open_bundle(bundle, force=True), open_bundle(against)
    text = Text.open(theirs)
    prompts = text.prompts("Suggest a snack for tonight.", "I am allergic to peanuts.")
    pair = [
        NpuBranches.open(ours, backend=backend, threads=usable_threads()),
        open_branches(theirs),
    ]
    devices = [SteeredDevice(each, prompts, PRESETS["light"]) for each in pair]
    for device in devices:
        device.prefill()
    chosen, differing = [], []
    for position in range(tokens):
        base = log_softmax(pair[1].logits()[1])
        cloud = CandidateSet(np.arange(len(base)), base, full=True)
        npu, cpu = (device.choose(position, cloud, device.head(cloud)) for device in devices)
        chosen.append(cpu.token)
        if npu.token != cpu.token:
            differing.append({"position": position, "margin": round(cpu.margin, 4)})
        for device in devices:
            device.extend([cpu.token])
        tell(f"token {position}: {npu.token} and {cpu.token}")
    row = {"tokens": tokens, "same": tokens - len(differing), "differing": differing}
    print(json.dumps(row | {"backend": backend, "text": text.decode(chosen)}))


def _load(model: str, layers: int) -> tuple[Any, list[list[int]]]:
    source = resolve(model)
    language, loaded = load_language(source), load_model(source)
    loaded.model.layers = loaded.model.layers[:layers]
    text = Text(language.tokenizer, language.template)
    return loaded, shipped_prompts(lambda query: text.encode(text.chat(query)))


def _compiles(loaded: Any, prompts: list[list[int]], entry: Soc, target: str) -> dict[str, Any]:
    row: dict[str, Any] = {"soc": entry.name, "htp": f"v{entry.architecture}", "target": target}
    if target == "npu-qnn" and not entry.float16:
        return row | {"compiles": False, "why": "no fp16"}
    with tempfile.TemporaryDirectory() as folder:
        options = NpuOptions(target=target, soc=entry, layers=1, past=256)
        return row | _sizes(build(loaded, Path(folder), options, calibration=prompts))


def _sizes(made: NpuBuild) -> dict[str, Any]:
    return {
        "compiles": True,
        "on_htp": all(set(each.coverage.nodes) == {HTP} for each in made.compiled.values()),
        "nodes": {name: each.coverage.nodes.get(HTP, 0) for name, each in made.compiled.items()},
        "binary_mb": {name: round(each.binary_mb, 2) for name, each in made.compiled.items()},
        "compile_s": {name: each.seconds for name, each in made.compiled.items()},
    }


def _divergence(
    folder: Path, made: NpuBuild, loaded: Any, ids: list[int], backend: str
) -> list[float]:
    """KL(float || NPU) in nats of both rows: after a prefill chunk, and after one decode step."""
    import torch

    config = loaded.config
    branches = NpuBranches(
        folder,
        made.section,
        SimpleNamespace(
            vocabulary_size=config.vocab_size,
            hidden=config.hidden_size,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None)
            or config.hidden_size // config.num_attention_heads,
            layers=len(loaded.model.layers),
        ),
        backend=backend,
        threads=usable_threads(),
    )
    rows = [ids[:-1], ids[:-4]]
    branches.prefill(*rows)
    found = [log_softmax(branches.logits().astype(np.float64))]
    branches.extend(ids[-1:])
    found.append(log_softmax(branches.logits().astype(np.float64)))
    out = []
    for row, prompt in enumerate(rows):
        with torch.inference_mode():
            logits = loaded(torch.tensor([prompt + ids[-1:]]), use_cache=False).logits[0, -2:]
        wanted = log_softmax(logits.numpy().astype(np.float64))
        out += [
            float((np.exp(wanted[at]) * (wanted[at] - found[at][row])).sum()) for at in range(2)
        ]
    return [round(value, 6) for value in out]


if __name__ == "__main__":
    app()
