"""The shaper: real sockets, real bytes, the links' own times."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import costeer
from benchmarks.live_schedules import between_passes
from benchmarks.recorded_server import Pass
from cloud_sim.cli_validate import BEGIN, END, page, table
from cloud_sim.net.catalogue import network
from cloud_sim.net.links import ConstantDelay, Link
from cloud_sim.net.made_traces import convert, markov
from cloud_sim.net.rates import ConstantRate
from cloud_sim.net.shaper import WallTimers, shaped
from cloud_sim.net.streams import stream
from cloud_sim.net.transport import TCP
from cloud_sim.sim.exchange import Host
from cloud_sim.sim.validate import CLOUD, Scenario, figures, measured, scenarios, simulated
from edge_runtime.errors import EnvironmentFailure, SpecError


def links(mbps: float, rtt_ms: float) -> tuple[Link, Link]:
    up, down = (Link(ConstantRate(mbps * 1e6), ConstantDelay(rtt_ms / 2)) for _ in range(2))
    return up, down


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(1 << 16):
        writer.write(chunk)
    writer.close()


async def test_bytes_come_through_whole_late_and_in_order() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    target = server.sockets[0].getsockname()[:2]
    sent = os.urandom(200_000)
    async with shaped(lambda _: links(50, 30), TCP.plain(), target) as (shaper, address):
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(sent)
        writer.write_eof()
        got = await reader.read(-1)
        spent_ms = (time.monotonic() - began) * 1e3
        writer.close()
        await writer.wait_closed()
        assert (shaper.up_bytes, shaper.down_bytes) == (len(sent), len(sent))
    assert got == sent
    # Never sooner than set-up (30), there and back (30), and 32 ms of serialization one way.
    assert spent_ms >= 92
    server.close()


async def test_a_server_that_is_not_there_closes_the_connection() -> None:
    async with shaped(lambda _: links(50, 2), TCP.plain(), ("127.0.0.1", 1)) as (_, address):
        reader, _writer = await asyncio.open_connection(*address)
        assert await reader.read() == b""


async def test_a_link_that_fails_is_one_line_and_closes_the_connection(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(_: int) -> tuple[Link, Link]:
        raise SpecError("t", "no such\ntrace file")

    async with shaped(failing, TCP.plain(), ("127.0.0.1", 1)) as (_, address):
        reader, _writer = await asyncio.open_connection(*address)
        assert await reader.read() == b""
    assert capsys.readouterr().err == "shape: a connection is given up: t: no such trace file.\n"


async def test_a_timer_beyond_what_a_lock_can_wait_for_keeps_the_others_going() -> None:
    timers, called = WallTimers(asyncio.get_running_loop()), asyncio.Event()
    try:
        timers.at(1e308, called.clear)
        await asyncio.sleep(0.05)
        timers.at(timers.now_ms() + 5, called.set)
        await asyncio.wait_for(called.wait(), 5)
    finally:
        timers.stop()


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (("mbps = 12", 'trace = "none.trace"'), [], "none.trace: no such trace file."),
        (("ms = 35", "ms = 1e308"), [], "own.toml: round_trip.ms: "),
        (("", ""), ["--listen", "a" * 70 + ":0"], "--listen: not an address (got aaa"),
        (("", ""), ["--listen", "127.0.0.1:²"], "--listen: not an address (got 127"),
    ],
)
def test_the_shape_verb_refuses_before_it_listens(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    options: list[str],
    says: str,
) -> None:
    own = tmp_path / "own.toml"
    own.write_text(network("lte").path.read_text().replace(*change, 1))
    words = ["shape", "--profile", str(own), "--to", "127.0.0.1:9", *options]
    assert costeer.run(words) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


async def test_a_name_that_is_none_cannot_be_listened_on() -> None:
    with pytest.raises(EnvironmentFailure, match="shape: cannot listen on aaa"):
        async with shaped(lambda _: links(1, 1), TCP, ("127.0.0.1", 1), ("a" * 70, 0)):
            pass


def test_a_scenario_over_real_sockets_is_the_simulated_one() -> None:
    """Tokens and bytes exactly; times never better than the model allows."""
    scenario = Scenario("short", lambda n: links(20, 10 + n), sessions=2, tokens=12)
    real = asyncio.run(measured(scenario))
    virtual = simulated(scenario)
    for ours, theirs in zip(virtual, real, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.uplink_bytes == theirs.uplink_bytes
        assert ours.downlink_bytes == theirs.downlink_bytes
        # A step alone on the cloud, the head, the rule, and the round trip.
        least = 10 + CLOUD.step_ms(1) + 2.5
        assert theirs.token_ms.min() >= least - 0.5
    for host in (Host(token_ms=3.0, connect_ms=5.0), Host(frame_ms=3.0)):
        slower = simulated(scenario, host)
        assert figures(slower)["token_ms_p50"] >= figures(virtual)["token_ms_p50"] + 2.9


def test_the_five_scenarios_and_their_table(tmp_path: Path) -> None:
    made = convert(markov([2, 8], 1000, 20_000, stream(0, "t")), "mahimahi")
    five = scenarios((made, made))
    assert len({scenario.name for scenario in five}) == 5
    assert [scenario.sessions for scenario in five] == [1, 1, 1, 1, 8]
    lossy = simulated(five[3])[0]
    assert lossy.counters["retransmissions"] > 0
    zero = dict.fromkeys(("ttft_ms_error", "token_ms_p50_error", "token_ms_p95_error"), 0.0)
    ours = figures([lossy])
    row = {
        "scenario": "s", **zero, "without_host": zero, "bytes_error": 0, "same_tokens": True,
        "real": ours, "simulated": ours,
    }  # fmt: skip
    text = table([row], Host(1.0, connect_ms=2.0), 3, "made")
    out = tmp_path / "validation.md"
    out.write_text(f"# mine\n\nbefore\n{BEGIN}\nold\n{END}\nafter\n")
    new = page(text, out)
    assert new.startswith("# mine\n\nbefore\n")
    assert new.endswith("after\n")
    assert "old" not in new
    assert "| s | per token, p50 |" in new


def test_the_shape_verb_listens_and_says_where() -> None:
    command = [sys.executable, "-m", "costeer", "shape", "--profile", "fiber", "--to"]
    process = subprocess.Popen(
        [*command, "127.0.0.1:9", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["profile"] == "fiber"
        assert said["port"] > 0
    finally:
        process.terminate()
        process.communicate(timeout=20)
    wrong = subprocess.run([*command, "nowhere"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert re.search(r"--to: not an address \(got nowhere; allowed HOST:PORT\)", wrong.stderr)


def test_what_follows_a_pass_is_told_by_its_rows() -> None:
    """1.5 ms, and 0.2 for each further row; a session that had to wait once changes nothing."""
    passes, now = [], 0.0
    for number in range(60):
        rows = (1, 8, 4)[number % 3]
        passes.append(Pass(now, rows, 10.0 + rows))
        now += 10.0 + rows + 1.5 + 0.2 * (rows - 1) + (50.0 if number == 30 else 0.0)
    assert between_passes(passes) == pytest.approx((1.5, 0.2))
