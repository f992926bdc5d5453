"""Memory and time that a device may spend: refused before loading, measured while running.

    Budget    what is allowed: memory_mb, first_token_ms, token_ms (None: as it comes)
    admit     what a bundle will take, from its manifest, against the budget and against the limits
              that the system itself has set (RLIMIT_AS, a cgroup); says what would fit
    Meter     peaks and latencies of a running answer

What to do when a running answer exceeds its budget is `edge_runtime.governor`'s business.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.errors import BudgetExceeded, UsageError
from edge_runtime.graphs.memory import peak_rss_mb

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle

MB = 1e6
ADDRESS_SPACE_FACTOR = 1.15
"""Address space that allocators and thread stacks reserve beyond what they use."""
STEP_CONTEXT = 64
"""Context lengths are proposed in multiples of this."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a device may take; None: no limit of ours."""

    memory_mb: float | None = None
    """Resident memory of the whole process, 10^6 bytes."""
    first_token_ms: float | None = None
    """From the question to the first token."""
    token_ms: float | None = None
    """The device's own work for one token: step, head, steering."""

    def __post_init__(self) -> None:
        for name in ("memory_mb", "first_token_ms", "token_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                option = "--" + name.replace("_", "-")
                raise UsageError(option, "a budget must be positive", got=value)

    def verdict(
        self, *, memory_mb: float, first_token_ms: float | None, token_ms: float
    ) -> list[dict[str, Any]]:
        """Each limit that is set: name, limit, measured, ok."""
        measured = {
            "memory_mb": memory_mb,
            "first_token_ms": first_token_ms,
            "token_ms": token_ms,
        }
        return [
            {"name": name, "limit": limit, "measured": value, "ok": value <= limit}
            for name, value in measured.items()
            if (limit := getattr(self, name)) is not None and value is not None
        ]


@dataclass(frozen=True, slots=True)
class Need:
    """What running a bundle takes, in bytes."""

    process: int
    """What this process holds already."""
    weights: int
    kv: int
    workspace: int

    @property
    def total(self) -> int:
        """Resident memory at the peak, estimated from above."""
        return self.process + self.weights + self.kv + self.workspace

    @property
    def total_mb(self) -> float:
        """The same in 10^6 bytes."""
        return self.total / MB


def need(bundle: Bundle, tokens: int, *, process: int | None = None) -> Need:
    """Memory for two rows of `tokens` tokens, from the manifest.

    The weights count once: kernels pack them anew and let go of the mapped file as they do. Kept
    hidden states are part of `kv`.
    """
    memory, shape = bundle.manifest.memory, bundle.manifest.architecture
    hidden = 2 * 4 * shape.hidden * (tokens + 1)
    return Need(
        process=_resident() if process is None else process,
        weights=memory.weights_bytes,
        kv=bundle.kv_bytes(tokens) + hidden,
        workspace=2 * memory.workspace_bytes + (8 << 20),
    )


def admit(
    bundle: Bundle, tokens: int, budget: Budget = Budget(), *, shorten_to: int | None = None
) -> int:
    """How many tokens of context may be opened: `tokens`, or fewer if `shorten_to` allows.

    Compares the memory needed with the budget and with the system's limits, before anything is
    loaded. Raises `BudgetExceeded`, which says what would fit.
    """
    limits = [limit for limit in (_asked(budget), *system_limits()) if limit is not None]
    for allowed, name in sorted(limits):
        if need(bundle, tokens).total <= allowed:
            continue
        fits = longest_context(bundle, allowed)
        if shorten_to is not None and fits >= shorten_to:
            tokens = min(tokens, fits)
            continue
        todo = (
            f"A context of {fits} tokens would fit"
            if fits >= STEP_CONTEXT
            else "A smaller model or an int4 bundle (costeer export --target cpu-int4) may fit"
        )
        raise BudgetExceeded(
            "memory",
            f"{bundle.manifest.name} with {tokens} tokens of context does not fit into {name}",
            got=f"{need(bundle, tokens).total_mb:.0f} MB",
            allowed=f"{allowed / MB:.0f} MB",
            todo=todo,
        )
    return tokens


def longest_context(bundle: Bundle, allowed: float) -> int:
    """Tokens of context that fit into `allowed` bytes (a multiple of 64); 0: not even weights."""
    fixed = need(bundle, 0).total
    per_token = need(bundle, 1).total - fixed
    fits = int((allowed - fixed) // per_token) if allowed > fixed else 0
    return min(fits - fits % STEP_CONTEXT, bundle.manifest.architecture.max_context)


def system_limits() -> list[tuple[float, str]]:
    """Limits on this process's resident memory that the system would enforce: bytes, name."""
    found: list[tuple[float, str]] = []
    try:
        import resource

        space, _ = resource.getrlimit(resource.RLIMIT_AS)
        if space != resource.RLIM_INFINITY:
            # Counts reserved address space too: what is reserved and not resident is no room.
            reserved = max(0, _virtual() - _resident())
            found.append(((space - reserved) / ADDRESS_SPACE_FACTOR, "this process's RLIMIT_AS"))
    except (ImportError, OSError):
        pass
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 50:
            found.append((float(text), "this container's memory limit"))
    return found


@dataclass(slots=True)
class Meter:
    """Latencies of the device's work, and the memory that its process has held."""

    window: int = 16
    steps_ms: deque[float] = field(default_factory=deque)
    """The newest token times, at most `window`."""
    first_token_ms: float | None = None
    worst_ms: float = 0.0
    tokens: int = 0

    def token(self, milliseconds: float) -> None:
        """The device spent that long on one token."""
        self.steps_ms.append(milliseconds)
        if len(self.steps_ms) > self.window:
            self.steps_ms.popleft()
        self.worst_ms = max(self.worst_ms, milliseconds)
        self.tokens += 1

    @property
    def recent_ms(self) -> float:
        """Median of the newest token times; 0 before there are any."""
        return float(np.median(self.steps_ms)) if self.steps_ms else 0.0

    def forget(self) -> None:
        """Begin a new window: what was decided now must be judged by what follows."""
        self.steps_ms.clear()

    def peaks(self) -> dict[str, float]:
        """`peak_rss_mb` and the present `uss_mb`."""
        import psutil

        uss = float(psutil.Process().memory_full_info().uss) / MB
        return {"peak_rss_mb": peak_rss_mb(), "uss_mb": uss}


def _asked(budget: Budget) -> tuple[float, str] | None:
    return None if budget.memory_mb is None else (budget.memory_mb * MB, "the budget")


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _virtual() -> int:
    import psutil

    return int(psutil.Process().memory_info().vms)
