"""The front door: `costeer VERB ...`.

Knows which room does what, and nothing else: a verb's room is imported only when that verb is
called, so `costeer --help` loads no model library. Every failure ends here as one line on standard
error and an exit code: 1 unexpected, 2 usage, 3 environment, 130 interrupted. (4 is no failure: the
verb ran, and what it found falls short.)
"""

from __future__ import annotations

import importlib
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_raises = (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
)
if _raises:  # nobody can catch it yet, and a traceback is no answer to an interrupt
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import typer  # noqa: E402

from edge_runtime.errors import CosteerError, EnvironmentFailure  # noqa: E402

if _raises:
    signal.signal(signal.SIGINT, signal.default_int_handler)

__version__ = "0.1.0"

DEBUG = "COSTEER_DEBUG"
"""Environment variable: set to anything, an error is shown with its traceback."""

EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 130, 143
INTERRUPTED, TERMINATED = "costeer: interrupted.", "costeer: terminated."
LONGEST = 2000
"""Characters of an error: what a server says may be longer than a screen."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One line of `costeer --help`, and where its function lives."""

    name: str
    where: str
    """`module:function`, or `module:app` for a Typer app of its own (a verb with sub-verbs)."""
    help: str
    extra: str = ""
    """The optional part of the package that it needs; empty: the device part is enough."""

    def load(self) -> Any:
        """The function. Raises `EnvironmentFailure` when its part of the package is missing."""
        module, _, name = self.where.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as missing:
            if _ours(missing.name):
                raise
            raise _not_installed(self, missing) from missing


VERBS: tuple[Verb, ...] = (
    Verb("demo", "scenarios.demo.verb:demo", "See it work once, on real weights.", "all"),
    Verb("export", "export.cli:export", "Make a device-ready bundle out of a model.", "export"),
    Verb("verify", "export.cli:verify", "Compare a bundle with its float model.", "export"),
    Verb("inspect", "export.cli:inspect", "Show a bundle and check every checksum."),
    Verb("generate", "edge_runtime.cli:generate", "Answer a query, steered by a private note."),
    Verb("context", "edge_runtime.cli_context:app", "Keep private notes ready on this device."),
    Verb("profile", "edge_runtime.cli_profile:profile", "Measure a bundle on this machine."),
    Verb("serve", "cloud_sim.cli:serve", "Run the cloud model's server.", "cloud"),
    Verb(
        "profiles",
        "cloud_sim.cli_net:profiles",
        "List the network, device and cloud profiles, with sources.",
        "sim",
    ),
    Verb("trace", "cloud_sim.cli_net:trace", "Look at, convert or make link traces.", "sim"),
    Verb(
        "shape",
        "cloud_sim.cli_net:shape",
        "Put a simulated link in front of a real server.",
        "sim",
    ),
    Verb(
        "validate-sim",
        "cloud_sim.cli_validate:validate_sim",
        "Compare the simulator with real sockets.",
        "all",
    ),
    Verb(
        "simulate",
        "scenarios.cli:simulate",
        "Run a scenario through the simulated network and cloud.",
        "all",
    ),
    Verb(
        "evaluate",
        "scenarios.cli_evaluate:evaluate",
        "Measure answer quality on a data set.",
        "all",
    ),
    Verb("sweep", "scenarios.cli_study:sweep", "Run all cells of a study.", "all"),
    Verb("report", "scenarios.cli_study:report", "Make a study's page.", "all"),
    Verb("table", "scenarios.cli_study:table", "Print a study's figures as a table.", "all"),
    Verb("compare", "scenarios.cli_study:compare", "Compare two studies.", "all"),
)


def app(called: str | None = None, *, rich: bool = True) -> typer.Typer:
    """The command line. Only the verb named `called` is imported; the others are their help."""
    front = typer.Typer(
        name="costeer",
        no_args_is_help=True,
        # The front page is plain: rendering it through rich costs more than all else together.
        rich_markup_mode="rich" if called and rich else None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    front.callback()(_front)
    for verb in VERBS:
        target = verb.load() if verb.name == called else _elsewhere
        if isinstance(target, typer.Typer):
            front.add_typer(target, name=verb.name, help=verb.help)
        else:
            front.command(verb.name, short_help=verb.help)(target)
    return front


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    # So that what is half made is removed on the way out, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_TERMINATED))
    # An answer may hold what the terminal cannot show, and is worth more than an error about it.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line; its exit code."""
    called = next((word for word in arguments if not word.startswith("-")), None)
    try:
        result = _invoke(called, arguments)
        if sys.stdout is not None:  # as it is where the shell closed it
            sys.stdout.flush()  # a full disk or a reader that has gone shows here, not at exit
    except CosteerError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(INTERRUPTED, EXIT_INTERRUPTED)
    except BrokenPipeError:
        return _nobody_reads()
    except SystemExit as leaving:
        # rich turns a broken pipe into an exit of its own.
        if isinstance(leaving.__context__, BrokenPipeError):
            return _nobody_reads()
        if leaving.code == EXIT_TERMINATED:
            return _fail(TERMINATED, EXIT_TERMINATED)
        raise
    except (OSError, MemoryError) as error:
        return _fail(str(_surroundings(called, error)), EnvironmentFailure.exit_code)
    except ModuleNotFoundError as missing:
        verb = next((verb for verb in VERBS if verb.name == called), None)
        if verb is None or _ours(missing.name):
            return _unexpected(missing)
        return _fail(str(_not_installed(verb, missing)), EnvironmentFailure.exit_code)
    except Exception as error:
        # Typer's own complaints (an unknown option, a missing argument) have no public base class
        # in every version that we allow; all of them can format themselves.
        if callable(describe := getattr(error, "format_message", None)):
            return _usage(called, error, describe)
        return _unexpected(error)
    if result == EXIT_INTERRUPTED:  # newer Typer returns it, older ones raise Abort
        return _fail(INTERRUPTED, EXIT_INTERRUPTED)
    return result if isinstance(result, int) else 0


def _invoke(called: str | None, arguments: list[str]) -> Any:
    return app(called)(arguments, prog_name="costeer", standalone_mode=False)


def _usage(called: str | None, error: Exception, describe: Callable[[], str]) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(describe())
        return EXIT_USAGE
    known = called if any(verb.name == called for verb in VERBS) else None
    where = f"costeer {known}" if known else "costeer"
    what = describe().rstrip(".")
    what += "" if what.endswith("?") else "."
    return _fail(f"{where}: {what} See {where} --help.", EXIT_USAGE)


def _nobody_reads() -> int:
    """The reader has gone (`costeer ... | head`). Python would complain once more at exit.

    That is no failure where it had what it wanted; where the errors' reader has gone, nobody knows.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    gone = [s for s in streams if not _has_a_reader(s.fileno())] or streams[:1]
    for stream in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 1 if sys.stderr in gone else 0


def _has_a_reader(handle: int) -> bool:
    """Whether somebody may; where that cannot be asked (Windows), yes."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(handle, select.POLLOUT)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def _surroundings(called: str | None, error: OSError | MemoryError) -> EnvironmentFailure:
    """What the system refused: a full disk, a file that may not be written, memory."""
    if isinstance(error, MemoryError):
        what, file = "there is not enough memory", None
    else:
        reason = error.strerror or str(error) or type(error).__name__
        what = f"the system refused: {reason[:1].lower()}{reason[1:]}"
        file = error.filename2 or error.filename  # of a renaming, where it should have gone
    return EnvironmentFailure(
        f"costeer {called}" if called else "costeer",
        what,
        got=file,
        todo=f"Run again with {DEBUG}=1 to see where",
    )


def _unexpected(error: BaseException) -> int:
    what = " ".join(str(error).split())
    return _fail(
        f"costeer: unexpected {type(error).__name__}: {what[:300]}. "
        f"Run again with {DEBUG}=1 to see where.",
        1,
    )


def _fail(line: str, code: int) -> int:
    if os.environ.get(DEBUG) and sys.exc_info()[1] is not None:
        import traceback

        traceback.print_exc()
    if sys.stderr is not None:  # as it is where the shell closed it
        # One line, whatever a server or a file made of it, and nothing that moves the cursor.
        words = "".join(c if c.isprintable() else " " for c in line).split()
        try:
            print(" ".join(words)[:LONGEST], file=sys.stderr)
        except BrokenPipeError:
            _nobody_reads()
    return code


def _ours(module: str | None) -> bool:
    return (module or "").split(".")[0] in ("edge_runtime", "export", "cloud_sim", "scenarios")


def _not_installed(verb: Verb, missing: ModuleNotFoundError) -> EnvironmentFailure:
    return EnvironmentFailure(
        f"costeer {verb.name}",
        f"a library that this verb needs is not installed: {missing.name}",
        todo=f'pip install "costeer-edge[{verb.extra or "all"}]"',
    )


def _elsewhere() -> None:
    """Stands in for a verb that was not called."""


def _show_version(asked: bool) -> None:
    if asked:
        print(f"costeer-edge {__version__}")
        raise typer.Exit


def _front(
    version: bool = typer.Option(
        False, "--version", help="Show the version.", is_eager=True, callback=_show_version
    ),
) -> None:
    """Personal answers from a big cloud model; the private note stays on the device."""


if __name__ == "__main__":
    main()
