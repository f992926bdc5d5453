"""From names on a command line or in a file to the things that answer: device, query, schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edge_runtime.device import Branches, CloudOnlyDevice, SteeredDevice
from edge_runtime.errors import UsageError, did_you_mean
from edge_runtime.names import name_ids
from edge_runtime.notes import ManyNotes, prompts_of
from edge_runtime.policy import Device
from edge_runtime.sampling import GREEDY, Sampler
from edge_runtime.schedules.actions import Schedule
from edge_runtime.schedules.auto import auto
from edge_runtime.schedules.deadlines import Deadline, OnLate
from edge_runtime.schedules.draft import draft
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.gates import gate
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from edge_runtime.steering import Method
from edge_runtime.translated import How, TranslatedDevice
from edge_runtime.tuned import reads_notes

if TYPE_CHECKING:
    from edge_runtime.budget import Budget
    from edge_runtime.bundle import Bundle
    from edge_runtime.governor import GovernedDevice
    from edge_runtime.text import Prompts, Text

LastResort = Literal["cloud", "device", "both", "none"]
"""Who may answer alone when a budget cannot be kept together: `cloud` without steering when the
device is too slow, `device` without the cloud while that is late."""

AnyDevice = SteeredDevice | CloudOnlyDevice | TranslatedDevice

SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "lockstep": lockstep,
    "runahead": runahead,
    "draft": draft,
    "auto": auto,
}
"""By the name that `--schedule` takes."""

MOST_TOKENS = 1 << 20
"""What a schedule's number may be: more than any model's context, and it fits into a frame."""

_TAKES: Mapping[str, frozenset[str]] = {
    "lockstep": frozenset(),
    "runahead": frozenset({"window", "branches", "depth"}),
    "draft": frozenset({"draft_tokens"}),
    "auto": frozenset(),
}
"""Which of `Plan`'s numbers mean something to which schedule."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule by name, with its numbers; 0 leaves a number to the schedule."""

    schedule: str = "lockstep"
    window: int = 0
    """`runahead`: positions the cloud may be ahead."""
    branches: int = 0
    """`runahead`: continuations followed at once."""
    depth: int = 0
    """`runahead`: how far a side branch is followed."""
    draft_tokens: int = 0
    """`draft`: tokens proposed at a time."""
    gate: str = "none"
    token_deadline_ms: float = 0.0
    on_late: OnLate = "wait"

    @property
    def numbers(self) -> dict[str, int]:
        """The schedule's own options that were given."""
        names = ("window", "branches", "depth", "draft_tokens")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def check(self) -> None:
        """Raises `UsageError` for a name or number that is none, or that the schedule has no use
        for."""
        if self.schedule not in SCHEDULES:
            raise UsageError(
                "schedule",
                "no such schedule",
                got=self.schedule,
                allowed=", ".join(SCHEDULES),
                todo=did_you_mean(self.schedule, SCHEDULES),
            )
        for name, value in self.numbers.items():
            if value < 0:
                raise UsageError(_option(name), "the number is negative", got=value)
            if value > MOST_TOKENS:
                raise UsageError(
                    _option(name),
                    "the number is too large",
                    got=value,
                    allowed=f"0 to {MOST_TOKENS}",
                )
            if name not in _TAKES[self.schedule]:
                fit = [kind for kind, takes in _TAKES.items() if name in takes]
                raise UsageError(
                    _option(name),
                    f"the schedule {self.schedule} has no such number",
                    got=value,
                    allowed=f"with {' or '.join(fit)}" if fit else None,
                )
        gate(self.gate)
        Deadline(self.token_deadline_ms, self.on_late)

    def within(self, budget: Budget | None, last_resort: LastResort) -> Plan:
        """This plan, with a token that waits for the cloud longer than the budget's `token_ms`
        made by the device alone, if `last_resort` allows that and no deadline was set by hand."""
        if budget is None or budget.token_ms is None or self.on_late != "wait":
            return self
        if last_resort not in ("device", "both"):
            return self
        return replace(self, token_deadline_ms=budget.token_ms, on_late="device")

    def make(self, device: Device, request: Request) -> Schedule:
        """The schedule that answers `request`. Raises `UsageError` (see `check`)."""
        self.check()
        made: Any = SCHEDULES[self.schedule]
        deadline = Deadline(self.token_deadline_ms, self.on_late)
        schedule: Schedule = made(
            device, request, gate=gate(self.gate), deadline=deadline, **self.numbers
        )
        return schedule


@dataclass(frozen=True, slots=True)
class Stranger:
    """A cloud that speaks other tokens than the bundle."""

    text: Text
    ends: tuple[int, ...]
    how: How

    @classmethod
    def open(cls, path: Path, how: How) -> Stranger:
        """From the cloud's tokenizer.json. Raises `BundleError` for a file that is none."""
        from edge_runtime.text import Text
        from edge_runtime.vocabulary import end_ids, open_tokenizer

        tokenizer = open_tokenizer(path, todo="Name the tokenizer.json of the cloud's model")
        return cls(Text(tokenizer), end_ids(tokenizer, ()), how)


def device_for(
    bundle: Bundle,
    text: Text,
    query: str,
    context: str,
    rule: Method,
    *,
    max_tokens: int,
    sampler: Sampler = GREEDY,
    branches: Branches | None = None,
    threads: int = 1,
    budget: Budget | None = None,
    last_resort: LastResort = "cloud",
    notes: Sequence[str] = (),
    weights: Sequence[float] = (),
    stranger: Stranger | None = None,
) -> AnyDevice:
    """The device that answers `query` with the private note `context` under `rule`.

    `notes`: what `context` is made of, to be weighed against each other with `weights`
    (`edge_runtime.notes`). `stranger`: the cloud's tokenizer, if it is another than the bundle's.

    `branches`: opened ones to use again; None: the bundle's are opened, for as many tokens as the
    prompts and the answer take, and only if the rule steers at all. Raises `UsageError` when they
    are too many for the model. `budget`: the device then keeps it as far as it may, and notes what
    it gave up (`edge_runtime.governor`); `last_resort` says how far that may go.
    """
    if last_resort not in get_args(LastResort):
        raise UsageError(
            "last-resort",
            "no such choice",
            got=last_resort,
            allowed=", ".join(get_args(LastResort)),
            todo=did_you_mean(last_resort, get_args(LastResort)),
        )
    rule, ends = reads_notes(rule), bundle.manifest.tokens.end_ids
    if not rule.steers:
        return CloudOnlyDevice(sampler, stranger.ends if stranger else ends, rule)
    if budget is not None and (len(notes) > 1 or stranger is not None):
        raise UsageError(
            "generate",
            "a budget cannot be kept with several notes or another tokenizer",
            todo="Leave one of them out",
        )
    if budget is not None:
        device = _governed(bundle, text, query, context, rule, max_tokens, sampler, threads, budget)
        device.may_end_as(last_resort)
        return device
    prompts = text.prompts(query, context)
    if len(notes) > 1:
        each = prompts_of(text, query, notes)
        opened = [_opened(bundle, one, max_tokens, threads) for one in each]
        branches = ManyNotes(opened, each, weights)
    if branches is None:
        branches = _opened(bundle, prompts, max_tokens, threads)
    if stranger is not None:
        names = name_ids(stranger.text.encode, context, query)
        return TranslatedDevice(
            branches,
            prompts,
            text,
            stranger.text,
            rule,
            sampler,
            our_ends=ends,
            end_ids=stranger.ends,
            how=stranger.how,
            names=names,
        )
    return SteeredDevice(branches, prompts, rule, sampler, ends)


def _governed(
    bundle: Bundle,
    text: Text,
    query: str,
    context: str,
    rule: Method,
    max_tokens: int,
    sampler: Sampler,
    threads: int,
    budget: Budget,
) -> GovernedDevice:
    from edge_runtime.governor import GovernedDevice
    from edge_runtime.shorten import admitted, in_time

    context, decided = admitted(bundle, text, query, context, max_tokens, budget)
    branches = _opened(bundle, text.prompts(query, context), max_tokens, threads)
    context, late = in_time(branches, text, query, context, budget)
    prompts = text.prompts(query, context)
    steered = SteeredDevice(branches, prompts, rule, sampler, bundle.manifest.tokens.end_ids)
    device = GovernedDevice(steered, budget)
    device.governor.decisions += [*decided, *late]
    return device


def _opened(bundle: Bundle, prompts: Prompts, max_tokens: int, threads: int) -> Branches:
    from edge_runtime.branches import open_branches
    from edge_runtime.budget import admit
    from edge_runtime.snapshot import users_shelf

    length = max(len(prompts.aware), len(prompts.agnostic)) + max_tokens
    if length <= bundle.manifest.architecture.max_context:
        admit(bundle, length)
    return open_branches(bundle, max_length=length, threads=threads, notes=users_shelf())


def public_query(rule: Method, query: str, context: str) -> str:
    """What the cloud is asked: the query; with `upload`, which gives privacy up, the note too."""
    return f"{context}\n\n{query}" if rule.base == "informed-cloud" and context else query


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
