"""Schedules as scenario files name them: `lockstep`, `runahead:window=8,gate=reopen`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from edge_runtime.assembly import Plan
from edge_runtime.errors import UsageError, did_you_mean


def plan_of(text: str) -> Plan:
    """The plan that `text` describes. Raises `UsageError` for a name or number that is none."""
    kind, _, rest = text.partition(":")
    known = {field.name for field in fields(Plan)} - {"schedule"}
    options: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UsageError(f"schedule {text}", "not an option", got=pair, allowed="NAME=VALUE")
        if name not in known:
            raise UsageError(
                f"schedule {text}", "no such option", got=name, todo=did_you_mean(name, known)
            )
        options[name] = value if name in ("gate", "on_late") else _number(text, name, value)
    plan = Plan(kind, **options)
    plan.check()
    return plan


def text_of(plan: Plan) -> str:
    """As a scenario file names `plan`: what `plan_of` reads."""
    plain = Plan()
    options = [
        f"{field.name}={getattr(plan, field.name)}"
        for field in fields(Plan)
        if field.name != "schedule" and getattr(plan, field.name) != getattr(plain, field.name)
    ]
    return f"{plan.schedule}:{','.join(options)}" if options else plan.schedule


def _number(text: str, name: str, value: str) -> float:
    try:
        return float(value) if name.endswith("_ms") else int(value)
    except ValueError:
        raise UsageError(f"schedule {text}", f"{name} needs a number", got=value) from None
