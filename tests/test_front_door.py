"""The command line itself: quick to ask for help, one line on every failure."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import costeer
from edge_runtime.errors import (
    BundleError,
    CosteerError,
    EnvironmentFailure,
    Refused,
    UsageError,
)
from edge_runtime.files import check_writable

ROOT = Path(__file__).resolve().parent.parent


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter: what one test imported is not there for the next."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make the verb `inspect` raise `error`."""

    def verb() -> None:
        raise error

    monkeypatch.setattr(costeer.Verb, "load", lambda self: verb)


def test_help_imports_no_library_that_is_slow_to_load() -> None:
    done = in_a_process(
        "-c",
        "import sys, costeer; code = costeer.run(['--help']); print(*sys.modules); sys.exit(code)",
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    slow = {"torch", "transformers", "onnxruntime", "numpy", "pydantic", "rich.console", "simpy"}
    assert not loaded & slow


def test_help_names_every_verb() -> None:
    page = in_a_process("-m", "costeer", "--help").stdout
    for verb in costeer.VERBS:
        assert f"  {verb.name} " in page
        assert verb.help in page


@pytest.mark.parametrize("verb", costeer.VERBS, ids=lambda verb: verb.name)
def test_every_verb_leads_to_something_that_can_be_called(verb: costeer.Verb) -> None:
    module, _, name = verb.where.partition(":")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not built yet")
    target = getattr(importlib.import_module(module), name)
    assert isinstance(target, typer.Typer) or inspect.isfunction(target)
    assert inspect.getdoc(target) or isinstance(target, typer.Typer)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (
            ["exprt"],
            "costeer: No such command 'exprt'. Did you mean 'export', 'report'? "
            "See costeer --help.",
        ),
        (["--nonsense"], "costeer: No such option: --nonsense. See costeer --help."),
    ],
)
def test_a_mistyped_command_line_is_one_line(
    typed: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert costeer.run(typed) == 2
    assert capsys.readouterr().err == line + "\n"


def test_a_missing_argument_names_the_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb(bundle: str) -> None:
        """Needs one."""

    monkeypatch.setattr(costeer.Verb, "load", lambda self: verb)
    assert costeer.run(["inspect"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("costeer inspect: Missing argument")
    assert error.endswith("See costeer inspect --help.\n")
    assert error.count("\n") == 1


def test_an_interrupt_while_the_program_still_loads_shows_no_traceback() -> None:
    """The library that takes longest to load is interrupted as its first line runs."""
    at_its_first_line = (
        "import os, signal, sys; from importlib.abc import MetaPathFinder\n"
        "class Interrupts(MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
    )
    done = in_a_process("-c", at_its_first_line + "import costeer")
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""
    done = in_a_process("-c", "import costeer, signal; signal.raise_signal(signal.SIGINT)")
    assert "KeyboardInterrupt" in done.stderr, "afterwards it is an exception, for `main` to catch"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            UsageError("--gain", "not a number", got="big", allowed="0 or more"),
            2,
            "--gain: not a number (got big; allowed 0 or more).",
        ),
        (
            BundleError("b/manifest.json", "no such file", todo="Export one first"),
            3,
            "b/manifest.json: no such file. Export one first.",
        ),
        (KeyboardInterrupt(), 130, "costeer: interrupted."),
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "costeer: unexpected ZeroDivisionError: division by zero. "
            "Run again with COSTEER_DEBUG=1 to see where.",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/rows.json"),
            3,
            "costeer inspect: the system refused: no space left on device (got out/rows.json). "
            "Run again with COSTEER_DEBUG=1 to see where.",
        ),
        (
            MemoryError(),
            3,
            "costeer inspect: there is not enough memory. "
            "Run again with COSTEER_DEBUG=1 to see where.",
        ),
        (
            ModuleNotFoundError("No module named 'onnx'", name="onnx"),
            3,
            "costeer inspect: a library that this verb needs is not installed: onnx. "
            'pip install "costeer-edge[all]".',
        ),
    ],
)
def test_every_failure_is_one_line_and_a_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(costeer.DEBUG, raising=False)
    fails(monkeypatch, error)
    assert costeer.run(["inspect"]) == code
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    "error",
    [
        UsageError("--gain", "not a number", got="big", allowed="0 or more", todo="Try 1"),
        Refused("cloud", "too long", code="prompt_too_long", got=9, allowed=5),
    ],
)
def test_an_error_from_another_process_is_the_same_line(error: CosteerError) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert there.exit_code == error.exit_code
    assert vars(there) == vars(error)


def test_the_traceback_is_there_for_who_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(costeer.DEBUG, "1")
    fails(monkeypatch, ZeroDivisionError("oops"))
    assert costeer.run(["inspect"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("show", ["print", "rich.print"])
def test_a_reader_that_leaves_is_no_failure(show: str) -> None:
    """`costeer ... | head -1`, for what is printed plainly and for tables."""
    code = f"""
import costeer, rich
def verb() -> None:
    for _ in range(20_000):
        {show}("a line of an answer")
costeer.Verb.load = lambda self: verb
costeer.main(["inspect"])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "a line of an answer\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_told_also_when_little_was_written() -> None:
    code = "import costeer\ncosteer.Verb.load = lambda self: lambda: print('{}')\n"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code + "costeer.main(['inspect'])"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr.startswith("costeer inspect: the system refused: no space left on device.")
    assert done.stderr.count("\n") == 1


def test_nowhere_to_print_is_no_failure() -> None:
    code = "import costeer; costeer.Verb.load = lambda self: lambda: print('{}');"
    code += "costeer.main(['inspect'])"
    done = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -c "{code}" >&-'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_terminal_cannot_show_is_no_error() -> None:
    code = "import costeer\ncosteer.Verb.load = lambda self: lambda: print('chana \u2026')\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "costeer.main(['inspect'])"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "chana \\u2026\n")


def test_a_place_for_results_is_seen_to_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    check_writable(tmp_path / "new" / "deep", "--out")
    assert not (tmp_path / "new").exists()
    for place in (file, file / "below"):
        with pytest.raises(EnvironmentFailure, match=f"^--out: a file is where.*got {file}"):
            check_writable(place, "--out")


@pytest.mark.parametrize(
    "words",
    [
        ["simulate", "dinner"],
        ["sweep", "quickstart"],
        ["demo"],
        ["validate-sim"],
    ],
    ids=lambda words: words[0],
)
def test_a_bad_place_for_results_costs_no_work(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert costeer.run([*words, "--out", str(file / "out")]) == 3
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        f"--out: a file is where a folder is needed (got {file}).\n",
    )


def test_the_comparison_with_sockets_ends_with_one_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cloud_sim.sim.validate as validate
    from cloud_sim.sim.exchange import Host

    monkeypatch.setattr(validate, "host", lambda rounds: Host(token_ms=1.5))
    monkeypatch.setattr(validate, "compare", lambda scenario, host, rounds: Compared())
    monkeypatch.setattr("cloud_sim.cli_validate.table", lambda *parts: "")
    assert costeer.run(["validate-sim", "--only", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["rows"] == [{"scenario": "one"}]
    assert said["host"]["token_ms"] == 1.5


class Compared:
    """What `cloud_sim.sim.validate.compare` gives, as far as the verb looks at it."""

    def row(self) -> dict[str, str]:
        return {"scenario": "one"}


def test_version_is_the_one_that_is_packaged(capsys: pytest.CaptureFixture[str]) -> None:
    assert costeer.run(["--version"]) == 0
    assert capsys.readouterr().out == f"costeer-edge {costeer.__version__}\n"


def test_the_reference_is_what_the_code_says() -> None:
    done = in_a_process(
        "-c", "import runpy; print(runpy.run_path('docs/reference.py')['reference'](), end='')"
    )
    assert done.returncode == 0, done.stderr
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert done.stdout == written, "docs/cli.md is not what the code says: make reference"


@pytest.mark.parametrize(
    ("body", "code"), [("print('x', file=sys.stderr)", 1), ("raise OSError('no')", 3)]
)
def test_who_does_not_hear_of_errors_is_told_by_the_code(body: str, code: int) -> None:
    """The reader of standard error has gone; what the verb wanted to say there came to nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    text = f"import sys, costeer\ndef verb() -> None: {body}\n"
    text += "costeer.Verb.load = lambda self: verb\ncosteer.main(['inspect'])"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == code


def test_a_polite_kill_cleans_up_on_the_way_out(tmp_path: Path) -> None:
    """SIGTERM ends in the `finally` of whatever is under way."""
    mark = tmp_path / "cleaned"
    code = f"""
import os, pathlib, signal, costeer
def verb() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    finally:
        pathlib.Path({str(mark)!r}).touch()
costeer.Verb.load = lambda self: verb
costeer.main(["inspect"])
"""
    done = in_a_process("-c", code)
    assert done.returncode == 143, done.stderr
    assert mark.exists()
    assert done.stderr == "costeer: terminated.\n"
