"""What the repository itself must be: the same for everyone who clones it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Put together from halves, so that this file does not find itself.
MACHINE_PATHS = re.compile(
    r"(?<![\w.~$}])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me"]) + r")/\w"
)
REGISTRIES = re.compile(
    "|".join(
        re.escape(host)
        for host in (
            "py" + "pi.org",
            "python" + "hosted.org",
            "npm" + "js.org",
            "deb.deb" + "ian.org",
        )
    )
)


def files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in files():
        try:
            found.append((path, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRIES], ids=["machine path", "registry"])
def test_nothing_names_one_machine_or_one_registry(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_modules_are_short_enough_to_read_in_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path, text in texts()
        if path.suffix == ".py" and "tests" not in path.parts
        if (lines := text.count("\n")) > 350
    }
    assert not long


def test_no_large_file_is_committed() -> None:
    large = [str(path.relative_to(ROOT)) for path in files() if path.stat().st_size > 2**20]
    assert not large


def test_every_direct_dependency_is_constrained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for requirements in project["optional-dependencies"].values():
        wanted += requirements
    names = {_name(requirement) for requirement in wanted} - {"costeer-edge"}
    pinned = {
        _name(line)
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    assert names <= pinned, sorted(names - pinned)


def _name(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()
