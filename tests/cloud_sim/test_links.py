"""A link's closed forms: when packets arrive, exactly."""

from __future__ import annotations

import math
import re
import textwrap
import tomllib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_sim.net.catalogue import names, network
from cloud_sim.net.impairments import (
    GilbertElliott,
    Jitter,
    Outages,
    Radio,
    bursty_loss,
    random_loss,
)
from cloud_sim.net.links import LOST, ConstantDelay, Link, RecordedDelay
from cloud_sim.net.rates import ConstantRate, Opportunities, RateSeries, Timetable
from cloud_sim.net.schema import NetworkFile
from cloud_sim.net.streams import stream
from edge_runtime.errors import SpecError, UsageError


def constant(mbps: float = 12.0, delay_ms: float = 20.0, **more: object) -> Link:
    return Link(ConstantRate(mbps * 1e6), ConstantDelay(delay_ms), **more)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(1, 5000)), min_size=1, max_size=40),
    st.floats(0.05, 1000),
    st.floats(0, 300),
)
def test_lossless_constant_link_is_serialization_plus_propagation(
    packets: list[tuple[float, int]], mbps: float, delay_ms: float
) -> None:
    link = constant(mbps, delay_ms)
    now = free = 0.0
    for gap, size in packets:
        now += gap
        free = max(now, free) + size * 8 / (mbps * 1e3)  # ms at mbps * 1e3 bits per ms
        assert link.send(now, size) == pytest.approx(free + delay_ms, rel=1e-12)


def test_queue_drops_at_its_tail() -> None:
    link = constant(0.008, 0.0, queue_bytes=30)  # one byte a millisecond
    assert [link.send(0.0, 10) for _ in range(4)] == [10.0, 20.0, 30.0, LOST]
    assert link.dropped_packets == 1
    # At 10 ms the first has left, so there is room for exactly one.
    assert link.send(10.0, 10) == 40.0
    assert link.send(10.0, 1) == LOST


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=30).filter(lambda times: max(times) > 0),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4000)), min_size=1, max_size=30),
)
def test_opportunities_equal_the_man_pages_rule(
    times: list[float], packets: list[tuple[int, int]]
) -> None:
    """Against a plain millisecond-by-millisecond reading of mm-link's accounting."""
    times = sorted(time / 4 for time in times)
    rate = Opportunities(Timetable(times))
    arrivals, now = [], 0.0
    for gap, size in packets:
        now += gap / 4
        arrivals.append((now, size))
    got = [rate.finish(at, size) for at, size in arrivals]

    expected: list[float] = []
    queue: list[list[int]] = []  # index, bytes left
    waiting, cycle, index, sent = list(enumerate(arrivals)), 0, 0, 0
    while sent < len(arrivals):
        instant = cycle * times[-1] + times[index]
        while waiting and waiting[0][1][0] <= instant:
            number, (_, size) = waiting.pop(0)
            queue.append([number, size])
        left = 1500
        while left and queue:
            used = min(left, queue[0][1])
            left -= used
            queue[0][1] -= used
            if queue[0][1] == 0:
                expected.append(instant)
                queue.pop(0)
                sent += 1
        index += 1
        if index == len(times):
            index, cycle = 0, cycle + 1
    assert got == expected


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 80)), min_size=1, max_size=12).filter(
        lambda series: any(rate for _, rate in series)
    ),
    st.lists(st.tuples(st.integers(0, 90), st.integers(1, 3000)), min_size=1, max_size=12),
)
def test_rate_series_integrates_the_rate(
    series: list[tuple[int, int]], packets: list[tuple[int, int]]
) -> None:
    """Against stepping through the segments one after the other."""
    starts = np.cumsum([0] + [length for length, _ in series]).tolist()
    rate = RateSeries(starts[:-1], [r * 8e3 for _, r in series], starts[-1])  # r bytes per ms
    now, free = 0, Fraction(0)
    for gap, size in packets:
        now += gap
        at, left = max(Fraction(now), free), Fraction(size)
        while True:
            cycle, within = divmod(at, starts[-1])
            i = next(k for k in range(len(series)) if starts[k] <= within < starts[k + 1])
            speed, end = series[i][1], cycle * starts[-1] + starts[i + 1]
            if speed * (end - at) >= left:
                at += left / speed
                break
            left -= speed * (end - at)
            at = end
        free = at
        assert rate.finish(now, size) == pytest.approx(float(at), abs=1e-6)


def test_recorded_delay_is_half_of_the_round_trip_of_its_time() -> None:
    delay = RecordedDelay([0, 100, 200], [10, 30, 50], 300)
    assert [delay.at(t) for t in (0, 99, 100, 299, 300, 405)] == [5, 5, 15, 25, 5, 15]


@pytest.mark.parametrize("distribution", ["uniform", "normal", "lognormal", "pareto"])
def test_jitter_has_the_stated_moments_and_memory(distribution: str) -> None:
    jitter = Jitter(distribution, 40.0, 8.0, stream(1, "j"), correlation_ms=100.0)  # type: ignore[arg-type]
    if distribution == "pareto":  # a Lomax has at least the spread of an exponential
        jitter = Jitter("pareto", 40.0, 60.0, stream(1, "j"), correlation_ms=100.0)
    values = np.array([jitter.extra_ms(10.0 * i) for i in range(100_000)])
    assert values.min() >= 0
    assert values.mean() == pytest.approx(40.0, rel=0.05)
    if distribution != "pareto":
        assert values.std() == pytest.approx(8.0, rel=0.05)
        lag = np.corrcoef(values[:-10], values[10:])[0, 1]  # 100 ms apart: exp(-1)
        assert lag == pytest.approx(math.exp(-1), abs=0.05)
    else:
        assert np.median(values) < 30


def test_loss_has_the_stated_rate_and_bursts() -> None:
    for chain, burst in (
        (random_loss(0.05, stream(2, "l")), 1.05),
        (bursty_loss(0.05, 6.0, stream(2, "l")), 6.0),
    ):
        lost = np.array([chain.lost() for _ in range(100_000)])
        assert lost.mean() == pytest.approx(0.05, rel=0.06)
        assert chain.mean_loss == pytest.approx(0.05)
        bursts = np.count_nonzero(np.diff(lost.astype(int)) == 1)
        assert lost.sum() / bursts == pytest.approx(burst, rel=0.06)


def test_bursts_of_one_are_independent_losses() -> None:
    """A packet sent again right after a loss is lost as often as any other."""
    chain = bursty_loss(0.2, 1.0, stream(2, "l"))
    lost = np.array([chain.lost() for _ in range(100_000)])
    assert lost.mean() == pytest.approx(0.2, rel=0.03)
    assert lost[1:][lost[:-1]].mean() == pytest.approx(0.2, rel=0.05)


def test_bursty_loss_has_its_share_from_the_first_packet_on() -> None:
    """The chain begins in its long-run distribution: over many short runs no packet is spared."""
    runs = np.array(
        [[chain.lost() for _ in range(20)] for chain in _chains(4000, rate=0.1, burst=50.0)]
    )
    # 4,000 independent draws at each position: 0.1 within four standard errors.
    assert np.abs(runs.mean(axis=0) - 0.1).max() < 4 * math.sqrt(0.09 / 4000)


def _chains(count: int, *, rate: float, burst: float) -> list[GilbertElliott]:
    return [bursty_loss(rate, burst, stream(9, "chain", n)) for n in range(count)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[jitter]\ndistribution = "lognormal"\nmean_ms = 0\nsd_ms = 1', "needs a mean_ms above 0"),
        ('[jitter]\ndistribution = "pareto"\nmean_ms = 5\nsd_ms = 1', "at least its mean_ms"),
        ("[loss]\nrate = 0.5\nburst = 1.5", r"in bursts of 2 on average, so burst is 1"),
        ("[loss]\nrate = 0.9999", r"loss\.rate: .*less than or equal to 0\.5 \(got 0\.9999\)"),
        ("[loss]\nrate = 0.5\nburst = 1e9", r"loss\.burst: .*less than or equal to 10000"),
        ('[jitter]\ndistribution = "pareto"\nmean_ms = 5\nsd_ms = 1e308', r"jitter\.sd_ms: "),
        ('[jitter]\ndistribution = "pareto"\nmean_ms = 1e-200\nsd_ms = 1', "sd_ms is more than"),
        ("[outages]\nevery_ms = 1\nlasting_ms = 1e308", r"outages\.lasting_ms: "),
        ("[outages]\nevery_ms = 1e-300\nlasting_ms = 1e-300", r"outages\.every_ms: "),
        ("[outages]\nevery_ms = 1\nlasting_ms = 10\ndrops = true", "0.909 of the time"),
        ("[radio]\nidle_ms = 1\nwake_ms = 1e308", r"radio\.wake_ms: "),
    ],
)
def test_impossible_impairments_are_refused(tmp_path: Path, table: str, message: str) -> None:
    own = tmp_path / "own.toml"
    sourced = f'\n{table}\norigin = "assumed"\nsource = "a test"\n'
    own.write_text(network("lte").path.read_text() + sourced)
    with pytest.raises(SpecError, match=message):
        network(str(own))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("ms = 35", "ms = 1e308", "round_trip.ms"),
        ("ms = 35", "ms = inf", "round_trip.ms"),
        ("ms = 35", 'trace = "t"\noffset_ms = 1e308', "round_trip.offset_ms"),
        ("mbps = 12", "mbps = 1e308", "uplink.mbps"),
        ("mbps = 12", "mbps = 1e-300", "uplink.mbps"),
        ("mbps = 12", "mbps = 12\nqueue_kb = 1e308", "uplink.queue_kb"),
        ("mbps = 12", "mbps = 12\nqueue_kb = 0.1", "uplink.queue_kb"),
    ],
)
def test_values_that_no_network_has_are_refused(
    tmp_path: Path, old: str, new: str, key: str
) -> None:
    own = tmp_path / "own.toml"
    own.write_text(network("lte").path.read_text().replace(old, new, 1))
    with pytest.raises(SpecError, match=re.escape(f"own.toml: {key}: ")):
        network(str(own))


@pytest.mark.parametrize("rtt_ms", [1e308, math.inf, -1.0])
def test_another_round_trip_is_checked_too(rtt_ms: float) -> None:
    with pytest.raises(SpecError, match=r"^lte: another round trip: ms: "):
        network("lte").with_rtt(rtt_ms)


def test_the_documented_network_profile_is_one(tmp_path: Path) -> None:
    """The example of docs/simulator.md, which has every table there is."""
    page = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    begin = page.index("    schema = 1\n")
    text = textwrap.dedent(page[begin : page.index("    costeer simulate dinner", begin)])
    assert set(tomllib.loads(text)) >= set(NetworkFile.model_fields) - {"schema_"}
    (tmp_path / "train.toml").write_text(text)
    (tmp_path / "down.trace").write_text("1\n2\n5\n")
    up, down = network(str(tmp_path / "train.toml")).links(0)
    assert up.send(0.0, 100) > 75 + 30  # the radio wakes, half of the round trip
    assert down.send(0.0, 100) > 75 + 30


def test_packets_never_overtake_each_other() -> None:
    link = constant(100, 5, jitter=Jitter("lognormal", 30, 60, stream(3, "j")))
    arrivals = [link.send(float(i), 100) for i in range(2000)]
    assert arrivals == sorted(arrivals)


def test_an_outage_holds_packets_or_drops_them() -> None:
    held = Outages(1000, 200, stream(4, "o"), fixed=True)
    waits = np.array([held.until(t) - t for t in np.arange(0, 300_000, 7.0)])
    assert waits.max() <= 200
    assert (waits > 0).mean() == pytest.approx(200 / 1200, rel=0.15)
    link = constant(outages=Outages(1000, 200, stream(4, "o"), fixed=True, drops=True))
    lost = np.array([link.send(t, 10) == LOST for t in np.arange(0, 300_000, 7.0)])
    assert np.array_equal(lost, waits > 0)


def test_the_radio_wakes_once_and_stays_awake() -> None:
    radio = Radio(idle_ms=1000, wake_ms=75)
    up, down = constant(1000, 0, radio=radio), constant(1000, 0, radio=radio)
    assert up.send(0.0, 1) == pytest.approx(75.0, abs=1e-3)
    assert up.send(10.0, 1) == pytest.approx(75.0, abs=1e-3)  # still waking
    assert down.send(1000.0, 1) == pytest.approx(1000.0, abs=1e-3)  # the other way keeps it awake
    assert up.send(1900.0, 1) == pytest.approx(1900.0, abs=1e-3)
    assert up.send(2901.0, 1) == pytest.approx(2976.0, abs=1e-3)


def test_streams_are_independent_by_name_and_stable() -> None:
    first = stream(7, "device", 0, "loss").random(4)
    assert np.array_equal(first, stream(7, "device", 0, "loss").random(4))
    others = [
        stream(7, "device", 1, "loss"),
        stream(8, "device", 0, "loss"),
        stream(7, "device", 0),
    ]
    assert all(not np.array_equal(first, other.random(4)) for other in others)
    # If this number changes, so does every figure that was ever printed with a seed.
    assert stream(0, "a").integers(1 << 32) == 2985586629


def test_every_built_in_network_makes_links() -> None:
    assert {"lte", "5g", "slow-4g"} <= set(names("networks"))
    for name in names("networks"):
        profile = network(name)
        assert profile.name == name
        up, down = profile.links(0)
        assert 0 < up.send(0.0, 100) < 2000
        assert 0 < down.send(0.0, 100) < 2000


def test_the_5g_profile_has_the_recordings_percentiles() -> None:
    """CICV5G, n78 public urban: p50 17, p95 27, p99 33 ms; messages a second apart."""
    up, down = network("5g-n78").links(0)
    trips = []
    for second in range(20_000):
        there = up.send(second * 1e3, 64)
        trips.append(down.send(there, 64) - second * 1e3)
    assert np.percentile(trips, [50, 95, 99]) == pytest.approx([17, 27, 33], rel=0.05)


def test_profile_errors_name_the_file_the_key_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^networks: no such profile \(got ltee\)\. Did you mean lte\?"
    ):
        network("ltee")
    good = network("lte").path.read_text()
    own = tmp_path / "own.toml"
    own.write_text(good.replace("mbps = 12", "mbs = 12", 1))
    with pytest.raises(
        SpecError, match=r"own\.toml: uplink: unknown key 'mbs'\. Did you mean mbps\?"
    ):
        network(str(own))
    own.write_text(good.replace("ms = 35", "ms = -1"))
    with pytest.raises(SpecError, match=r"own\.toml: round_trip\.ms: .*greater than 0 \(got -1\)"):
        network(str(own))
    own.write_text("not = [toml")
    with pytest.raises(SpecError, match="not valid TOML"):
        network(str(own))
