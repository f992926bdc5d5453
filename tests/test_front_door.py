"""The command line itself: quick to ask for help, one line on every failure."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import costeer
from edge_runtime.errors import BundleError, CosteerError, Refused, UsageError

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
    assert "Traceback" not in done.stderr
