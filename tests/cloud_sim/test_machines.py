"""Device and cloud profiles: sources, scaling, and the roofline against what was published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import costeer
from cloud_sim.net.catalogue import PROFILES, names, network
from cloud_sim.sim.machines import cloud, device
from cloud_sim.sim.roofline import residuals, weights_floor
from edge_runtime.errors import SpecError, UsageError
from edge_runtime.schedules.actions import Load


def test_every_profile_states_its_sources() -> None:
    for name in names("devices"):
        file = device(name).file
        assert file.name == name
        tables = [*file.decode, *(t for t in (file.costs, file.power) if t)]
        assert all(table.source for table in tables)
    for name in names("clouds"):
        cloud_file = cloud(name).file
        assert cloud_file.name == name
        assert cloud_file.steps.source
        assert cloud_file.model.source
    for name in names("networks"):
        assert network(name).file.round_trip.source


def test_a_device_scales_with_the_bytes_of_its_weights() -> None:
    phone = device("oneplus-12")
    own = phone.costs(weights_mb=700)
    assert own.origin == "published"
    one_row = own.step_ms + own.head_ms_per_candidate * 49_152
    assert one_row == pytest.approx(1e3 / 50.2 * 1.24)  # the published rate, two rows
    half = phone.costs(weights_mb=350)
    assert half.origin == "modelled"
    assert half.step_ms == pytest.approx(own.step_ms / 2)
    assert own.ms("prefill", Load(rows=2, tokens=130)) == pytest.approx(1e3)  # 260 tokens/s


def test_the_roofline_fits_the_published_steps() -> None:
    """Residuals that docs/simulator.md shows; all within 11 %."""
    for name in names("clouds"):
        for batch, published, fitted in residuals(cloud(name).file):
            assert fitted == pytest.approx(published, rel=0.11), (name, batch)
    files = [cloud(name).file for name in names("clouds") if name.startswith("a100-")]
    floor = weights_floor(files)
    assert 0.5 < floor.efficiency < 1
    for file in files:
        assert floor.ms(file) == pytest.approx(file.steps.ms[0], rel=0.11)


def test_keys_and_values_have_what_the_weights_leave(tmp_path: Path) -> None:
    for name in names("clouds"):
        file = cloud(name).file
        held_gb = cloud(name).kv_tokens() * file.model.kv_kb_per_token / 1e6
        assert held_gb + file.model.weights_gb == pytest.approx(0.9 * file.gpu.memory_gb, rel=1e-4)
    own = tmp_path / "own.toml"
    written = (PROFILES / "clouds" / "a100-qwen2.5-7b.toml").read_text()
    own.write_text(written.replace("weights_gb = 15.2", "weights_gb = 75"))
    with pytest.raises(SpecError, match=r"own\.toml: the model does not fit .*allowed under 72 GB"):
        cloud(str(own)).kv_tokens()


def test_the_profiles_verb_lists_all_and_makes_a_device(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert costeer.run(["profiles", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["name"] for row in found["networks"]] == names("networks")
    assert all(row["source"] for rows in found.values() for row in rows)
    report = tmp_path / "report.json"
    costs = {"weights_mb": 140.0, "step_ms": 9.5, "prefill_ms_per_token": 0.7, "head_ms": 0.3}
    report.write_text(json.dumps({"machine": 'a "phone"', "costs": costs, "more": 1}))
    out = tmp_path / "phone.toml"
    assert costeer.run(["profiles", "--device-from", str(report), "--out", str(out)]) == 0
    mine = device(str(out)).costs()
    assert (mine.step_ms, mine.head_ms, mine.origin) == (9.5, 0.3, "measured")
    assert device(str(out)).file.summary == 'Measured: a "phone"'
    capsys.readouterr()
    report.write_text("{}")
    assert costeer.run(["profiles", "--device-from", str(report), "--out", str(out)]) == 2
    assert "costs: this key is needed" in capsys.readouterr().err
    assert device(str(out)).costs() == mine  # what was there is untouched
    report.write_text(json.dumps({"machine": "\ud800", "costs": costs}))
    assert costeer.run(["profiles", "--device-from", str(report), "--out", str(out)]) == 2
    assert "--device-from: what the report says cannot be" in capsys.readouterr().err
    assert device(str(out)).costs() == mine
    report.write_text(json.dumps({"machine": "\U0001f4f1 é \x7f", "costs": costs}))
    assert costeer.run(["profiles", "--device-from", str(report), "--out", str(out)]) == 0
    assert device(str(out)).file.summary == "Measured: \U0001f4f1 é \x7f"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ms = [5.5]", "ms = []", "batch and ms are lists of the same length"),
        ("layers = 28", f"layers = {10**400}", "layers: "),
        ("bandwidth_gb_per_s = ", "bandwidth_gb_per_s = 1e-300 #", "bandwidth_gb_per_s: "),
    ],
)
def test_figures_that_no_cloud_has_are_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    own = tmp_path / "own.toml"
    written = (PROFILES / "clouds" / "a100-qwen2.5-1.5b.toml").read_text()
    own.write_text(written.replace(old, new))
    with pytest.raises(SpecError, match=message):
        cloud(str(own))


def test_unknown_machines_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"Did you mean oneplus-12\?"):
        device("oneplus12")
    with pytest.raises(SpecError, match="no such file"):
        cloud("mine.toml")
