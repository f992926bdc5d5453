"""Cells of a scenario in virtual time: tokens do not depend on the link, times do, parts add up."""

from __future__ import annotations

import json
import math
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import costeer
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.record import blank
from cloud_sim.sim.replay import Replay
from cloud_sim.sim.tape import Tape
from edge_runtime.bundle import Bundle
from edge_runtime.errors import UsageError
from edge_runtime.rules import method
from edge_runtime.sampling import Sampler
from scenarios.cells.measures import Measures
from scenarios.models.reuse import Reusing
from scenarios.plans import plan_of, text_of
from scenarios.run import Machines, Result, run
from scenarios.spec import Cell, scenario
from tests.cloud_sim.test_tape import PROMPTS, VOCABULARY, HashBranches
from tests.fakes import FakeCloud

MACHINES = Machines(
    DeviceCosts(step_ms=16.0, head_ms=2.0, steer_ms=0.1, prefill_ms=40.0, origin="measured"),
    CloudCosts(step_ms=12.0, origin="published"),
)


class FakeModels:
    """`scenarios.models.opened.Models` over fakes, recorded like real ones."""

    def __init__(self) -> None:
        self.tape: Tape | None = None
        self.cloud = FakeCloud(VOCABULARY)

    def replay(self, cell: Cell) -> Replay:
        if self.tape is None:
            self.tape = blank(self.cloud, cell.case.query, cell.codec)
        branches = HashBranches()
        rule, sampler = method(cell.method, cell.gain), Sampler(cell.temperature, seed=cell.seed)
        reusing = Reusing(self.cloud)
        return Replay(self.tape, rule, sampler, reusing, branches, PROMPTS)

    def decode(self, cell: Cell) -> Callable[..., str]:
        return lambda ids: "".join(chr(97 + token % 26) for token in ids)

    def weights_mb(self, cell: Cell) -> float:
        return 100.0


def results(**network: Any) -> list[Result]:
    content = {
        "name": "test",
        "case": {"query": "q", "context": "c"},
        "network": network,
        "answer": {"codec": "topk:8", "max_tokens": 12},
    }
    return list(run(scenario(content).cells(), FakeModels(), machines=MACHINES))


def test_every_link_gives_the_same_tokens_in_its_own_time() -> None:
    fast, slow = results(profile=["5g", "slow-4g"])
    assert fast.row["tokens"] == slow.row["tokens"]
    assert fast.row["token_ms_p50"] < slow.row["token_ms_p50"]
    assert fast.row["profile"] == "5g"


def test_a_row_has_every_figure_and_its_parts_add_up() -> None:
    (result,) = results(profile="lte")
    row = result.row
    assert row["virtual"] is True
    for key in (
        *("profile", "schedule", "method", "ttft_ms", "token_ms_p50", "token_ms_p95"),
        *("token_ms_p99", "parts", "uplink_bytes", "downlink_bytes", "round_trips"),
        *("divergences", "accepted", "wasted_cloud_tokens", "gated", "late"),
        *("retransmissions", "seed", "text", "tokens", "gain", "tokens_per_s", "ms_per_token"),
    ):
        assert key in row
    mean = row["ms_per_token"].pop("total")
    assert math.isclose(sum(row["parts"].values()), mean, rel_tol=1e-9)
    assert row["parts"] == row["ms_per_token"]
    for token, record in zip(result.tokens, result.transcript.records, strict=True):
        assert math.isclose(sum(token["parts"].values()), record.parts.total, abs_tol=0.01)
    settings = {"gain", "seed"}
    for name, value in row.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in settings:
            assert row["origin"][name] in {"measured", "modelled", "published", "assumed"}, name
    assert row["origin"]["parts"] == row["origin"]["retransmissions"] == "modelled"
    assert row["origin"]["uplink_bytes"] == row["origin"]["round_trips"] == "measured"
    assert row["inputs"]["device"] == "measured"
    assert row["inputs"]["cloud"] == "published"


@pytest.mark.parametrize(
    "text",
    [
        "lockstep",
        "runahead:window=8,branches=4",
        "draft:draft_tokens=3",
        "lockstep:gate=reopen,token_deadline_ms=250.5,on_late=device",
    ],
)
def test_a_plan_can_be_written_as_it_is_read(text: str) -> None:
    plan = plan_of(text)
    assert plan_of(text_of(plan)) == plan


def test_simulate_replays_tapes_offline_and_refuses_what_is_not_on_them(
    tiny_bundle: Bundle, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recorded once with the models, replayed over other links without any."""
    cloud = tmp_path / "cloud"
    shutil.copytree(tiny_model_dir, cloud)
    study = tmp_path / "study.toml"
    study.write_text(
        'name = "tiny"\n[case]\nquery = "What to eat?"\ncontext = "I am a vegetarian."\n'
        f'[device]\nbundle = "{tiny_bundle.path}"\n[cloud]\nmodel = "{cloud}"\n'
        '[network]\nprofile = "lte"\n[answer]\nmax_tokens = 8\ncodec = "topk:16"\n'
    )
    tapes = tmp_path / "tapes"

    def simulate(*options: object) -> tuple[int, list[dict[str, Any]], str]:
        command = ["simulate", study, "--tapes", tapes, "--json", *options]
        code = costeer.run([str(word) for word in command])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1])["rows"] if out else [], err

    code, recorded, _ = simulate()
    assert (code, len(list(tapes.glob("*.tape")))) == (0, 1)
    assert simulate()[1] == recorded
    _, short, _ = simulate("--set", "answer.max_tokens=1", "--out", tmp_path / "out")
    assert short[0]["token_ms_p50"] is None, "one token has no time per token"
    assert stat.S_IMODE((tmp_path / "out" / "rows.json").stat().st_mode) == 0o600
    code, _, err = simulate("--set", 'answer.schedule=["lockstep", "lockstp"]')
    assert (code, "no such schedule" in err) == (2, True)
    shutil.rmtree(cloud)
    code, offline, _ = simulate("--offline")
    assert (code, offline) == (0, recorded)
    code, slow, _ = simulate("--offline", "--set", "network.profile=slow-4g")
    assert slow[0]["tokens"] == recorded[0]["tokens"]
    assert slow[0]["token_ms_p50"] > recorded[0]["token_ms_p50"]
    code, _, err = simulate("--offline", "--set", "answer.method=costeer")
    assert (code, "the answer leaves the recorded path at position" in err) == (2, True)
    code, _, err = simulate("--offline", "--set", "case.query=Where?")
    assert (code, "no answer to this question was recorded" in err) == (2, True)
    assert costeer.run(["simulate", str(study), "--offline"]) == 2
    assert "there is nothing to replay" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--window", "4"], "simulate: these options need a schedule to belong to"),
        (["--schedule", "runahed"], "no such schedule"),
        (["--schedule", "lockstep", "--branches", "4"], "has no such number"),
    ],
)
def test_simulate_refuses_a_plan_that_is_none(options: list[str], said: str) -> None:
    command = [sys.executable, "-m", "costeer", "simulate", "latency", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_round_trip_of_the_scenario_replaces_the_profiles() -> None:
    near, far = results(profile="lte", rtt_ms=[10.0, 200.0])
    assert far.row["token_ms_p50"] - near.row["token_ms_p50"] == pytest.approx(190, abs=20)


def test_the_same_scenario_gives_the_same_rows() -> None:
    assert [r.row for r in results(profile="lte")] == [r.row for r in results(profile="lte")]


def test_an_unknown_schedule_is_named() -> None:
    content = {"name": "x", "case": {"query": "q"}, "answer": {"schedule": "lockstp"}}
    with pytest.raises(UsageError, match=r"schedule: no such schedule .got lockstp.*lockstep"):
        list(run(scenario(content).cells(), FakeModels(), machines=MACHINES))


def test_a_fleet_crowds_on_one_cloud(tmp_path: Path) -> None:
    content = {
        "name": "fleet",
        "measure": "fleet",
        "case": {"query": "q", "context": "c"},
        "answer": {"codec": "topk:8", "max_tokens": 12},
        "network": {"profile": "lte"},
        "device": {"profile": "galaxy-s24-ultra"},
        "cloud": {"profile": "a100-qwen2.5-7b"},
        "fleet": {"devices": 40, "arrivals_per_s": [1.0, 1000.0]},
    }
    cells = list(scenario(content).cells())
    calm, crowded = (result["row"] for result in Measures(tmp_path, FakeModels()).run(cells))
    assert calm["answers"] == crowded["answers"] == 40
    assert crowded["rows_per_pass"] > calm["rows_per_pass"]
    assert crowded["token_ms_p95"] >= calm["token_ms_p95"]
