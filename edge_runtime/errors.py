"""Every error a user can meet, as one tree.

    CosteerError
    ├── UsageError            exit 2: what was asked cannot be done as asked
    │   └── SpecError         a file the user wrote has a wrong key, type or value
    └── EnvironmentFailure    exit 3: the request is fine, the surroundings are not
        ├── BundleError       a bundle is missing, truncated, altered or not ready
        ├── ConnectionFailed  a server is not there, went away, or speaks something else
        ├── Refused           the server said no, and why
        └── BudgetExceeded    it would not fit in the memory or time that was allowed

The text has one form: ``<where>: <what> (got X; allowed Y). <what to do>.``
Code raises these with the parts; only ``__str__`` puts the parts together.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FELL_SHORT = 4
"""Exit code of a verb that did what was asked and found that it is not good enough: a bundle that
fails a mark, a study that got worse. For scripts; it is no error."""


class CosteerError(Exception):
    """An error meant for the user: one line, an exit code, and never a traceback.

    Parameters are the parts of the one line; ``got``, ``allowed`` and ``todo`` may be empty.
    """

    exit_code = 1

    def __init__(
        self, where: str, what: str, *, got: object = None, allowed: object = None, todo: str = ""
    ) -> None:
        self.where = where
        self.what = what
        self.got = None if got is None else str(got)
        self.allowed = None if allowed is None else str(allowed)
        self.todo = todo
        super().__init__(str(self))

    def __reduce__(self) -> tuple[object, ...]:
        # By its parts: workers in other processes send errors home, and the constructor takes
        # more than the one text that an exception is otherwise rebuilt from.
        return _rebuilt, (type(self), dict(self.__dict__), str(self))

    def __str__(self) -> str:
        parts = []
        if self.got is not None:
            parts.append(f"got {self.got}")
        if self.allowed is not None:
            parts.append(f"allowed {self.allowed}")
        line = f"{self.where}: {self.what}"
        if parts:
            line += f" ({'; '.join(parts)})"
        line += "."
        if self.todo:
            line += f" {self.todo}" if self.todo.endswith((".", "?")) else f" {self.todo}."
        return " ".join(line.split())


def _rebuilt(kind: type[CosteerError], parts: dict[str, object], line: str) -> CosteerError:
    error = kind.__new__(kind, line)
    error.__dict__.update(parts)
    return error


class UsageError(CosteerError):
    """The request itself is wrong: an unknown name, a value out of range."""

    exit_code = 2


class SpecError(UsageError):
    """A file written by the user (scenario, study, profile, data) is not what it should be."""


class EnvironmentFailure(CosteerError):
    """The request is fine; a file, a server or the machine is not."""

    exit_code = 3


class BundleError(EnvironmentFailure):
    """A bundle is missing, truncated, altered, of an unknown schema, or not ready."""


class ConnectionFailed(EnvironmentFailure):
    """The server is not there, went away for good, or does not speak this protocol."""


class Refused(EnvironmentFailure):
    """The server refused, with a typed reason (``code``)."""

    def __init__(
        self,
        where: str,
        what: str,
        *,
        code: str,
        got: object = None,
        allowed: object = None,
        todo: str = "",
    ) -> None:
        self.code = code
        super().__init__(where, what, got=got, allowed=allowed, todo=todo)


class BudgetExceeded(EnvironmentFailure):
    """What was asked does not fit in the declared memory or latency budget."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped ``name``: the nearest of ``known``, or the whole list.

    >>> did_you_mean("costear", ["costeer", "light"])
    'Did you mean costeer?'
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"Choose one of: {', '.join(known)}"
