"""Trace files: read, refused with their line, converted byte for byte, replayed."""

from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import costeer
from cloud_sim.net import traces
from cloud_sim.net.catalogue import network
from cloud_sim.net.made_traces import convert, markov
from cloud_sim.net.streams import stream
from edge_runtime.errors import SpecError, UsageError

RECORDED = Path(os.environ.get("COSTEER_TRACES", Path(__file__).parents[3] / "shared" / "traces"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\nx\n", r"t, line 3: not a whole number of milliseconds \(got 'x'\)\."),
        ("5\n4\n", r"t, line 2: a time before the one above it \(got 4; allowed at least 5\)\."),
        ("0\n0\n", r"t: all opportunities are at 0 ms"),
        ("", r"t: the trace is empty\."),
        ("# a heading\n", r"t, line 1: this is no trace that is known here"),
        ("t_ms,rate_mbps\n0,1\n0,2\n", r"t, line 3: a time not after the one above it"),
        ("t_ms,rate_mbps\n0,1\n5,-2\n", r"t, line 3: a value that cannot be"),
        ("t_ms,rate_mbps\n0,0\n5,0\n", r"t: all rates are 0"),
        ("t_ms,rate_mbps\n0,1\n", r"t: a series needs at least two rows \(got 1\)"),
        ("time,rtt_ms\n0,1\n", r"t, line 1: there is no column t_ms \(got time, rtt_ms\)\."),
        ("1\n" + "9" * 30 + "\n", r"t, line 2: a time too long after the beginning \(got '9+'; a"),
        ("t_ms,rate_mbps\n0,1\n1e12,1\n", r"t, line 3: a time too long after the beginning"),
        ("0.0 4.0\n0.5\n", r"t, line 2: not two numbers \(got '0.5'\)\."),
        (
            "t_ms,rate_mbps\n0,1e308\n5,1\n",
            r"t, line 2: a value that is too large .* 1000000 Mbit/s",
        ),
        ("t_ms,rtt_ms\n0,1e308\n5,1\n", r"t, line 2: a value that is too large .* 86400000 ms"),
        ("t_ms,rate_mbps\n0,1\n1e-300,1\n", r"t: the series is too short \(got 1e-300 ms"),
        ("t_ms,rate_mbps\n0,5e-324\n5,1\n", r"t: the rates are so low that not one byte"),
    ],
)
def test_malformed_files_name_the_line_and_the_fault(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        traces.parse(text, "t")


@pytest.mark.parametrize("text", ["\n1 2\n", '"\n1,2\n', "x" * 200_000 + "\n1,2\n"])
def test_a_header_that_is_none_is_refused_in_a_form_that_was_named(text: str) -> None:
    with pytest.raises(SpecError, match=r"t, line 1: (there is no column|the header cannot be)"):
        traces.parse(text, "t", "rate")


@pytest.mark.parametrize("step_ms", [math.inf, math.nan, 1e308, 0.5])
def test_a_step_of_no_width_is_refused(step_ms: float) -> None:
    with pytest.raises(UsageError, match="trace: no width of a step"):
        convert(traces.parse("1\n2\n", "t"), "rate", step_ms=step_ms)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=60).filter(lambda t: max(t) > 0))
def test_mahimahi_text_round_trips(times: list[int]) -> None:
    text = "".join(f"{t}\n" for t in sorted(times))
    assert traces.parse(text, "t").text() == text


@given(
    st.lists(st.tuples(st.integers(10, 500), st.floats(0.5, 80)), min_size=1, max_size=15),
)
@example([(81, 79.99999999999999)] * 3)  # 1,620 opportunities less 5e-10 bytes
@settings(deadline=None)
def test_a_rate_becomes_opportunities_that_carry_its_bytes(
    segments: list[tuple[int, float]],
) -> None:
    starts = np.cumsum([0] + [length for length, _ in segments]).tolist()
    trace = traces.Trace(
        "rate", tuple(starts[:-1]), tuple(rate for _, rate in segments), starts[-1]
    )
    again = traces.parse(trace.text(), "t")
    assert again.total_bytes == pytest.approx(trace.total_bytes)
    if trace.total_bytes < 1500:
        return
    packets = convert(trace, "mahimahi")
    assert -1e-5 < trace.total_bytes - packets.total_bytes < 1500.001
    # Saturated, the opportunities deliver within one loop exactly what they stand for.
    rate = packets.as_rate()
    done = [rate.finish(0.0, 1500) for _ in packets.times_ms]
    assert done == list(packets.times_ms)
    # No opportunity comes before the rate could have carried it.
    smooth = trace.as_rate()
    assert all(at >= smooth.finish(0.0, 1500) - 1e-6 for at in packets.times_ms)


def test_the_made_trace_has_the_stated_mean_and_replays_in_every_form(tmp_path: Path) -> None:
    made = markov([2, 8, 20], 3000, 3_000_000, stream(1, "t"))
    assert made.total_bytes * 8e-3 / made.period_ms == pytest.approx(9.5, rel=0.1)  # 1:2:1
    short = markov([2, 8], 1000, 20_000, stream(2, "t"))
    for form in ("rate", "mahimahi"):
        path = tmp_path / f"{form}.trace"
        path.write_text(convert(short, form).text())
        profile = network("lte").path.read_text()
        own = profile.replace("mbps = 12", f'trace = "{form}.trace"')
        (tmp_path / "own.toml").write_text(own)
        up, down = network(str(tmp_path / "own.toml")).links(0)
        assert up.send(0.0, 1500) == pytest.approx(down.send(0.0, 1500))
    trips = markov([20, 60], 1000, 20_000, stream(3, "t"), form="rtt")
    (tmp_path / "rtt.csv").write_text(trips.text())
    (tmp_path / "own.toml").write_text(
        network("lte").path.read_text().replace("ms = 35", 'trace = "rtt.csv"')
    )
    up, down = network(str(tmp_path / "own.toml")).links(0)
    for at in (0.0, 5_000.0, 25_000.0):  # the last in the second loop
        sample = trips.values[int(at % trips.period_ms / 100)]
        assert up.send(at, 10) - at == pytest.approx(sample / 2 + 8 * 10 / 12e3, abs=1e-6)
    with pytest.raises(UsageError, match="there is no way from rate to rtt"):
        convert(short, "rtt")


def test_devices_of_a_fleet_begin_a_trace_each_at_its_own_place(tmp_path: Path) -> None:
    made = markov([2, 8, 20], 1000, 60_000, stream(4, "t"))
    (tmp_path / "rate.trace").write_text(made.text())
    own = tmp_path / "own.toml"
    own.write_text(network("lte").path.read_text().replace("mbps = 12", 'trace = "rate.trace"'))
    profile = network(str(own))

    def arrives(*names: str | int, **more: bool) -> tuple[float, float]:
        up, down = profile.links(1, *names, **more)
        return up.send(0.0, 100_000), down.send(0.0, 100_000)

    there = [arrives("device", n, elsewhere=True) for n in range(20)]
    assert len(set(there)) == 20
    assert all(up == down for up, down in there)  # one place for both directions' same trace
    assert there[3] == arrives("device", 3, elsewhere=True)
    assert arrives("device", 3) == arrives("device", 4)  # alone, a run begins where it is told to
    assert network("lte").links(1, elsewhere=True)[0].send(0.0, 1500) == 18.5


def test_gzip_is_read_and_a_broken_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.gz"
    path.write_bytes(gzip.compress(b"1\n2\n"))
    assert traces.read(path).times_ms == (1.0, 2.0)
    path.write_bytes(gzip.compress(b"1\n2\n" * 1000)[:-20])
    with pytest.raises(SpecError, match="the trace cannot be read"):
        traces.read(path)
    whole = bytearray(gzip.compress(b"1\n2\n" * 1000))
    whole[10] ^= 0xFF  # where the compressed data begin
    path.write_bytes(whole)
    with pytest.raises(SpecError, match="the trace cannot be read"):
        traces.read(path)


@pytest.mark.skipif(not RECORDED.is_dir(), reason="no recorded traces (COSTEER_TRACES)")
def test_recorded_traces_are_read_with_their_published_figures() -> None:
    info = traces.read(RECORDED / "cicv5g" / "n78_public_urban_100Hz_v30.csv").info()
    assert [info[f"rtt_ms_{q}"] for q in ("p50", "p95", "p99", "max")] == [17, 27, 33, 282]
    for path in sorted((RECORDED / "mahimahi").iterdir()):
        if path.name != "README":
            trace = traces.read(path)
            assert trace.total_bytes == 1500 * len(trace.times_ms)
    for path in sorted((RECORDED / "norway3g").iterdir())[:5]:
        assert traces.read(path).form == "rate"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = costeer.run([str(a) for a in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_trace_verb_makes_converts_and_tells(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made, rate = tmp_path / "made.trace", tmp_path / "rate.csv"
    code, out, _ = run(capsys, "trace", "make", made, "--seconds", 20, "--seed", 3, "--json")
    first = made.read_bytes()
    assert code == 0
    assert json.loads(out)["form"] == "mahimahi"
    assert run(capsys, "trace", "make", made, "--seconds", 20, "--seed", 3)[0] == 0
    assert made.read_bytes() == first
    assert run(capsys, "trace", "convert", made, rate, "--to", "rate")[0] == 0
    code, _, err = run(capsys, "trace", "convert", made, made, "--to", "rate")
    assert (code, made.read_bytes()) == (2, first)
    assert err.startswith("OUT: this is the trace to read (got ")
    code, out, _ = run(capsys, "trace", "info", rate, "--json")
    assert json.loads(out)["bytes"] == pytest.approx(traces.read(made).total_bytes)
    code, _, err = run(capsys, "trace", "info", tmp_path / "none")
    assert (code, "no such trace file" in err) == (2, True)
    trips = tmp_path / "trips.csv"
    means = ("--form", "rtt", "--rtt-ms", "30,90", "--seconds", 600)
    code, out, _ = run(capsys, "trace", "make", trips, *means, "--json")
    told = json.loads(out)
    assert (code, told["form"]) == (0, "rtt")
    assert 30 < told["rtt_ms_p50"] < 90 < told["rtt_ms_p95"]
    assert traces.read(trips).info()["samples"] == 6000
    code, _, err = run(capsys, "trace", "make", trips, "--form", "rtt", "--rtt-ms", "0")
    assert (code, "--rtt-ms: not a list of round trips (got 0" in err) == (2, True)
    code, _, err = run(capsys, "trace", "make", made, "--mbps", "a,b")
    assert (code, made.read_bytes()) == (2, first)
    assert "not a list of rates (got a,b" in err
    for mbps, said in (("nan", "not a list of rates (got nan"), ("1e12", "too many opportunit")):
        code, _, err = run(capsys, "trace", "make", made, "--mbps", mbps)
        assert (code, err.count("\n"), made.read_bytes()) == (2, 1, first)
        assert said in err
    for absurd in (("--mbps", "1e307", "--form", "rate"), ("--spread", "inf")):
        code, _, err = run(capsys, "trace", "make", made, *absurd)
        assert (code, err.count("\n"), made.read_bytes()) == (2, 1, first)
    code, _, err = run(capsys, "trace", "make", tmp_path, "--seconds", 1)
    assert (code, err.count("\n")) == (3, 1)
