"""What an answer told the cloud: in bytes, and in bits about the private context.

A cloud that knows its own prediction (`base`) sees the emitted token y. How much more likely y was
under the steered policy than under the base, log policy(y) - log base(y), is the evidence that
this one token carries of there being a context at all; over an answer it adds up. Drafts that were
not kept were seen too and are counted at their own ratio.

`bound` is another thing: a guarantee. With the delta clipped to [-c, c] and tokens drawn from
softmax((L + kD) / T), another context changes each exponent by at most 2kc/T, so each token is
4kc/T-differentially private and n tokens compose to at most 4kcn/T nats. It needs sampling over
the whole support: greedy decoding, top-p and mixtures have no such bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_runtime.sampling import Sampler
from edge_runtime.steering import Method
from edge_runtime.transcript import Transcript


@dataclass(frozen=True, slots=True)
class Ledger:
    """The account of one answer."""

    tokens: int
    token_bits: tuple[float, ...]
    """Per emitted token, log2 policy - log2 base; 0 where the cloud's own token was taken."""
    draft_bits: float
    """Of drafts that were not kept."""
    uncounted: int
    """Tokens emitted while the cloud was late: there was no base to compare with."""
    bytes_up: int
    bound_bits: float | None
    """The guarantee for the whole answer; None: there is none."""

    @property
    def bits(self) -> float:
        """All evidence, signed: a token less likely than under the base speaks against."""
        return sum(self.token_bits) + self.draft_bits

    def row(self) -> dict[str, float | None]:
        """For JSON."""
        return {
            "bits": self.bits,
            "bits_per_token": self.bits / self.tokens if self.tokens else 0.0,
            "draft_bits": self.draft_bits,
            "uncounted_tokens": self.uncounted,
            "bytes_up": self.bytes_up,
            "bound_bits": self.bound_bits,
        }


def ledger(transcript: Transcript, method: Method, sampler: Sampler) -> Ledger:
    """The account of `transcript`, an answer under `method` and `sampler`."""
    bits, uncounted = [], 0
    for record in transcript.records:
        decision = record.decision
        if decision is None or decision.source == "device" or math.isnan(decision.base_logprob):
            uncounted += 1
        elif decision.source == "steered":
            bits.append((decision.policy_logprob - decision.base_logprob) / math.log(2))
        else:
            bits.append(0.0)
    return Ledger(
        tokens=len(transcript.records),
        token_bits=tuple(bits),
        draft_bits=float(transcript.counters.get("draft_bits", 0.0)),
        uncounted=uncounted,
        bytes_up=transcript.uplink_bytes,
        bound_bits=bound_bits(method, sampler, len(transcript.records)),
    )


def bound_bits(method: Method, sampler: Sampler, tokens: int) -> float | None:
    """At most so many bits can `tokens` tokens tell of the context: 4 k c n / T nats; or None."""
    gain = max(method.gain, method.late_gain or 0.0)
    if not method.asks_cloud or method.base != "cloud":
        return None
    if not method.steers:
        return 0.0
    mixed = method.mix or method.copy
    if method.clip is None or mixed or sampler.temperature == 0 or sampler.top_p < 1:
        return None
    return 4 * gain * method.clip * tokens / sampler.temperature / math.log(2)
