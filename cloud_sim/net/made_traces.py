"""Traces that are made: from a Markov chain over stated means, or from a trace of another form.

    markov([1, 5, 20], stay_ms, duration_ms, generator)                rates, Mbit/s
    markov([20, 50, 200], ..., form="rtt")                             round trips, ms
    convert(trace, "mahimahi")                                         opportunities of a rate

Opportunities and rates carry the same bytes over a loop up to one opportunity. A round trip has no
rate and a rate no round trip: there is no way from one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from cloud_sim.net.rates import OPPORTUNITY_BYTES
from cloud_sim.net.traces import LONGEST_MS, Form, Trace
from edge_runtime.errors import UsageError

MOST_OPPORTUNITIES = 20_000_000
"""Lines of a mahimahi file, some 180 MB of text: 4 Gbit/s for a minute."""


def convert(trace: Trace, form: Form, *, step_ms: float = 100.0) -> Trace:
    """`trace` in another form. Raises `UsageError` where there is no such conversion.

    mahimahi to rate: the mean of each `step_ms`. rate to mahimahi: an opportunity at the whole
    millisecond by which 1,500 more bytes could have left; what is left at the loop's end is lost.
    """
    if trace.form == form:
        return trace
    if (trace.form, form) == ("mahimahi", "rate"):
        if not 1 <= step_ms <= LONGEST_MS:
            raise UsageError(
                "trace", "no width of a step", got=f"{step_ms:g} ms", allowed=f"1 to {LONGEST_MS}"
            )
        rates = tuple(float(rate) for rate in trace.mbps(step_ms))
        starts = tuple(step_ms * i for i in range(len(rates)))
        return Trace("rate", starts, rates, trace.period_ms)
    if (trace.form, form) == ("rate", "mahimahi"):
        edges = np.array([*trace.times_ms, trace.period_ms])
        sums = np.concatenate([[0], np.cumsum(np.diff(edges) * np.array(trace.values) * 125)])
        count = sums[-1] / OPPORTUNITY_BYTES + 1e-9
        if not count <= MOST_OPPORTUNITIES:
            raise UsageError(
                "trace",
                "the trace would have too many opportunities",
                got=f"{count:.3g}",
                allowed=f"{MOST_OPPORTUNITIES}",
                todo="Keep it as rates (--form rate), or make it shorter",
            )
        marks = np.arange(1, int(count) + 1) * OPPORTUNITY_BYTES
        marks = np.minimum(marks, sums[-1])  # the last may be beyond by a rounding of the sum
        # A pause makes the sum flat, and interp wants it ascending: take the earliest instant.
        at = np.searchsorted(sums, marks, side="left")
        share = (marks - sums[at - 1]) / (sums[at] - sums[at - 1])
        times = np.ceil(edges[at - 1] + share * (edges[at] - edges[at - 1]) - 1e-9)
        if not len(times) or times[-1] == 0:
            raise UsageError("trace", "the rate is too low for one opportunity in the whole trace")
        return Trace("mahimahi", tuple(times.tolist()), (), float(times[-1]))
    raise UsageError(
        "trace",
        f"there is no way from {trace.form} to {form}",
        allowed="mahimahi to rate, rate to mahimahi",
    )


def markov(
    means: Sequence[float],
    stay_ms: float,
    duration_ms: float,
    generator: np.random.Generator,
    *,
    spread: float = 0.2,
    step_ms: float = 100.0,
    form: Literal["rate", "rtt"] = "rate",
) -> Trace:
    """A made-up trace of rates (Mbit/s) or round trips (ms): a chain over states with their means.

    A state lasts an exponential time of mean `stay_ms`, then moves to a neighbour (birth and
    death); in it, every `step_ms` the value is lognormal around the state's mean with the relative
    standard deviation `spread`. Its long-run mean is the mean of `means` weighted by how often the
    chain is in each: inner states twice as often as the two ends. The first state is any.
    """
    steps = max(1, math.ceil(duration_ms / step_ms))
    switch = 1 - math.exp(-step_ms / stay_ms)
    sigma = math.sqrt(math.log(1 + spread * spread))
    state = int(generator.integers(len(means)))
    values = []
    for _ in range(steps):
        noise = math.exp(sigma * float(generator.standard_normal()) - sigma * sigma / 2)
        values.append(means[state] * noise)
        if generator.random() < switch and len(means) > 1:
            up = state == 0 or (state < len(means) - 1 and generator.random() < 0.5)
            state += 1 if up else -1
    return Trace(form, tuple(step_ms * i for i in range(steps)), tuple(values), steps * step_ms)
