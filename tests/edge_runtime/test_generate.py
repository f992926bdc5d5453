"""`costeer serve` and `costeer generate` as a user runs them, on a tiny model; and their claims."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import costeer
from cloud_sim.live.llm import TransformersModel
from cloud_sim.live.load import load
from cloud_sim.live.server import running
from edge_runtime.assembly import Plan, device_for
from edge_runtime.branches import open_branches
from edge_runtime.bundle import MANIFEST, Bundle
from edge_runtime.candidates import codec
from edge_runtime.connections.websocket import answer
from edge_runtime.rules import method
from edge_runtime.schedules.exchange import Request
from edge_runtime.text import Text
from tests.lines import breaking_off

NOTE = "I am a vegetarian in Porto.\n"
QUERY = "Where should we eat tonight?"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass
class Serving:
    process: subprocess.Popen[str]
    about: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.about["url"])


@pytest.fixture(scope="module")
def serving(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    token = tmp_path_factory.mktemp("secret") / "token"
    command = [sys.executable, "-m", "costeer", "serve", "--model", str(tiny_model_dir)]
    command += ["--port", "0", "--token-file", str(token), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    about = json.loads(process.stdout.readline())
    yield Serving(process, about | {"token": str(token)})
    process.send_signal(signal.SIGINT)
    assert process.wait(20) in (0, 130)


@pytest.fixture(scope="module")
def note(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("note") / "note.txt"
    path.write_text(NOTE, encoding="utf-8")
    return path


def generate(bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "costeer", "generate", str(bundle), QUERY, *options]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def test_generate_prints_an_answer_and_one_json_object(
    serving: Serving, tiny_bundle: Bundle, note: Path
) -> None:
    secret = ["--cloud", serving.url, "--token-file", serving.about["token"]]
    options = ["--context", str(note), "--max-tokens", "12", "--json"]
    done = generate(tiny_bundle.path, *secret, *options)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert len(row["tokens"]) == 12
    assert row["text"] == Text.open(tiny_bundle).decode(row["tokens"])
    assert (row["method"], row["schedule"], row["codec"]) == ("names", "lockstep", "topk:64")
    assert row["gain"] == pytest.approx(0.4762, abs=1e-4)
    parts = dict(row["ms_per_token"])
    assert parts.pop("total") == pytest.approx(sum(parts.values()))
    assert row["tokens_per_s"] == pytest.approx(1e3 / row["ms_per_token"]["total"])
    assert row["uplink_bytes"] > 12 * 8
    assert row["downlink_bytes"] > 12 * 64 * 6
    assert 20 < row["peak_rss_mb"] < 2000
    assert row["virtual"] is False
    counted = ("round_trips", "divergences", "accepted", "gated", "late", "wasted_cloud_tokens")
    for key in (*counted, "notes"):
        assert key in row


async def test_an_answer_that_breaks_off_is_kept(
    serving: Serving, tiny_bundle: Bundle, note: Path
) -> None:
    common = ["--token-file", serving.about["token"], "--context", str(note), "--json"]
    whole = generate(tiny_bundle.path, "--cloud", serving.url, *common, "--max-tokens", "12")
    async with breaking_off(serving.url, after=6) as url:
        options = ["--cloud", url, *common, "--max-tokens", "12"]
        done = await asyncio.to_thread(generate, tiny_bundle.path, *options)
    assert done.returncode == 3
    assert done.stderr.startswith("cloud: the server at ws://")
    assert done.stderr.count("\n") == 1
    row = json.loads(done.stdout)
    assert row["finish"] == "failed"
    assert row["wasted_cloud_tokens"] is None
    assert any("never again" in line for line in row["notes"])
    before = json.loads(whole.stdout)["tokens"]
    assert 1 <= len(row["tokens"]) < 12
    assert row["tokens"] == before[: len(row["tokens"])]
    assert row["text"] == Text.open(tiny_bundle).decode(row["tokens"])


def test_every_schedule_gives_the_same_tokens(
    serving: Serving, tiny_bundle: Bundle, note: Path
) -> None:
    common = ["--cloud", serving.url, "--token-file", serving.about["token"], "--json"]
    common += ["--context", str(note), "--max-tokens", "16", "--gain", "1.5"]
    rows = [
        json.loads(generate(tiny_bundle.path, *common, *more).stdout.splitlines()[-1])
        for more in ([], ["--schedule", "runahead", "--window", "6", "--branches", "3"])
    ]
    assert rows[0]["tokens"] == rows[1]["tokens"]
    assert rows[1]["schedule"] == "runahead"


def test_without_json_text_comes_first_and_a_table_last(
    serving: Serving, tiny_bundle: Bundle, note: Path
) -> None:
    secret = ["--cloud", serving.url, "--token-file", serving.about["token"]]
    done = generate(tiny_bundle.path, *secret, "--context", str(note), "--max-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout
    assert "bytes a token" in done.stdout


def test_a_method_without_a_cloud_needs_none(tiny_bundle: Bundle, note: Path) -> None:
    options = ["--method", "device-only", "--context", str(note), "--max-tokens", "5", "--json"]
    done = generate(tiny_bundle.path, *options)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert len(row["tokens"]) == 5
    assert (row["uplink_bytes"], row["downlink_bytes"]) == (0, 0)
    assert [row[key] for key in ("schedule", "round_trips", "late")] == ["alone", 0, 0]
    assert (row["divergences"], row["wasted_cloud_tokens"]) == (0, None)


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (["--cloud", "ws://127.0.0.1:1"], 3, "cloud: no server at ws://127.0.0.1:1: "),
        (["--cloud", "ftp://x"], 2, "cloud: this is no address of a server (got ftp://x; "),
        ([], 2, "generate: the method names asks a cloud. Name one with --cloud."),
        (["--method", "lite"], 2, "method: no such method (got lite). Did you mean light?"),
        (["--codec", "topk:0"], 2, "codec: no such candidate codec (got topk:0; "),
        (["--schedule", "lock"], 2, "schedule: no such schedule (got lock; "),
        (["--window", "4"], 2, "--window: the schedule lockstep has no such number (got 4; "),
        (["--gate", "garden"], 2, "gate: no such gate (got garden; "),
        (["--on-late", "device"], 2, "on-late: 'device' needs a deadline"),
        (["--token-file", "/nowhere"], 2, "--token-file: the file cannot be read: no such file"),
        (["--max-tokens", "100000"], 2, "context length: the model of this bundle does not go"),
        (["--weight", "nan"], 2, "--weight: the weight is out of range (got nan; allowed -100 to"),
        (["--weight", "2"], 2, "--weight: there is no other note to weigh this one against"),
        (["--token-deadline-ms", "nan"], 2, "token-deadline-ms: the deadline is no time (got nan)"),
        (
            ["--schedule", "runahead", "--window", "9" * 20],
            2,
            "--window: the number is too large (got 99999999999999999999; allowed 0 to 1048576).",
        ),
        (["--pad-to", "9" * 14], 2, "costeer generate: Invalid value for '--pad-to'"),
        (["--context", "/dev/null"], 2, "--context: the file is empty (got /dev/null)."),
        (
            ["--align", "map", "--cloud-tokenizer", "/dev/null"],
            3,
            "/dev/null: this is not a readable tokenizer: ",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tiny_bundle: Bundle,
    note: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    line: str,
) -> None:
    cloud = [] if not options or "--cloud" in options else ["--cloud", "ws://127.0.0.1:1"]
    arguments = ["generate", str(tiny_bundle.path), QUERY, "--context", str(note)]
    assert costeer.run([*arguments, *cloud, *options]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(line)
    assert said.err.count("\n") == 1


def test_a_question_in_another_encoding_is_refused(
    tiny_bundle: Bundle, note: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", str(tiny_bundle.path), "caf\udce9", "--context", str(note)]
    assert costeer.run(arguments) == 2
    said = capsys.readouterr().err
    assert said == "QUERY: the question is no UTF-8 text (got 'caf\\udce9').\n"


def test_a_bundle_that_failed_its_verification_answers_only_when_told_to(
    tiny_bundle: Bundle, note: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = shutil.copytree(tiny_bundle.path, tmp_path / "failed")
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"ready": False}))
    arguments = ["generate", str(bundle), QUERY, "--context", str(note)]
    arguments += ["--method", "device-only", "--max-tokens", "2"]
    assert costeer.run(arguments) == 3
    assert capsys.readouterr().err == (
        f"{bundle}: this bundle failed its verification (ready: false). "
        "Read export_report.json, or answer with it anyway: costeer generate --force.\n"
    )
    assert costeer.run([*arguments, "--force"]) == 0


def test_a_wrong_token_and_a_missing_one(
    serving: Serving, tiny_bundle: Bundle, note: Path, tmp_path: Path
) -> None:
    (tmp_path / "wrong").write_text("guess")
    for more, says in (
        ([], "cloud: this server wants a token. "),
        (["--token-file", str(tmp_path / "wrong")], "cloud: the token is wrong. "),
    ):
        done = generate(tiny_bundle.path, "--cloud", serving.url, "--context", str(note), *more)
        assert (done.returncode, done.stderr.count("\n")) == (3, 1)
        assert says in done.stderr


def test_steering_needs_a_note(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", str(tiny_bundle.path), QUERY]
    assert costeer.run([*arguments, "--cloud", "ws://127.0.0.1:1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("generate: the method names needs a private note. ")
    (tmp_path / "raw").write_bytes(b"\xff\xfe\xfd")
    assert costeer.run([*arguments, "--context", str(tmp_path / "raw")]) == 2
    assert "the file is no UTF-8 text" in capsys.readouterr().err
    arguments += ["--context", str(tmp_path / "note"), "--cloud", "openai:http://127.0.0.1:1/v1"]
    (tmp_path / "note").write_text("I like spice.")
    for held in ("two words", "in\ntwo\nlines", "ключ"):
        (tmp_path / "token").write_text(held)
        assert costeer.run([*arguments, "--token-file", str(tmp_path / "token")]) == 2
        assert "--token-file: the file must hold one word of ASCII" in capsys.readouterr().err


def test_serve_refuses_what_it_cannot_do(
    tmp_path: Path, serving: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("two words")
    for options, code, says in (
        (["--model", "smolm2"], 2, "model: it is no file, no folder and no hub id"),
        (["--tls-certificate", __file__], 2, "serve: TLS needs two files"),
        (["--tls-certificate", __file__, "--tls-key", "/none"], 2, "--tls-key: there is no such"),
        (
            ["--tls-certificate", __file__, "--tls-key", __file__],
            3,
            "serve: certificate and key cannot be used: ",
        ),
        (["--threads", "100000"], 2, "costeer serve: Invalid value for '--threads'"),
        (["--port", str(serving.about["port"])], 3, "serve: the address cannot be listened on"),
        (["--token-file", str(tmp_path / "token")], 2, "--token-file: the file must hold one word"),
        (["--tls-key", "x"], 2, "serve: TLS needs two files"),
    ):
        port = [] if "--port" in options else ["--port", "0"]
        assert costeer.run(["serve", *options, *port]) == code
        said = capsys.readouterr().err
        assert said.startswith(says)
        assert said.count("\n") == 1


def test_a_token_file_that_is_not_there_is_made_for_its_owner_alone(serving: Serving) -> None:
    path = Path(serving.about["token"])
    assert len(path.read_text().strip()) >= 32
    assert path.stat().st_mode & 0o077 == 0


# --- what the live path claims about its tokens ---


@pytest.mark.parametrize("gain", [0.4762, 1.7833])
async def test_full_codec_over_a_socket_is_the_computation_in_process(
    tiny_model_dir: Path, tiny_bundle: Bundle, gain: float
) -> None:
    """The same device logits, the cloud's by plain torch without a cache, no wire: same tokens."""
    import torch

    rule, text = method("costeer", gain), Text.open(tiny_bundle)
    prompts = text.prompts(QUERY, NOTE)

    model = load(str(tiny_model_dir), attention="eager").model
    branches = open_branches(tiny_bundle, max_length=256)
    branches.prefill(prompts.aware, prompts.agnostic)
    expected: list[int] = []
    while len(expected) < 40:
        with torch.no_grad():
            ids = torch.tensor([[*prompts.agnostic, *expected]])
            base = torch.log_softmax(model(ids, use_cache=False).logits[0, -1], -1).numpy()
        aware, agnostic = branches.logits()
        expected.append(int(np.argmax(base + gain * (aware - agnostic))))
        if expected[-1] in tiny_bundle.manifest.tokens.end_ids:
            break
        branches.extend(expected[-1:])

    with running(TransformersModel.open_source(str(tiny_model_dir))) as server:
        device = device_for(tiny_bundle, text, QUERY, NOTE, rule, max_tokens=40)
        request = Request(QUERY, tiny_bundle.manifest.vocabulary_sha256, codec("full"), 40)
        transcript = await answer(Plan().make(device, request), server.url)
    assert transcript.tokens == expected


async def test_another_vocabulary_is_refused(tiny_model_dir: Path) -> None:
    from edge_runtime.device import CloudOnlyDevice
    from edge_runtime.errors import Refused

    with running(TransformersModel.open_source(str(tiny_model_dir))) as server:
        request = Request(QUERY, "0" * 64, codec("topk:4"), 4)
        with pytest.raises(Refused, match="different vocabularies") as refused:
            await answer(Plan().make(CloudOnlyDevice(), request), server.url)
    assert refused.value.code == "vocabulary"
