"""The names in a study, all looked up before its first cell runs.

A name is otherwise looked up by the cell that needs it, which for the last value of an axis is
after hours of work. (The wire's codecs were looked up when the file was read.)
"""

from __future__ import annotations

from cloud_sim.net.catalogue import network
from cloud_sim.sim.machines import cloud, device
from edge_runtime.rules import method
from scenarios.cells.trace_links import files, is_trace
from scenarios.plans import plan_of
from scenarios.spec import Scenario

TIMED = ("time", "both", "fleet")
"""What needs schedules, links and machines."""


def check_names(study: Scenario) -> None:
    """Look every name of every axis up, each once. Raises `UsageError` or `SpecError` for one that
    is none, and for a gain with a method that has none."""
    for name in study.axes["method"]:
        for gain in study.axes["gain"]:
            method(name, gain)
    if study.measure == "codec":
        from scenarios.cells.codecs import codec_of

        for name in study.axes["codec"]:
            codec_of(name)
    if study.measure not in TIMED:
        return
    for name in study.axes["schedule"]:
        plan_of(name)
    for name in study.axes["network"]:
        if is_trace(name):
            files(name)
        else:
            network(name)
    for name in study.axes["device"]:
        device(name)
    for name in study.axes["cloud"]:
        cloud(name)
