"""Files that a user writes: read, checked key by key, and refused in one line that names the spot.

Every file of settings (scenario, study, profile, manifest) is described by a subclass of
`Checked`; what is read here is handed on as plain frozen objects. An error names the file, the
key, the value that is there and what may be there, and for a mistyped name the nearest one.
"""

from __future__ import annotations

import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from edge_runtime.errors import SpecError, did_you_mean


class Checked(BaseModel):
    """A table of a user's file: unknown keys are refused, values cannot be changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


PRIVATE = frozenset(("case", "note", "notes", "context", "history"))
"""Keys whose values are somebody's own: an error says what they are, never what they say."""

M = TypeVar("M", bound=BaseModel)


def read_toml(path: Path, kind: type[M]) -> M:
    """The TOML file at `path` as a `kind`. Raises `SpecError`."""
    return check(toml(path), kind, where=str(path))


def toml(path: Path) -> dict[str, Any]:
    """The TOML file at `path`, unchecked. Raises `SpecError` if it is not there or not TOML."""
    try:
        return tomllib.loads(_text(path))
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise SpecError(str(path), f"not valid TOML: {_first_line(error)}") from error


def read_json(path: Path, kind: type[M]) -> M:
    """The JSON file at `path` as a `kind`. Raises `SpecError`."""
    try:
        data = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise SpecError(
            f"{path}:{error.lineno}", f"not valid JSON: {error.msg}", todo="Correct that line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SpecError(str(path), f"not valid JSON: {_first_line(error)}") from error
    return check(data, kind, where=str(path))


def check(data: Any, kind: type[M], *, where: str) -> M:
    """`data` as a `kind`. Raises `SpecError` for the first thing that is wrong with it."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explain(error, kind, where) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        like = path.parent.glob(f"[!.]*{path.suffix}") if path.suffix else ()
        beside = [other.name for other in like]
        raise SpecError(
            str(path), "no such file", todo=did_you_mean(path.name, beside) if beside else ""
        ) from None
    except UnicodeDecodeError as error:
        raise SpecError(str(path), f"not a text file: {error.reason}") from error
    except OSError as error:
        raise SpecError(str(path), f"cannot be read: {error.strerror}") from error


def _explain(error: ValidationError, kind: type[BaseModel], where: str) -> SpecError:
    # An unknown key is the likelier cause of a missing one, so it is told first.
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    detail = details[0]
    at = detail["loc"]
    spot = f"{where}: {_dotted(at)}" if at else where
    got, what = detail.get("input"), _lower(detail["msg"].removeprefix("Value error, "))
    shown = _kind_of(got) if PRIVATE.intersection(map(str, at)) else _short(got)
    match detail["type"]:
        case "extra_forbidden":
            return SpecError(
                f"{where}: {_dotted(at[:-1])}" if at[:-1] else where,
                f"unknown key {at[-1]!r}",
                todo=did_you_mean(str(at[-1]), _keys(kind, at[:-1])),
            )
        case "missing":
            return SpecError(spot, "this key is needed", todo="Add it")
        case "model_type" | "model_attributes_type" | "dict_type":
            return SpecError(spot, "a table of keys is needed here", got=shown)
        case "literal_error" | "enum":
            expected = str(detail.get("ctx", {}).get("expected", ""))
            allowed = re.findall(r"'([^']*)'", expected) or [expected]
            return SpecError(
                spot,
                "no such choice",
                got=got,
                allowed=", ".join(allowed),
                todo=did_you_mean(str(got), allowed) if allowed else "",
            )
    return SpecError(spot, what, got=shown)


def _dotted(at: Sequence[str | int]) -> str:
    text = ""
    for part in at:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _short(value: object) -> str:
    if isinstance(value, dict):  # may hold anything, a note too
        return _kind_of(value)
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _kind_of(value: object) -> str:
    """What a value is, without what it says."""
    match value:
        case dict():
            return f"a table with {', '.join(map(str, value)) or 'nothing in it'}"[:80]
        case list() | tuple():
            return f"a list of {len(value)}"
        case str():
            return f"text of {len(value)} characters"
    return type(value).__name__


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _keys(kind: type[BaseModel], at: Sequence[str | int]) -> list[str]:
    """The keys that the table at `at` inside a `kind` may have."""
    known: list[Any] = [kind]
    for part in at:
        inner: list[Any] = []
        for table in known:
            if _is_table(table) and part in _fields(table):
                inner += _tables(_fields(table)[str(part)])
            elif not _is_table(table):
                inner.append(table)
        # A step into a list, or a pydantic label for one branch of a union, stays where it is.
        known = inner or known
    return sorted({name for table in known if _is_table(table) for name in _fields(table)})


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _fields(table: type[BaseModel]) -> Mapping[str, Any]:
    return {field.alias or name: field.annotation for name, field in table.model_fields.items()}


def _tables(annotation: Any) -> list[Any]:
    """All `BaseModel`s that a value of this type may be or hold."""
    if _is_table(annotation):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_args(annotation):
        return [found for inner in typing.get_args(annotation) for found in _tables(inner)]
    return []
