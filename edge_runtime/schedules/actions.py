"""What a schedule, or the cloud's session handler, may ask of whatever drives it.

A schedule is a generator. It yields one of the actions below and is sent what happened. It never
sleeps, sends, receives or reads a clock, so the same generator runs over a real socket
(`edge_runtime.connections`) and in virtual time (`cloud_sim.sim.simulate`).

    yield Compute(kind, work, load)  -> the result of work()
    yield Send(frame)                -> the driver's time in milliseconds, just before sending
    yield Receive(deadline_ms)       -> Arrival, Timeout or Reconnected, each with now_ms
    yield Emit(token, decision)      -> None; the token is final

Times are on the driver's own monotonic clock: a schedule may subtract two of them, no more.

A token takes some twenty of these objects, so they are msgspec's structs: frozen, and made in a
tenth of a frozen dataclass's time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from edge_runtime.policy import Decision
    from edge_runtime.wire import Frame

Kind = Literal["prefill", "step", "head", "steer", "score"]
"""What a piece of work is, for the clock that charges it to a part of the token's time.

Device: `prefill` (prompts into the KV cache), `step` (new tokens through both rows), `head`
(hidden state to logits), `steer` (decode the frame, combine, choose). Cloud: `score`.
"""


class Load(msgspec.Struct, frozen=True, gc=False):
    """How big a piece of work is: all that a cost model may know about it."""

    rows: int = 1
    """Sequences in the pass."""
    tokens: int = 0
    """New tokens a row (the longest row)."""
    past: int = 0
    """Tokens already in the KV cache (the longest row)."""
    candidates: int = 0
    """Vocabulary entries the head is computed for; 0: the head is not run."""
    speculative: bool = False
    """The cloud's guess at what will be asked next: a server does it when nobody is waiting."""


class Compute(msgspec.Struct, frozen=True):
    """Run ``work`` and be sent its result; a simulator charges modelled time for ``load``."""

    kind: Kind
    work: Callable[[], Any]
    load: Load = Load()


class Send(msgspec.Struct, frozen=True):
    """Hand ``frame`` to the transport; does not wait for it to arrive."""

    frame: Frame


class Receive(msgspec.Struct, frozen=True, gc=False):
    """The next frame, waiting at most ``deadline_ms`` from now (None: as long as it takes;
    0: only what is already here)."""

    deadline_ms: float | None = None


class Emit(msgspec.Struct, frozen=True):
    """``token`` is final: show it. ``decision`` says how it was chosen."""

    token: int
    decision: Decision | None = None


Action = Compute | Send | Receive | Emit


class Arrival(msgspec.Struct, frozen=True):
    """A frame, and when the transport had it complete."""

    frame: Any
    now_ms: float
    more: bool = True
    """Whether others may have arrived behind it."""


class Timeout(msgspec.Struct, frozen=True, gc=False):
    """Nothing arrived before the deadline."""

    now_ms: float


class Reconnected(msgspec.Struct, frozen=True, gc=False):
    """The connection was lost and is up again: everything in flight is gone, the peer remembers
    nothing for certain. A device's schedule answers with a resuming `wire.Open`."""

    now_ms: float


@dataclass(frozen=True, slots=True)
class Finish:
    """How a schedule ended: what its generator returns."""

    reason: Literal["end", "length", "closed"]
    """`end`: an end-of-answer token was emitted; `length`: max_tokens; `closed`: the peer left."""
    counters: dict[str, float] = field(default_factory=dict)
    """For `Transcript.counters`: divergences, wasted_cloud_tokens, accepted, gated, late, ..."""
    notes: tuple[str, ...] = ()
    """For `Transcript.notes`: what a user should know about this run, one line each."""


Moves = Generator[Action, Any, None]
"""A part of a schedule."""

Schedule = Generator[Action, Any, Finish]
"""The device's half: emits the answer."""

Session = Generator[Action, Any, None]
"""The cloud's half: see `cloud_sim.session`."""
