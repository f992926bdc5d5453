"""That nothing on the device reports to anybody: onnxruntime would, unless it is kept from it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("edge_runtime", "export", "cloud_sim", "scenarios", "benchmarks")


def loads_onnxruntime() -> list[str]:
    """Modules that import it as they load, before or after anything of ours."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    loads = re.compile(r"^(import|from) onnxruntime\b", re.MULTILINE)
    return [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for path in paths
        if loads.search(path.read_text("utf-8"))
    ]


@pytest.mark.parametrize("module", loads_onnxruntime())
def test_onnxruntime_keeps_nothing_to_report(module: str, tmp_path: Path) -> None:
    """Its uploader begins with a device's number and a queue of events in the cache folder."""
    # Where tests or a CI run it does not report anyway, and that would prove nothing.
    told = re.compile(r"ORT_|CI$|CI_|.*_CI$|GITHUB_|GITLAB_|JENKINS|BUILD_|TF_BUILD|PYTEST")
    clean = {name: value for name, value in os.environ.items() if not told.match(name)}
    places = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    load = f"import {module}, onnxruntime; onnxruntime.SessionOptions()"
    done = subprocess.run(
        [sys.executable, "-c", load],
        cwd=ROOT,
        env=clean | places,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports = [str(path) for path in tmp_path.rglob("*") if "onnxruntime" in path.name]
    assert not reports


def test_who_wants_to_report_may() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, edge_runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])",
        ],
        cwd=ROOT,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0\n"


@pytest.mark.parametrize(
    ("module", "reports"),
    [
        ("huggingface_hub.constants", "not module.HF_HUB_DISABLE_TELEMETRY"),
        ("ray._common.usage.usage_lib", "module.usage_stats_enabled()"),
    ],
)
def test_other_libraries_are_silent_too(module: str, reports: str) -> None:
    """Theirs to say whether they would report; without us they would."""
    pytest.importorskip(module)
    ask = f"import importlib; module = importlib.import_module({module!r}); print({reports})"
    names = ("HF_HUB_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED", "DO_NOT_TRACK")
    clean = {name: value for name, value in os.environ.items() if name not in names}

    def asked(code: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=clean,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    assert (asked(ask), asked(f"import edge_runtime; {ask}")) == ("True", "False")
