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


def pages() -> list[tuple[Path, str]]:
    return [(path, text) for path, text in texts() if path.suffix == ".md"]


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    plain = (re.sub(r"[^\w -]", "", line.lower()) for line in re.findall(r"^#+ (.*)$", text, re.M))
    return {line.strip().replace(" ", "-") for line in plain}


def test_links_of_the_pages_lead_somewhere() -> None:
    dead = []
    for path, text in pages():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if "://" in link:
                continue
            if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
                dead.append(f"{path.relative_to(ROOT)}: {link}")
    assert not dead


def test_commands_of_the_pages_are_there() -> None:
    from costeer import VERBS

    verbs = {verb.name for verb in VERBS}
    lost = []
    for path, text in pages():
        modules = [name.rstrip(".") for name in re.findall(r"python -m ([\w.]+)", text)]
        for module in set(modules):
            place = ROOT / module.replace(".", "/")
            if not (place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()):
                lost.append(f"{path.relative_to(ROOT)}: python -m {module}")
        shown = re.findall(r"^    (?:\$ )?costeer ([a-z][\w-]*)", text, re.M)
        lost += [f"{path.relative_to(ROOT)}: costeer {verb}" for verb in set(shown) - verbs]
    assert not lost


def test_the_architecture_page_names_every_module_of_the_device() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {path.name for path in (ROOT / "edge_runtime").glob("*.py")} - {"__init__.py"}
    assert {name for name in modules if f"`{name}`" not in page} == set()


def _name(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()
