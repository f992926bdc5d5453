"""The demo from end to end on a tiny model: real server, device processes, simulation, page."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from edge_runtime.bundle import Bundle
from scenarios.demo.device_process import DeviceFailed, Job, events
from scenarios.demo.panes import Panes
from scenarios.demo.server_process import ServerProcess
from scenarios.demo.verb import show
from scenarios.pages.page import page
from scenarios.spec import scenario


def test_the_demo_tells_one_story(tiny_bundle: Bundle, tiny_model_dir: Path) -> None:
    content = {
        "name": "tiny",
        "case": {"query": "What to eat?", "context": "I am a vegetarian."},
        "device": {"bundle": str(tiny_bundle.path)},
        "cloud": {"model": str(tiny_model_dir)},
        "network": {"profile": ["5g", "slow-4g"]},
        "answer": {"method": "costeer", "max_tokens": 6, "codec": "topk:16"},
    }
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=False)
    result = show(list(scenario(content).cells()), console)

    alone, steered = result["answers"]
    assert alone["row"]["method"] == "cloud-only"
    assert steered["row"]["method"] == "costeer"
    assert not any(token["instead"] for token in alone["tokens"])
    for answer in (alone, steered):
        assert [token["token"] for token in answer["tokens"]] == answer["row"]["tokens"]
        parts = dict(answer["row"]["ms_per_token"])
        assert math.isclose(parts.pop("total"), sum(parts.values()), rel_tol=1e-6)
        assert answer["row"]["peak_rss_mb"] > 10
    assert [run["label"] for run in result["simulated"]] == ["5g", "slow-4g"]
    assert all(run["same"] for run in result["simulated"])
    assert all(run["row"]["virtual"] for run in result["simulated"])
    shown = screen.getvalue()
    for words in ("The cloud alone", "Steered (costeer)", "tokens per second", "slow-4g"):
        assert words in shown
    assert "What to eat?" in page(result)


def test_a_device_process_hands_its_error_on(tmp_path: Path) -> None:
    job = Job("ws://127.0.0.1:9", "q", "c", "light", bundle=str(tmp_path / "none"))
    with pytest.raises(DeviceFailed) as caught:
        list(events(job))
    assert caught.value.exit_code == 3
    assert "none" in str(caught.value)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    from edge_runtime.errors import EnvironmentFailure

    with (
        ServerProcess(str(tmp_path / "no-model")) as server,
        pytest.raises(EnvironmentFailure, match=r"it did not start: .*no-model"),
    ):
        server.wait()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_panes_end_their_line(terminal: bool) -> None:
    """What follows them begins on a line of its own, in a file as on a screen."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=60)
    with Panes(console, ["one", "two"]) as panes:
        panes.push(0, "said")
    console.print("next")
    lines = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", out.getvalue()).splitlines()
    assert lines[-1] == "next"
    assert any("said" in line for line in lines)
