"""What a study can be made of besides models: recorded answers, drives, other placements."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.recordings import RecordedDevice
from benchmarks.recordings import Recording as ReplayedByArrays
from cloud_sim.net.catalogue import network
from cloud_sim.sim.costs import CloudCosts, DeviceCosts
from cloud_sim.sim.simulate import simulate
from edge_runtime.candidates import codec
from edge_runtime.errors import SpecError, UsageError
from edge_runtime.rules import method
from edge_runtime.sampling import GREEDY
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.schedules.runahead import runahead
from scenarios.cells.measures import Measures
from scenarios.cells.recordings import END_IDS, RecordedReplay, Recording, cases
from scenarios.cells.trace_links import in_folder, linked
from scenarios.run import link_of
from scenarios.spec import Cell, scenario
from scenarios.store import Store
from scenarios.sweep import key_of, sweep
from tests.scenarios.test_scenario_run import MACHINES, FakeModels

K, TOKENS = 8, 24


def recorded(folder: Path, name: str = "one", gain: float = 0.476) -> list[int]:
    """An answer as `benchmarks.record_answers` writes it; its tokens."""
    draw = np.random.default_rng(len(name))
    ids = np.sort(
        np.stack([draw.choice(500, K, replace=False) for _ in range(TOKENS)]), axis=1
    ).astype(np.int64)
    logits = draw.normal(0, 2, (TOKENS, K))
    logprobs = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float16)
    scores = draw.normal(0, 1, (TOKENS, 2, K)).astype(np.float32)
    exact = gain if gain != 0.476 else 0.4761904762
    steered = logprobs.astype(np.float32) + exact * (scores[:, 0] - scores[:, 1])
    tokens = ids[np.arange(TOKENS), steered.argmax(1)]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / f"{name}@{gain:.3g}.npz",
        tokens=tokens,
        ids=ids,
        logprobs=logprobs,
        scores=scores,
        own_ids=ids,
        own_logprobs=logprobs,
        gain=np.array(exact),
        prompts=np.array([12, 40]),
        query=np.array(f"what of {name}?"),
    )
    return [int(token) for token in tokens]


def of_recorded(folder: Path, **answer: Any) -> Any:
    return scenario(
        {
            "name": "test",
            "case": {"recorded": str(folder)},
            "device": {"profile": "oneplus-12", "weights_mb": 494.0},
            "cloud": {"profile": "a100-qwen2.5-7b"},
            "network": {"profile": ["5g", "slow-4g"]},
            "answer": {"codec": f"topk:{K}", **answer},
        }
    )


@pytest.mark.parametrize("schedule", ["lockstep", "runahead", "runahead:branches=4"])
def test_a_recorded_answer_is_given_again_under_every_schedule(
    tmp_path: Path, schedule: str
) -> None:
    wanted = {name: recorded(tmp_path, name) for name in ("one", "two and more")}
    plan = of_recorded(tmp_path, schedule=schedule)
    assert [case.id for case in plan.cases] == sorted(wanted)
    for cell in plan.cells():
        (result,) = Measures(tmp_path).run([cell])
        assert result["row"]["tokens"] == wanted[cell.case.id]


def test_a_recording_keeps_what_the_cloud_sent(tmp_path: Path) -> None:
    recorded(tmp_path)
    tape = Recording.load(tmp_path / "one@0.476.npz").tape()
    assert tape.positions == TOKENS
    assert tape.root.payload is not None
    sent = codec(f"topk:{K}").decode(tape.root.payload)
    with np.load(tmp_path / "one@0.476.npz") as arrays:
        assert sent.ids.tolist() == arrays["ids"][0].tolist()
        np.testing.assert_array_equal(sent.logprobs, arrays["logprobs"][0])


def test_what_was_not_recorded_is_refused(tmp_path: Path) -> None:
    recorded(tmp_path)
    (other,) = of_recorded(tmp_path, gain=1.0, schedule="lockstep").cases
    cell = next(of_recorded(tmp_path, gain=1.0).cells())
    assert cell.case == other
    with pytest.raises(UsageError, match=r"not recorded with this gain \(got one@1.npz; allowed 0"):
        list(Measures(tmp_path).run([cell]))
    cell = next(of_recorded(tmp_path, codec="full").cells())
    with pytest.raises(UsageError, match="one codec"):
        list(Measures(tmp_path).run([cell]))
    with pytest.raises(Exception, match="no recorded answers"):
        cases(tmp_path / "nowhere")


@pytest.mark.parametrize("rule", ["names", "blend", "device-only"])
def test_an_answer_of_one_rule_is_not_shown_as_anothers(tmp_path: Path, rule: str) -> None:
    recorded(tmp_path)
    recorded(tmp_path, gain=0.75)
    cell = next(of_recorded(tmp_path, method=rule).cells())
    with pytest.raises(UsageError, match=rf"this rule is another \(got {rule}; allowed light"):
        list(Measures(tmp_path).run([cell]))


def test_what_is_no_recording_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "torn@1.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(SpecError, match=r"torn@1.npz: this is no recorded answer"):
        Recording.load(tmp_path / "torn@1.npz")
    np.savez(tmp_path / "other@1.npz", query=np.array("q"))
    with pytest.raises(SpecError, match=r"other@1.npz: this is no recorded answer"):
        Recording.load(tmp_path / "other@1.npz")


def test_benchmarks_and_studies_read_one_file_alike(tmp_path: Path) -> None:
    """Same tokens, same bytes: one by a schedule of its own over the arrays, one over a tape."""
    wanted = recorded(tmp_path)
    path = tmp_path / "one@0.476.npz"
    for end_ids in ((), (wanted[-1],)):
        if end_ids:
            with np.load(path) as file:
                np.savez(path, **{**dict(file), "end_ids": np.array(end_ids)})
        mine, tape = ReplayedByArrays.load(path), Recording.load(path).tape()
        assert tape.end_ids == mine.end_ids == (end_ids or END_IDS)
        link = network("lte")
        costs = DeviceCosts(step_ms=10.0), CloudCosts(step_ms=5.0)
        for schedule in (lockstep, runahead):
            found = []
            replay = RecordedReplay(tape, method("light"), GREEDY)
            for device, request, session in (
                (RecordedDevice(mine), mine.request(), mine.session()),
                (replay.device(), replay.request(99), replay.session()),
            ):
                up, down = link.links(0)
                made = simulate(schedule(device, request), session, uplink=up, downlink=down,
                                device_costs=costs[0], cloud_costs=costs[1])  # fmt: skip
                found.append((made.tokens, made.downlink_bytes, made.records[-1].at_ms))
            assert found[0][0] == wanted
            assert found[0][0] == found[1][0]
            if schedule is lockstep:
                assert found[0][1:] == pytest.approx(found[1][1:], rel=0.01)


def test_a_cells_key_follows_the_recording(tmp_path: Path) -> None:
    recorded(tmp_path)
    cell = next(of_recorded(tmp_path).cells())
    first = key_of(cell)
    recorded(tmp_path, gain=0.476)
    assert key_of(cell) == first
    np.savez(tmp_path / "one@0.476.npz", query=np.array("another"))
    assert key_of(cell) != first


def test_a_study_of_recorded_answers_sweeps_and_resumes(tmp_path: Path) -> None:
    recorded(tmp_path / "answers")
    plan = of_recorded(tmp_path / "answers", schedule=["lockstep", "runahead"])
    path = sweep(plan, tmp_path / "out")
    before = path.read_bytes()
    assert sweep(plan, tmp_path / "out").read_bytes() == before
    rows = Store(tmp_path / "out").rows()
    assert list(rows["profile"]) == ["5g", "slow-4g"] * 2


# --- recorded drives ---


def drives(folder: Path) -> Path:
    """A mahimahi pair and a series of round trips."""
    folder.mkdir()
    (folder / "town-LTE.up").write_text("".join(f"{t}\n" for t in range(1, 900, 7)))
    (folder / "town-LTE.down").write_text("".join(f"{t}\n" for t in range(1, 900, 2)))
    (folder / "urban.csv").write_text(
        "t_ms,rtt_ms\n" + "".join(f"{50 * i},{15 + i % 9}\n" for i in range(200))
    )
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    return folder


def test_a_folder_of_recordings_is_an_axis(tmp_path: Path) -> None:
    folder = drives(tmp_path / "drives")
    names = in_folder(folder)
    assert names == (f"trace:{folder / 'town-LTE'}", f"trace:{folder / 'urban.csv'}")
    plan = scenario(
        {"name": "t", "case": {"query": "q"}, "network": {"traces": str(folder)}, "seed": [0, 1]}
    )
    assert plan.axes["network"] == names
    with pytest.raises(UsageError, match="neither NAME"):
        in_folder(tmp_path / "drives" / "none")


def test_a_recordings_links_are_what_was_recorded(tmp_path: Path) -> None:
    folder = drives(tmp_path / "drives")
    rates = linked(f"trace:{folder / 'town-LTE'}", 0).file
    assert (rates.uplink.origin, rates.round_trip.origin) == ("measured", "assumed")
    assert rates.uplink.trace == "town-LTE.up"
    trips = linked(f"trace:{folder / 'urban.csv'}", 0)
    assert (trips.file.round_trip.origin, trips.file.uplink.origin) == ("measured", "assumed")
    up, _ = trips.links(0)
    # Half of a recorded round trip, and what 100 bytes take at the uplink's rate.
    assert 7.5 <= up.send(0.0, 100) <= 12.5


@pytest.mark.parametrize("name", ["made:lte-driving", "made:5g-driving"])
def test_a_seed_is_another_stretch_of_the_same_drive(name: str) -> None:
    def arrivals(seed: int) -> list[float]:
        _, down = linked(name, seed).links(seed)
        return [down.send(float(at), 1000) - at for at in range(0, 4000, 100)]

    assert arrivals(1) == arrivals(1)
    assert arrivals(1) != arrivals(2)


def test_a_drives_key_follows_its_files(tmp_path: Path) -> None:
    folder = drives(tmp_path / "drives")
    plan = scenario({"name": "t", "case": {"query": "q"}, "network": {"traces": str(folder)}})
    first, second = (key_of(cell) for cell in plan.cells())
    (folder / "town-LTE.down").write_text("5\n10\n")
    assert key_of(next(plan.cells())) != first
    assert [key_of(cell) for cell in plan.cells()][1] == second


def test_names_that_are_no_drive_are_refused(tmp_path: Path) -> None:
    cell = next(scenario({"name": "t", "case": {"query": "q"}}).cells())
    for name in ("made:sea", f"trace:{tmp_path / 'none'}"):
        with pytest.raises(UsageError, match="no such"):
            link_of(Cell(**{**cell.settings(), "case": cell.case, "network": name}))


# --- placement ---


def placed(placement: str, codec_name: str, **more: Any) -> Any:
    from scenarios.run import run_cell

    plan = scenario(
        {
            "name": "t",
            "case": {"query": "q", "context": "c"},
            "answer": {"codec": codec_name, "max_tokens": 12, "placement": placement, **more},
            "network": {"profile": "lte"},
        }
    )
    return run_cell(next(plan.cells()), FakeModels(), MACHINES)


@pytest.mark.parametrize("codec_name", ["topk:8", "full"])
def test_steering_in_the_cloud_gives_the_same_tokens_and_sends_the_delta_up(
    codec_name: str,
) -> None:
    here, there = placed("device", codec_name), placed("cloud", codec_name)
    assert there.row["tokens"] == here.row["tokens"]
    count, size = len(here.row["tokens"]), here.transcript
    values = 8 if codec_name == "topk:8" else FakeModels().cloud.vocabulary_size
    assert there.row["context_bits"] == 16 * values * count
    assert here.row["context_bits"] == 0
    assert there.row["uplink_bytes"] > size.uplink_bytes
    assert there.row["evidence_bits"] == here.row["evidence_bits"]


def test_a_placements_times_add_up() -> None:
    records = placed("cloud", "topk:8").transcript.records
    for before, after in itertools.pairwise(records):
        assert after.parts.total == pytest.approx(after.at_ms - before.at_ms)
        # Token down, step and head, delta up; the cloud's pass and ids are on their way meanwhile.
        assert after.parts.total > 35.0 + 16.0 + 2.0


def test_steering_in_the_cloud_is_lockstep() -> None:
    with pytest.raises(UsageError, match="is a lockstep"):
        placed("cloud", "topk:8", schedule="runahead")
    with pytest.raises(UsageError, match="no such codec"):
        placed("cloud", "packed:8")
