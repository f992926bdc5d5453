"""The report in a real browser: it draws, has no complaints, and asks nobody for anything."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from scenarios.report import write_report
from tests.scenarios.test_report import finished

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_opens_without_errors_and_without_a_network(tmp_path: Path) -> None:
    page = write_report(finished(tmp_path / "study", seed=[0])).page
    shown, console, asked = opened(page, tmp_path)
    assert not console
    assert not asked
    # plotly has drawn: the marks are in the page that the browser ended up with.
    assert shown.count('class="main-svg"') >= 3

    # And the check sees what it is there to see.
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/pixel.png"><script>nothing.there()</script>')
    _, console, asked = opened(bad, tmp_path)
    assert any("nothing is not defined" in line for line in console)
    assert asked == {"http://127.0.0.1:9/pixel.png"}


def opened(page: Path, folder: Path) -> tuple[str, list[str], set[str]]:
    """The page as drawn, what the console said, and the addresses that it asked for."""
    log = folder / f"{page.stem}-net.json"
    assert CHROMIUM is not None
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
        *("--enable-logging=stderr", "--virtual-time-budget=8000", f"--log-net-log={log}"),
        *(f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console, requested(log)


def requested(log: Path) -> set[str]:
    """Addresses that a page asked for, by Chromium's own log.

    What the browser asks for by itself (updates, the time) has no page as its initiator.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    try:
        events = json.loads(text)["events"]
    except ValueError:  # cut short when the browser ended: the last line is unfinished
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    asked = [event.get("params", {}) for event in events if "params" in event]
    return {
        request["url"]
        for request in asked
        if "url" in request and request.get("initiator", "not an origin") != "not an origin"
    }
