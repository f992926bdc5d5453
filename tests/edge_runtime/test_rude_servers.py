"""Completions servers as they are met: odd framing, faults in mid-stream, answers that are none."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.candidates import codec
from edge_runtime.connections.http_stream import Endpoint
from edge_runtime.connections.openai import answer
from edge_runtime.connections.patience import Patience
from edge_runtime.errors import ConnectionFailed, EnvironmentFailure, Refused, UsageError
from edge_runtime.schedules.deadlines import Deadline
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.transcript import Transcript
from tests.completions_server import Completions
from tests.edge_runtime.test_openai import QUERY, VOCABULARY, device, expected, language, request
from tests.fakes import FakeCloud, FakeDevice
from tests.rude_server import (
    CHUNKED,
    HANG,
    OK,
    PLAIN,
    RESET,
    Manners,
    Rude,
    event,
    refuses,
    whole,
)

QUICK = Patience(first_pause_s=0.01, longest_pause_s=0.05)
EARS = replace(QUICK, silence_s=1.0)
"""For servers that say nothing: it is noticed sooner."""
Steps = Iterator[dict[str, Any]]


async def ask(rude: Rude, patience: Patience = QUICK, **more: Any) -> Transcript:
    async with rude.serving():
        made = runahead(device(end_ids=[]), request(), **more)
        return await answer(made, rude.url, language(rude.app.cloud), patience=patience)


def chatty(steps: Steps) -> Iterator[bytes]:
    """Comments that keep the line alive, fields nobody asked for, two kinds of line ends, text of
    several bytes a letter, and all of it a byte or two at a time."""
    stream = b": hello\r\n\r\n"
    for step in steps:
        step["choices"][0]["text"] = "né 😀"
        stream += b"event: token\r\nid: 1\r\n" + event(step) + b":\n\n: ping\r\n\r\n"
    stream += b"data: [DONE]\n\n"
    yield CHUNKED
    for at in range(0, len(stream), 7):
        part = stream[at : at + 7]
        yield b"%x;name=value\r\n" % len(part) + part + b"\r\n"
    yield b"0\r\n\r\n"


def without_done(steps: Steps) -> Iterator[bytes]:
    yield PLAIN
    yield from (event(step).rstrip(b"\n") + b"\n" for step in steps)


@pytest.mark.parametrize("manners", [whole, chatty, without_done])
async def test_framing_does_not_matter(manners: Manners) -> None:
    cloud = FakeCloud(VOCABULARY, 6)
    got = await ask(Rude(Completions(cloud), manners))
    assert got.tokens == expected(cloud, end_ids=[])


def after(count: int, end: bytes) -> Manners:
    def manners(steps: Steps) -> Iterator[bytes]:
        yield PLAIN
        yield from map(event, islice(steps, count))
        yield end

    return manners


@pytest.mark.parametrize(
    "fault",
    [
        after(1, RESET),
        after(2, HANG),
        after(3, b""),
        after(1, b"data: {\n\n"),
        after(2, b'data: {"error": {"message": "out of memory"}}\n\n'),
        lambda steps: iter([HANG]),
        lambda steps: iter([OK, RESET]),
        refuses(503, b"loading"),
        refuses(429, b'{"error": "slow down"}'),
    ],
)
async def test_faults_in_mid_answer_lose_nothing(fault: Manners) -> None:
    """The server recovers each time; between two faults it is well for one request."""
    cloud = FakeCloud(VOCABULARY, 6)
    started = after(2, RESET)
    rude = Rude(Completions(cloud), started, fault, fault, started, fault, whole)
    got = await ask(rude, EARS)
    assert got.tokens == expected(cloud, end_ids=[])
    assert len(rude.heads) >= 6


async def test_patience_begins_anew_with_progress() -> None:
    """A stream that breaks off at every position: more often than patience would have lasted."""
    cloud = FakeCloud(VOCABULARY, 6)
    slow = Patience(first_pause_s=0.05, longest_pause_s=0.05, reconnect_s=1.0)
    rude = Rude(Completions(cloud), after(1, RESET))
    got = await ask(rude, slow)
    assert got.tokens == expected(cloud, end_ids=[])


async def test_who_can_do_without_the_cloud_ends_the_answer_without_it() -> None:
    rude = Rude(Completions(FakeCloud(VOCABULARY, 6)), after(4, RESET), refuses(401, b"no more"))
    got = await ask(rude, deadline=Deadline(5, "device"))
    assert len(got.tokens) == 30
    assert got.counters["late"] > 20
    assert "the rest of the answer is without the cloud: cloud: the server at" in got.notes[-1]
    assert sum("without the cloud" in note for note in got.notes) == 1


@pytest.mark.parametrize(
    ("manners", "kind", "said"),
    [
        (after(0, HANG), ConnectionFailed, r"has fallen silent \(got nothing for 1 s\)"),
        (lambda steps: iter([HANG]), ConnectionFailed, "has fallen silent"),
        (refuses(503, b"loading"), Refused, r"said no: loading \(got HTTP 503\)"),
        (refuses(404, b'{"detail": "Not Found"}'), Refused, "said no: Not Found"),
        (refuses(400, b'{"error": {"message": {"a": 1}}}'), Refused, "said no: {'a': 1}"),
        (refuses(307), Refused, "HTTP 307"),
        (after(0, b"data: [1]\n\n"), ConnectionFailed, "streams is no completion"),
        (after(0, b"data: 5\n\n"), ConnectionFailed, "streams is no completion"),
        (after(0, b"data: \xff\n\n"), ConnectionFailed, "streams is no completion"),
        (after(0, b'data: {"choices": [7]}\n\n'), ConnectionFailed, "streams is no completion"),
        (after(0, b'data: {"choices": [{}]}\n\n'), ConnectionFailed, "stopped within an answer"),
        (lambda steps: iter([b"SSH-2.0-x\r\n\r\n"]), ConnectionFailed, "does not speak HTTP"),
        (lambda steps: iter([b"220 mail"]), ConnectionFailed, "does not speak HTTP"),
        (lambda steps: iter([CHUNKED, b"zz\r\n"]), ConnectionFailed, "broke off"),
    ],
)
async def test_what_is_no_answer_is_one_line_and_soon(
    manners: Manners, kind: type[EnvironmentFailure], said: str
) -> None:
    with pytest.raises(kind, match=said):
        await ask(Rude(Completions(FakeCloud(VOCABULARY, 6)), manners), EARS)


def mangled(change: Any) -> Manners:
    def manners(steps: Steps) -> Iterator[bytes]:
        yield PLAIN
        for step in steps:
            change(step["choices"][0])
            yield event(step)

    return manners


@pytest.mark.parametrize("tokens", [3, 30])
async def test_a_server_of_text_alone_is_told_apart(tokens: int) -> None:
    cloud = FakeCloud(VOCABULARY, 6)
    rude = Rude(Completions(cloud), mangled(lambda choice: choice.update(logprobs=None)))
    async with rude.serving():
        with pytest.raises(EnvironmentFailure, match="sends no log-probabilities"):
            await answer(
                lockstep(device(end_ids=[]), request(tokens=tokens)), rude.url, language(cloud)
            )
    assert len(rude.heads) == 1


@pytest.mark.parametrize("index", [-1, VOCABULARY, 1 << 40])
async def test_tokens_that_the_vocabulary_has_not(index: int) -> None:
    """As one of the candidates it is left out; to go on with it is another model's doing."""

    def candidate(choice: dict[str, Any]) -> None:
        choice["logprobs"]["content"][0]["top_logprobs"][7]["id"] = index

    def chosen(choice: dict[str, Any]) -> None:
        choice["logprobs"]["content"][0]["id"] = index

    cloud = FakeCloud(VOCABULARY, 6)
    spoken = replace(language(cloud), size=VOCABULARY)
    async with Rude(Completions(cloud), mangled(candidate)).serving() as rude:
        got = await answer(runahead(device(end_ids=[]), request()), rude.url, spoken)
        assert got.tokens == expected(cloud, 7, end_ids=[])
    async with Rude(Completions(cloud), mangled(chosen)).serving() as rude:
        with pytest.raises(ConnectionFailed, match=rf"vocabulary has not \(got {index}\)"):
            await answer(runahead(device(end_ids=[]), request()), rude.url, spoken)


async def test_fewer_log_probabilities_than_asked_for_are_used_and_said() -> None:
    """Some servers allow five and say nothing."""

    def change(choice: dict[str, Any]) -> None:
        del choice["logprobs"]["content"][0]["top_logprobs"][5:]

    cloud = FakeCloud(VOCABULARY, 6)
    got = await ask(Rude(Completions(cloud), mangled(change)))
    assert got.tokens == expected(cloud, 5, end_ids=[])
    assert "the server gives 5 of 8 log-probabilities a token" in got.notes


async def test_nothing_is_asked_for_beyond_the_clouds_end() -> None:
    """Credit that comes after the cloud's own end is no reason to go on."""
    for seed in range(40):
        cloud = FakeCloud(8, seed)
        asked = Request(QUERY, "", codec("topk:4"), 40)
        rude = Rude(Completions(cloud), whole)
        async with rude.serving():
            got = await answer(
                runahead(FakeDevice(8, gain=0.0), asked, window=16), rude.url, language(cloud)
            )
        if got.finish == "end" and 6 < len(got.tokens) < 16:
            break
    assert got.finish == "end"
    assert len(rude.heads) == 1


async def test_where_requests_go() -> None:
    cloud = FakeCloud(VOCABULARY, 6)
    rude = Rude(Completions(cloud), whole)
    asked = request(tokens=3)
    async with rude.serving():
        url = rude.url.replace("/v1", "/a/v1/?version=3#some/model")
        got = await answer(lockstep(device(end_ids=[]), asked), url, language(cloud), key="secret")
    assert len(got.tokens) == 3
    first, *fields = rude.heads[0].split("\r\n")
    assert first == "POST /a/v1/completions?version=3 HTTP/1.1"
    assert "Authorization: Bearer secret" in fields
    assert f"Host: {rude.url.split('/')[2]}" in fields
    assert Endpoint.parse("http://[::1]:8/v1").url == "http://[::1]:8/v1"
    assert Endpoint.parse("https://host").authority == "host:443"
    for wrong in ("http://host/v 1", "http://hóst/v1", "ftp://host", "http://h:x/v1"):
        with pytest.raises(UsageError, match="no address of a completions server"):
            Endpoint.parse(wrong)


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's own, for `localhost`, in `cert.pem`; trusted by nobody."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    day, today = timedelta(days=1), datetime.now(tz=UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - day)
        .not_valid_after(today + day)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    kept = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(kept)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


async def test_a_certificate_must_be_one_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = FakeCloud(VOCABULARY, 6)
    rude = Rude(Completions(cloud), whole)
    async with rude.serving("127.0.0.1", certificate(tmp_path)):
        url = rude.url.replace("127.0.0.1", "localhost")
        with pytest.raises(ConnectionFailed, match=r"no server at https://localhost.*certificate"):
            await answer(lockstep(device(), request()), url, language(cloud))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        got = await answer(lockstep(device(), request()), url, language(cloud))
        assert got.tokens == expected(cloud)
        with pytest.raises(ConnectionFailed, match=r"no server at https://127\.0\.0\.1"):
            await answer(lockstep(device(), request()), rude.url, language(cloud))


async def test_a_completions_server_has_no_branches() -> None:
    rude = Rude(Completions(FakeCloud(VOCABULARY, 6)), whole)
    with pytest.raises(UsageError, match="goes on one way at a time"):
        await ask(rude, branches=4)
    assert json.dumps(rude.heads) == "[]"
