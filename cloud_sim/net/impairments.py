"""What a link does to packets besides taking time: jitter, loss, outages, a radio that sleeps.

Each element draws from a stream of its own (`streams.stream`). Calls must come in order of time.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

import numpy as np

from cloud_sim.net.streams import normals, uniforms

Distribution = Literal["uniform", "normal", "lognormal", "pareto"]

_STANDARD = NormalDist()


class Jitter:
    """Extra delay of a packet, with a named distribution and a memory.

    A Gaussian AR(1) process in time, whose correlation fades as exp(-gap / correlation_ms), is
    mapped through the distribution's inverse: packets of one instant are delayed alike. Negative
    delays are cut off at 0 (`normal`), which raises the mean by what was cut off.
    Not modelled: delay that depends on load (that is the queue's) or on the other direction.

    Parameters
    ----------
    mean_ms, sd_ms : of the extra delay; for `uniform` the spread is mean ± sqrt(3) sd.
    correlation_ms : time in which the memory fades to 1/e; 0: every packet for itself.

    """

    def __init__(
        self,
        distribution: Distribution,
        mean_ms: float,
        sd_ms: float,
        generator: np.random.Generator,
        *,
        correlation_ms: float = 0.0,
    ) -> None:
        self._distribution = distribution
        self._mean, self._sd = mean_ms, sd_ms
        self._correlation = correlation_ms
        self._normals = normals(generator)
        self._state = next(self._normals)
        self._at = -math.inf
        if distribution == "lognormal":
            variance = math.log(1 + (sd_ms / mean_ms) ** 2)
            self._sigma = math.sqrt(variance)
            self._mu = math.log(mean_ms) - variance / 2
        elif distribution == "pareto":
            # Lomax: mean m/(a-1), variance finite for a > 2; a from the squared ratio sd/mean.
            ratio = max((sd_ms / mean_ms) ** 2, 1.0 + 1e-9)
            self._shape = 2 * ratio / (ratio - 1)
            self._scale = mean_ms * (self._shape - 1)

    def extra_ms(self, now_ms: float) -> float:
        """The extra delay of a packet that is sent now."""
        gap = now_ms - self._at
        self._at = now_ms
        if self._correlation <= 0:
            self._state = next(self._normals)
        elif gap > 0:
            memory = math.exp(-gap / self._correlation)
            fresh = math.sqrt(1 - memory * memory)
            self._state = memory * self._state + fresh * next(self._normals)
        z = self._state
        if self._distribution == "normal":
            return max(0.0, self._mean + self._sd * z)
        if self._distribution == "lognormal":
            return math.exp(self._mu + self._sigma * z)
        u = min(_STANDARD.cdf(z), 1 - 1e-12)
        if self._distribution == "uniform":
            return max(0.0, self._mean + math.sqrt(3) * self._sd * (2 * u - 1))
        return float(self._scale * ((1 - u) ** (-1 / self._shape) - 1))


class GilbertElliott:
    """Loss with bursts: a two-state chain that moves once a packet (Gilbert 1960, Elliott 1963).

    It begins in its long-run distribution, so that short runs lose the stated share on average too.
    `random_loss` is the one-state case. Not modelled: a chain that moves with time; for a thin
    stream, seconds of silence are an `Outages`.

    Parameters
    ----------
    to_bad, to_good : probability of leaving the good and the bad state at each packet.
    loss_good, loss_bad : probability of losing a packet in each state.

    """

    def __init__(
        self,
        to_bad: float,
        to_good: float,
        generator: np.random.Generator,
        *,
        loss_good: float = 0.0,
        loss_bad: float = 1.0,
    ) -> None:
        self._leave = (to_bad, to_good)
        self._loss = (loss_good, loss_bad)
        self._uniforms = uniforms(generator)
        self._bad = int(next(self._uniforms) < self._bad_share) if to_bad else 0

    @property
    def _bad_share(self) -> float:
        """Long-run share of packets sent in the bad state."""
        to_bad, to_good = self._leave
        return to_bad / (to_bad + to_good) if to_bad else 0.0

    @property
    def mean_loss(self) -> float:
        """Long-run share of packets lost."""
        bad = self._bad_share
        return bad * self._loss[1] + (1 - bad) * self._loss[0]

    def lost(self) -> bool:
        """Whether the next packet is lost."""
        if next(self._uniforms) < self._leave[self._bad]:
            self._bad = 1 - self._bad
        return next(self._uniforms) < self._loss[self._bad]


def random_loss(rate: float, generator: np.random.Generator) -> GilbertElliott:
    """Each packet is lost with probability `rate`, whatever happened to the others."""
    return GilbertElliott(0.0, 1.0, generator, loss_good=rate)


def bursty_loss(rate: float, burst: float, generator: np.random.Generator) -> GilbertElliott:
    """A share `rate` of packets is lost, in bursts of `burst` packets on average.

    1: independent losses, whose bursts have a mean of 1 / (1 - rate); a smaller mean than that is
    not to be had by chance, and the profiles' schema refuses it.
    """
    if burst == 1:
        return random_loss(rate, generator)
    to_good = 1 / burst
    return GilbertElliott(rate * to_good / (1 - rate), to_good, generator)


class Outages:
    """Times in which nothing passes: handovers (short, packets wait) or dead spots (long).

    The gaps between two outages are exponential with mean `every_ms`, their length exponential
    with mean `lasting_ms` or exactly that (`fixed`). A packet that comes in an outage waits
    for its end, or is lost (`drops`); one that is queued or being sent by then passes.
    Not modelled: that the next cell is faster or slower.
    """

    def __init__(
        self,
        every_ms: float,
        lasting_ms: float,
        generator: np.random.Generator,
        *,
        fixed: bool = False,
        drops: bool = False,
    ) -> None:
        self._every, self._lasting = every_ms, lasting_ms
        self._fixed = fixed
        self._generator = generator
        self.drops = drops
        self._end = 0.0
        self._start = self._end
        self._advance()

    def until(self, now_ms: float) -> float:
        """When what wants to be sent now may be: now, or the end of the outage it is in."""
        while self._end <= now_ms:
            self._advance()
        return self._end if self._start <= now_ms else now_ms

    def _advance(self) -> None:
        self._start = self._end + float(self._generator.exponential(self._every))
        lasting = self._lasting
        if not self._fixed:
            lasting = float(self._generator.exponential(self._lasting))
        self._end = self._start + lasting


class Radio:
    """A modem that goes idle: the first packet after a silence waits until it is awake.

    One radio serves both directions of a device; a packet of either keeps it awake. Real
    networks step down through several states (High Performance Browser Networking, ch. 7); this
    is one step, from idle to active.
    """

    def __init__(self, idle_ms: float, wake_ms: float) -> None:
        self._idle, self._wake = idle_ms, wake_ms
        self._active = -math.inf
        self._awake = -math.inf

    def until(self, now_ms: float) -> float:
        """When a packet that wants to be sent now finds the radio awake."""
        if now_ms - self._active > self._idle:
            self._awake = now_ms + self._wake
        ready = now_ms if now_ms > self._awake else self._awake
        if ready > self._active:
            self._active = ready
        return ready
