"""Other people's servers: run-ahead straight against a completions stream, and our wire over one.

First against a server that is an oracle and speaks every dialect, then against llama.cpp's own.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cloud_sim.live.load import load_text
from cloud_sim.live.server import running
from cloud_sim.live.upstream import UpstreamModel
from cloud_sim.model import ScoreRequest
from cloud_sim.session import session
from edge_runtime.candidates import CandidateSet, codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.connections.openai import Language, answer
from edge_runtime.connections.patience import Patience
from edge_runtime.connections.websocket import answer as answer_over_our_wire
from edge_runtime.device import CloudOnlyDevice
from edge_runtime.errors import ConnectionFailed, Refused, UsageError
from edge_runtime.policy import Decision, Scores
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.text import Text
from edge_runtime.weights import fetch_smollm2
from tests.completions_server import Completions, completions_server
from tests.fakes import FakeCloud, FakeDevice

VOCABULARY = 64
QUERY = "what?"


def device(**more: Any) -> FakeDevice:
    return FakeDevice(VOCABULARY, gain=0.6, **more)


def language(cloud: FakeCloud) -> Language:
    def find(text: str) -> int | None:
        found = re.fullmatch(r"<(\d+)>", text)
        return int(found[1]) if found else None

    return Language(cloud.prompt(QUERY), find, cloud.end_ids)


def request(k: int = 8, tokens: int = 30) -> Request:
    return Request(QUERY, "", codec(f"topk:{k}"), tokens)


def expected(cloud: FakeCloud, k: int = 8, **more: Any) -> list[int]:
    return run_direct(lockstep(device(**more), request(k)), session(cloud)).tokens


@pytest.mark.parametrize("dialect", ["llama", "vllm", "text"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("window", [0, 4])
async def test_runahead_on_a_completions_stream_is_lockstep_with_our_server(
    dialect: str, seed: int, window: int
) -> None:
    cloud = FakeCloud(VOCABULARY, seed)
    with completions_server(Completions(cloud, dialect)) as server:
        transcript = await answer(
            runahead(device(end_ids=[]), request(), window=window),
            f"openai:{server.url}#m",
            language(cloud),
        )
    assert transcript.tokens == expected(cloud, end_ids=[])
    assert transcript.counters["divergences"] > 0
    assert transcript.downlink_bytes > 8 * 20 * len(transcript.tokens)
    if not window:
        # Each divergence asks anew, and so does each end token that the device goes beyond, and
        # now and then two candidates that fp16 makes equal.
        ends = transcript.tokens.count(VOCABULARY - 1)
        assert len(server.prompts) <= 3 + transcript.counters["divergences"] + ends


async def test_lockstep_works_too_and_sampling_is_the_same() -> None:
    cloud = FakeCloud(VOCABULARY, 3)
    sampled: dict[str, Any] = {"temperature": 0.9, "seed": 4}
    with completions_server(Completions(cloud)) as server:
        url = f"openai:{server.url}"
        one = await answer(lockstep(device(**sampled), request()), url, language(cloud))
        two = await answer(runahead(device(**sampled), request()), url, language(cloud))
    assert one.tokens == two.tokens == expected(cloud, **sampled)


async def test_what_goes_up_is_prompt_and_emitted_tokens() -> None:
    """The same tokens with another note: the same requests, byte for byte."""
    cloud, forced = FakeCloud(VOCABULARY, 5), [3, 1, 4, 1, 5, 9, 2, 6]
    seen = []
    for note in ("vegetarian", "x" * 500):
        with completions_server(Completions(cloud)) as server:
            made = FakeDevice(VOCABULARY, context=note, forced=forced, end_ids=[])
            asked = request(tokens=len(forced))
            got = await answer(lockstep(made, asked), f"openai:{server.url}", language(cloud))
        assert got.tokens == forced
        seen.append(server.prompts)
    assert seen[0] == seen[1]


async def test_a_limit_on_log_probabilities_is_found_and_said() -> None:
    cloud = FakeCloud(VOCABULARY, 1)
    with completions_server(Completions(cloud, "vllm", most=20)) as server:
        got = await answer(runahead(device(), request(40)), f"openai:{server.url}", language(cloud))
    assert "the server gives no more than 20 log-probabilities a token" in got.notes
    assert got.tokens == expected(cloud, 20)


async def test_a_server_that_ends_answers_itself() -> None:
    for seed in range(20):
        cloud = FakeCloud(8, seed)
        made = FakeDevice(8, gain=0.0)
        asked = Request(QUERY, "", codec("topk:4"), 40)
        whole = run_direct(lockstep(FakeDevice(8, gain=0.0), asked), session(cloud))
        if whole.finish == "end" and len(whole.tokens) > 2:
            break
    with completions_server(Completions(cloud, obeys_ignore_eos=False)) as server:
        got = await answer(runahead(made, asked), f"openai:{server.url}", language(cloud))
    assert got.tokens == whole.tokens
    assert got.finish == "end"


async def test_streams_that_break_off_lose_nothing() -> None:
    cloud = FakeCloud(VOCABULARY, 6)
    with completions_server(Completions(cloud, breaks_after=3)) as server:
        got = await answer(
            runahead(device(end_ids=[]), request()),
            f"openai:{server.url}",
            language(cloud),
            patience=Patience(first_pause_s=0.01),
        )
    assert got.tokens == expected(cloud, end_ids=[])
    assert len(server.prompts) >= 10


async def test_refusals_and_absences_are_one_line() -> None:
    cloud = FakeCloud(VOCABULARY, 1)
    with completions_server(Completions(cloud, key="secret")) as server:
        with pytest.raises(Refused, match="said no: Invalid API Key") as refused:
            await answer(runahead(device(), request()), f"openai:{server.url}", language(cloud))
        assert refused.value.code == "unauthorized"
        url = f"openai:{server.url}"
        got = await answer(runahead(device(), request()), url, language(cloud), key="secret")
        assert got.tokens == expected(cloud)
        with pytest.raises(Refused, match="HTTP 404"):
            await answer(runahead(device(), request()), f"{url}/x", language(cloud), key="secret")
        full = Request(QUERY, "", codec("full"), 4)
        with pytest.raises(UsageError, match="best tokens only"):
            await answer(runahead(device(), full), url, language(cloud))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"openai:http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ConnectionFailed, match="no server at"):
        await answer(runahead(device(), request()), nowhere, language(cloud))
    with pytest.raises(UsageError, match="no address of a completions server"):
        await answer(runahead(device(), request()), "openai:localhost", language(cloud))


# --- llama.cpp's real server ---

SERVER = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.n_ctx, p.n_parallel = sys.argv[1], 1024, 2
p.port, p.verbosity, p.cpuparams.n_threads = int(sys.argv[2]), -1, 1
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[str]:
    pytest.importorskip("xllamacpp", reason="llama.cpp's server is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(fetch_smollm2()), port],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    address = next(line for line in child.stdout if line.startswith("http")).strip()
    yield f"{address}/v1"
    child.stdin.close()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


class Contrary(CloudOnlyDevice):
    """Takes the cloud's second best at every fifth position: a divergence that needs no model."""

    def choose(
        self,
        position: int,
        candidates: CandidateSet,
        scores: Scores | None,
        token: int | None = None,
    ) -> Decision:
        best = np.argsort(-candidates.logprobs, kind="stable")
        if token is None and position % 5 == 3:
            token = int(candidates.ids[best[1]])
        return super().choose(position, candidates, scores, token)


def same_or_near_tie(one: Sequence[int], two: Sequence[int], margins: Sequence[float]) -> bool:
    """Equal up to a position where the two best were so close that a sum in another order tells."""
    for a, b, margin in zip(one, two, margins, strict=False):
        if a != b:
            return margin < 0.05
    return True


@pytest.mark.weights
async def test_runahead_against_llama_cpp(llama_cpp: str) -> None:
    text, ends, _ = load_text("smollm2-135m")
    spoken = Language(text.prompts("Name three fruits.").agnostic, end_ids=ends)
    asked = Request("Name three fruits.", "", codec("topk:20"), 24)
    url = f"openai:{llama_cpp}"
    one = await answer(lockstep(Contrary(end_ids=ends), asked), url, spoken)
    two = await answer(runahead(Contrary(end_ids=ends), asked), url, spoken)
    margins = [r.decision.margin if r.decision else 0.0 for r in one.records]
    assert len(one.tokens) == 24
    assert same_or_near_tie(one.tokens, two.tokens, margins)
    assert two.counters["divergences"] >= 4


@pytest.mark.weights
async def test_our_wire_over_llama_cpp(llama_cpp: str) -> None:
    text, ends, size = load_text("smollm2-135m")
    model = UpstreamModel(llama_cpp, text, ends, size, top_logprobs=64)
    assert model.top_logprobs == 64
    prompt = tuple(model.prompt("Hi"))
    (row,) = model.score([ScoreRequest(model, model.open(), 0, prompt)])
    assert np.exp(row[0].astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-3)
    asked = Request("Name three fruits.", model.vocabulary, codec("topk:20"), 16)
    spoken = Language(text.prompts("Name three fruits.").agnostic, end_ids=ends)
    straight = await answer(lockstep(Contrary(end_ids=ends), asked), f"openai:{llama_cpp}", spoken)
    with running(model) as server:
        wired = await answer_over_our_wire(lockstep(Contrary(end_ids=ends), asked), server.url)
    margins = [r.decision.margin if r.decision else 0.0 for r in wired.records]
    assert same_or_near_tie(wired.tokens, straight.tokens, margins)


async def test_our_wire_over_a_completions_server() -> None:
    cloud = FakeCloud(VOCABULARY, 2)

    class Spoken(UpstreamModel):
        def prompt(self, query: str) -> list[int]:
            return cloud.prompt(query)

    text = Text(Tokenizer(WordLevel({f"<{n}>": n for n in range(VOCABULARY)}, "<0>")))
    for dialect in ("llama", "vllm", "text"):
        with completions_server(Completions(cloud, dialect, most=20)) as upstream:
            model = Spoken(upstream.url, text, cloud.end_ids, VOCABULARY)
            assert model.top_logprobs == 20
            with running(model) as server:
                for schedule in (lockstep, runahead):
                    got = await answer_over_our_wire(schedule(device(), request()), server.url)
                    assert got.tokens == expected(cloud)
