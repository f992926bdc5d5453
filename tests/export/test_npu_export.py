"""An NPU export from end to end on a tiny model: bundle, report, simulator, steered answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.branches import open_branches
from edge_runtime.bundle import Bundle, open_bundle
from edge_runtime.candidates import CandidateSet
from edge_runtime.device import Branches, SteeredDevice
from edge_runtime.errors import FELL_SHORT, BudgetExceeded, EnvironmentFailure, UsageError
from edge_runtime.npu import qnn
from edge_runtime.npu.branches import BACKEND_VARIABLE, NpuBranches
from edge_runtime.npu.manifest import NpuSection
from edge_runtime.rules import PRESETS
from edge_runtime.steering import log_softmax
from edge_runtime.text import Text
from export.npu.build import NpuOptions
from export.npu.compile import HTP
from export.npu.pipeline import export_npu
from export.npu.verify import CPU_CASES, GRAPHS, SIMULATED_TEXT, pass_marks
from export.pipeline import verify_existing
from tests.export.test_verify import KEYS
from tests.tiny import VOCABULARY_SIZE

pytestmark = [
    pytest.mark.npu,
    pytest.mark.skipif(
        not (qnn.available() and qnn.simulated()), reason="needs the [npu] extra on x86_64 Linux"
    ),
]

NEAR_TIE = 0.05
"""Two recipes may choose differently where the best two steered scores are this close."""


@pytest.fixture(scope="module")
def exported(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("npu") / "tiny"
    export_npu(str(tiny_model_dir), out, NpuOptions(past=384))
    return out


@pytest.fixture(scope="module")
def bundle(exported: Path) -> Bundle:
    return open_bundle(exported, force=True)


def test_the_report_has_the_form_of_a_cpu_target_s(exported: Path, bundle: Bundle) -> None:
    report = json.loads((exported / "export_report.json").read_text())
    assert report.keys() >= KEYS
    assert report["measured_on"] == "HTP simulator"
    assert report["coverage"] == {HTP: 1.0}
    assert report["rows_bit_equal"]
    assert report["positions"] == 8
    assert report["on_cpu_provider"]["cases"] == CPU_CASES
    assert set(report["context_binary_mb"]) == {*GRAPHS, "decode+head"}
    assert report["size_mb"] == pytest.approx(bundle.size_bytes / 1e6, abs=0.01)
    assert report["text_positions"] == 2 * (SIMULATED_TEXT - 1)
    assert set(report["mobile"]) == set(GRAPHS)
    assert report["kl_aware"] < 0.01
    assert report["kl_agnostic"] < 0.01
    assert bundle.manifest.ready == report["ready"]
    assert set(bundle.manifest.files) >= {"decode.onnx", "decode_ctx_qnn.bin", "embedding.bin"}


def test_verified_again_the_report_has_the_same_keys(
    exported: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    before = json.loads((copy / "export_report.json").read_text())
    row = verify_existing(copy, against=str(tiny_model_dir), simulate_cases=0).report
    assert row is not None
    assert row["measured_on"] == "CPU provider"
    of_compiling = {"compile_seconds", "compiler_peak_rss_mb", "simulator_seconds"}
    assert before.keys() - row.keys() == of_compiling
    assert row["kl_aware"] == pytest.approx(before["on_cpu_provider"]["kl_aware"], rel=1e-6)
    # The runtime alone, not the export: a tiny model, and 67 MB of interpreter and onnxruntime.
    assert row["load_ms"] > 0
    assert 30 < row["peak_rss_mb"] < 500 < row["export_peak_rss_mb"]


def test_without_a_simulator_verify_says_what_to_do(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.npu.qnn.available", lambda: False)
    with pytest.raises(EnvironmentFailure, match=r"not installed.*--simulate 0"):
        verify_existing(exported, against="unused")


def test_the_manifest_names_the_runtime_that_a_phone_needs(bundle: Bundle) -> None:
    assert bundle.manifest.libraries["onnxruntime-qnn"].startswith("2.")
    assert bundle.manifest.libraries["qairt"] == qnn.sdk_version() != "unknown"


def test_coupled_rows_are_not_ready(bundle: Bundle, exported: Path) -> None:
    section = NpuSection.model_validate(bundle.manifest.npu)
    report = json.loads((exported / "export_report.json").read_text())
    marks = [pass_marks(report | {"rows_bit_equal": equal}, section) for equal in (True, False)]
    assert [mark["rows_bit_equal"]["pass"] for mark in marks] == [True, False]


def test_the_runtime_opens_it_as_branches(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "simulator")
    prompts = Text.open(bundle).prompts("Where should we eat tonight?", "Maria lives in Porto.")
    logits = []
    for backend in ("simulator", "cpu"):
        monkeypatch.setenv(BACKEND_VARIABLE, backend)
        branches = open_branches(bundle)
        assert isinstance(branches, NpuBranches)
        assert branches.backend == backend
        branches.prefill(prompts.aware, prompts.agnostic)
        branches.extend([40])
        logits.append(log_softmax(branches.logits()))
    np.testing.assert_allclose(logits[0], logits[1], atol=0.05)
    monkeypatch.setenv(BACKEND_VARIABLE, "gpu")
    with pytest.raises(UsageError, match="COSTEER_NPU: no such NPU backend"):
        open_branches(bundle)
    monkeypatch.delenv(BACKEND_VARIABLE)
    with pytest.raises(BudgetExceeded, match=r"got 385 tokens; allowed 384"):
        open_branches(bundle, max_length=385)


def answer(branches: Branches, text: Text, tokens: list[int]) -> list[tuple[int, float]]:
    """(token, margin) at each position of a steered answer whose history is `tokens`."""
    prompts = text.prompts("Where should we eat tonight?", "Maria is allergic to peanuts.")
    device = SteeredDevice(branches, prompts, PRESETS["light"])
    device.prefill()
    rng = np.random.default_rng(3)
    out = []
    for position, token in enumerate(tokens):
        base = rng.normal(0, 3, VOCABULARY_SIZE)
        cloud = CandidateSet(
            np.arange(VOCABULARY_SIZE), log_softmax(base).astype(np.float32), full=True
        )
        chosen = device.choose(position, cloud, device.head(cloud))
        out.append((chosen.token, chosen.margin))
        device.extend([token])
    return out


def test_it_chooses_the_tokens_that_cpu_int8_chooses(bundle: Bundle, tiny_bundle: Bundle) -> None:
    history = np.random.default_rng(4).integers(40, VOCABULARY_SIZE, 24).tolist()
    text = Text.open(bundle)
    on_cpu = answer(open_branches(tiny_bundle), text, history)
    on_npu = answer(open_branches(bundle), text, history)
    differing = [margin for (a, margin), (b, _) in zip(on_cpu, on_npu, strict=True) if a != b]
    assert all(margin < NEAR_TIE for margin in differing)
    assert len(differing) <= 2


def test_the_integer_recipe_goes_all_the_way_and_ships_position_0(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Through the command line, as a user would."""
    out = tmp_path / "w8a16"
    command = [
        sys.executable, "-m", "costeer", "export", "--model", str(tiny_model_dir),
        "--out", str(out), "--target", "npu-qnn-w8a16", "--soc", "SM8350", "--past", "384",
        "--simulate", "0", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    row = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (0 if row["ready"] else FELL_SHORT), done.stderr
    assert (row["soc"], row["architecture"]) == ("SM8350", "v68")
    assert row["coverage"] == {HTP: 1.0}
    assert row["float_matmuls"] == 0
    bundle = open_bundle(out, force=True)
    section = NpuSection.model_validate(bundle.manifest.npu)
    text = Text.open(bundle)
    assert section.first_token == text.prompts("x").agnostic[0]
    with pytest.raises(UsageError, match="begin with one fixed token"):
        open_branches(bundle).prefill([99, 5], [99, 6])


def test_a_wrong_soc_or_past_is_refused_before_any_work(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "none"
    with pytest.raises(UsageError, match=r"--past.*got 1000; allowed up to 512"):
        export_npu(str(tiny_model_dir), out, NpuOptions(past=1000))
    assert not out.exists()
