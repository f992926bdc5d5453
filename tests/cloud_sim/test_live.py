"""The real server and the real driver over loopback sockets, with models that are oracles."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

import costeer
from cloud_sim.live.limits import ServerLimits
from cloud_sim.live.server import Server, bound, running
from cloud_sim.live.upstream import UpstreamModel
from cloud_sim.session import Limits, session
from edge_runtime import wire
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.connections.patience import Patience
from edge_runtime.connections.websocket import answer
from edge_runtime.errors import ConnectionFailed, EnvironmentFailure, Refused, UsageError
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.transcript import TokenRecord
from tests.fakes import FakeCloud, FakeDevice

IMPATIENT = Patience(connect_s=5, reconnect_s=0)


@pytest.fixture(autouse=True)
def _nothing_unforeseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever clients do, the server has no exception that it did not expect."""
    yield
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(FakeCloud(64, seed=1)) as running_server:
        yield running_server


def request(query: str = "what?", name: str = "topk:8", tokens: int = 24) -> Request:
    return Request(query, "", codec(name), tokens)


def in_memory(device: FakeDevice, asked: Request) -> list[int]:
    return run_direct(lockstep(device, asked), session(FakeCloud(64, seed=1))).tokens


@pytest.mark.parametrize("name", ["full", "topk:8"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_over_a_socket_as_in_memory(server: Server, name: str, temperature: float) -> None:
    def device() -> FakeDevice:
        return FakeDevice(64, gain=0.9, temperature=temperature, seed=5, end_ids=[])

    seen: list[TokenRecord] = []
    asked = request(name=name)
    transcript = await answer(lockstep(device(), asked), server.url, on_token=seen.append)
    assert transcript.tokens == in_memory(device(), asked)
    assert seen == transcript.records
    assert transcript.schedule == "lockstep"
    assert transcript.codec == name
    assert transcript.finish == "length"


async def test_the_same_bytes_as_in_memory_and_parts_that_add_up(server: Server) -> None:
    asked = request()
    live = await answer(lockstep(FakeDevice(64, end_ids=[]), asked), server.url)
    memory = run_direct(
        lockstep(FakeDevice(64, end_ids=[]), asked),
        session(FakeCloud(64, seed=1), new_id=lambda: "0" * 16),
    )
    assert live.uplink_bytes == memory.uplink_bytes
    stamps = live.downlink_frames * len(wire.Stamp().pack())
    assert live.downlink_bytes == memory.downlink_bytes + stamps
    assert live.round_trips <= 24
    times = [record.at_ms for record in live.records]
    assert times == sorted(times)
    for before, record in zip([0.0, *times], live.records, strict=False):
        assert record.parts.total == pytest.approx(record.at_ms - before, abs=1e-6)
    assert sum(record.parts.host for record in live.records) > 0


async def test_a_frame_does_not_wait_for_the_acknowledgement_of_the_one_before() -> None:
    """Nagle's algorithm is off on every connection that the server accepts."""
    off: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ours = writer.get_extra_info("socket")
        off.set_result(ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async with await asyncio.start_server(accepted, sock=bound("127.0.0.1", 0)) as listening:
        _, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        assert await asyncio.wait_for(off, 10)
        writer.close()


async def test_a_padded_uplink_has_one_size(server: Server) -> None:
    asked = request()
    plain = await answer(lockstep(FakeDevice(64, end_ids=[]), asked), server.url)
    padded = await answer(lockstep(FakeDevice(64, end_ids=[]), asked), server.url, pad_to=128)
    assert padded.tokens == plain.tokens
    assert padded.uplink_bytes == 128 * padded.uplink_frames


async def test_answers_at_the_same_time_do_not_mix(server: Server) -> None:
    def device(n: int) -> FakeDevice:
        return FakeDevice(64, context=f"note {n}", seed=n, end_ids=[])

    asked = [request(f"query {n}") for n in range(16)]
    answers = await asyncio.gather(
        *(answer(lockstep(device(n), asked[n]), server.url) for n in range(16))
    )
    assert [a.tokens for a in answers] == [in_memory(device(n), asked[n]) for n in range(16)]


async def test_what_goes_up_does_not_depend_on_the_note() -> None:
    """Emitted tokens forced equal: a proxy on the way sees the same bytes whatever the note."""
    forced = [3, 1, 4, 1, 5, 9, 2, 6]

    async def tapped(note: str, url: str) -> bytes:
        seen = bytearray()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host, port = url.removeprefix("ws://").split(":")
            down_reader, up_writer = await asyncio.open_connection(host, int(port))

            async def pump(a: asyncio.StreamReader, b: asyncio.StreamWriter, tap: bool) -> None:
                with contextlib.suppress(ConnectionError):
                    while data := await a.read(65536):
                        if tap:
                            seen.extend(data)
                        b.write(data)
                        await b.drain()
                b.close()

            await asyncio.gather(pump(reader, up_writer, True), pump(down_reader, writer, False))

        proxy = await asyncio.start_server(relay, "127.0.0.1", 0)
        port = proxy.sockets[0].getsockname()[1]
        device = FakeDevice(64, context=note, forced=forced, end_ids=[])
        transcript = await answer(
            lockstep(device, request(tokens=len(forced))), f"ws://127.0.0.1:{port}"
        )
        assert transcript.tokens == forced
        proxy.close()
        return unmasked(bytes(seen))

    with running(FakeCloud(64)) as server:
        one, two = await tapped("I am vegetarian", server.url), await tapped("x" * 900, server.url)
    assert one == two
    assert len(one) > 8 * len(forced)


def unmasked(stream: bytes) -> bytes:
    """WebSocket payloads of a client's TCP stream, without the random masks and key."""
    _, _, frames = stream.partition(b"\r\n\r\n")
    out = b""
    while frames:
        opcode, size, head = frames[0] & 15, frames[1] & 127, 2
        if size == 126:
            size, head = int.from_bytes(frames[2:4], "big"), 4
        mask, data = frames[head : head + 4], frames[head + 4 : head + 4 + size]
        frames = frames[head + 4 + size :]
        if opcode == 2:
            out += bytes(b ^ mask[i % 4] for i, b in enumerate(data))
    return out


async def test_health_says_what_is_going_on(server: Server) -> None:
    async with httpx.AsyncClient() as client:
        health = (await client.get(server.url.replace("ws", "http", 1) + "/health")).json()
    assert health["model"] == "fake-cloud-1"
    assert health["protocol"] == wire.PROTOCOL


# --- refusals: each is a typed frame, and the connection is closed after it ---


async def last_frame(socket: ClientConnection) -> wire.Refusal:
    """The refusal, which must be the last thing said."""
    frame = wire.decode_down(await asyncio.wait_for(socket.recv(decode=False), 10))
    while not isinstance(frame, wire.Refusal):
        frame = wire.decode_down(await asyncio.wait_for(socket.recv(decode=False), 10))
    await asyncio.wait_for(socket.wait_closed(), 10)
    assert socket.close_code == 1008
    assert socket.close_reason == frame.code
    return frame


@pytest.mark.parametrize(
    ("shown", "what"), [(None, "this server wants a token"), ("nope", "the token is wrong")]
)
async def test_a_missing_or_wrong_token(shown: str | None, what: str) -> None:
    with running(FakeCloud(64), token="s3cret") as server:
        with pytest.raises(Refused) as refused:
            await answer(lockstep(FakeDevice(64), request()), server.url, token=shown)
        assert (refused.value.code, refused.value.what) == ("unauthorized", what)
        assert refused.value.exit_code == 3
        right = await answer(lockstep(FakeDevice(64), request()), server.url, token="s3cret")
        assert right.tokens


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("text", "not_a_frame"),
        (b"", "not_a_frame"),
        (b"\x05\x00\x00\x00abcde", "not_a_frame"),
        (b"\xff\xff\xff\xff", "not_a_frame"),
        (wire.encode(wire.Open(99, "q", "", "full", "step", 1)), "protocol"),
        (b"\x00" * 3000, "frame_too_large"),
    ],
)
async def test_nonsense_is_named(message: bytes | str, code: str) -> None:
    cloud = FakeCloud(64)
    with running(cloud, limits=ServerLimits(frame_bytes=2000)) as server:
        async with connect(server.url) as socket:
            await socket.send(message)
            assert (await last_frame(socket)).code == code
    assert not cloud.open_sequences


async def test_a_silent_client_is_closed() -> None:
    with running(FakeCloud(64), limits=ServerLimits(idle_s=0.05)) as server:
        async with connect(server.url) as socket:
            assert (await last_frame(socket)).code == "idle"


async def test_one_session_too_many_is_refused_and_the_others_go_on() -> None:
    with running(FakeCloud(64), limits=ServerLimits(sessions=1)) as server:
        async with connect(server.url) as first:
            await first.send(wire.encode(request().open("step")))
            assert isinstance(wire.decode_down(await first.recv(decode=False)), wire.Opened)
            with pytest.raises(Refused, match="allowed at most 1") as refused:
                await answer(lockstep(FakeDevice(64), request()), server.url)
            assert refused.value.code == "busy"
            assert isinstance(wire.decode_down(await first.recv(decode=False)), wire.Candidates)


async def test_a_query_that_is_too_long() -> None:
    limits = ServerLimits(session=Limits(prompt_tokens=10))
    with (
        running(FakeCloud(64), limits=limits) as server,
        pytest.raises(Refused, match="got 40 tokens; allowed at most 10") as refused,
    ):
        await answer(lockstep(FakeDevice(64), request("x" * 40)), server.url)
    assert refused.value.code == "prompt_too_long"


async def test_a_model_that_fails_ends_its_session_with_a_reason() -> None:
    class Failing(FakeCloud):
        def score(self, requests):  # type: ignore[no-untyped-def]
            raise MemoryError("no room")

    with (
        running(Failing(64)) as server,
        pytest.raises(Refused, match="the cloud model failed: no room") as refused,
    ):
        await answer(lockstep(FakeDevice(64), request()), server.url)
    assert refused.value.code == "internal"


# --- servers that are not there ---


async def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ConnectionFailed, match="no server at") as failed:
        await answer(lockstep(FakeDevice(64), request()), url, patience=IMPATIENT)
    assert failed.value.exit_code == 3
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("said", [b"", b"220 mail ready\r\n", b"HTTP/1.1 404 Not Found\r\n\r\n"])
async def test_somebody_else_listens(said: bytes) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    listening = await asyncio.start_server(other, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    with pytest.raises(ConnectionFailed) as failed:
        await answer(
            lockstep(FakeDevice(64), request()), f"ws://127.0.0.1:{port}", patience=IMPATIENT
        )
    assert str(failed.value).startswith("cloud: ")
    listening.close()


@pytest.mark.parametrize("url", ["http://h:1", "ws://", "ws://h:99999", "h:80", ""])
async def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UsageError, match="no address of a server"):
        await answer(lockstep(FakeDevice(64), request()), url)


def test_an_address_that_is_taken() -> None:
    with running(FakeCloud(64)) as server, pytest.raises(EnvironmentFailure, match="--port"):
        bound(server.host, server.port)


def test_a_name_that_is_none_cannot_be_listened_on() -> None:
    with pytest.raises(EnvironmentFailure, match="serve: the address cannot be listened on"):
        bound("ä" * 70, 0)


@pytest.mark.parametrize("url", ["http://[::1/v1#m", "http://h:99999/v1", "http://", "h/v1", ""])
def test_an_upstream_that_is_no_address(url: str) -> None:
    with pytest.raises(UsageError, match=r"^--upstream: this is no address of a completions"):
        UpstreamModel(url, None, (), 64)  # type: ignore[arg-type]


def test_a_key_without_an_upstream_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text("secret\n")
    assert costeer.run(["serve", "--upstream-key-file", str(tmp_path / "key")]) == 2
    assert capsys.readouterr().err.startswith("--upstream-key-file: without --upstream there is")


def test_an_impatient_interruption_is_as_quiet_as_one(tiny_model_dir: Path) -> None:
    command = [sys.executable, "-m", "costeer", "serve", "--model", str(tiny_model_dir)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["port"] > 0
        for _ in range(6):
            process.send_signal(signal.SIGINT)
            time.sleep(0.07)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.count("\n") == 1
    assert "interrupted" in err
