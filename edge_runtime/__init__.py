"""What runs on the phone: two branches of a small model, steering, schedules and the wire."""

import os

# Libraries that would tell their makers of their use, unless this is set before they load. From
# version 1.29 on onnxruntime reports every session: a number of the device, the model's file and
# producer, how often it ran and for how long, which says how long note and answer were. The hub's
# client names library versions with each request, Ray reports each cluster. Nothing but emitted
# tokens is to leave the device; who wants to report sets the other value.
for _name, _silent in (
    ("ORT_DISABLE_TELEMETRY", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
):
    os.environ.setdefault(_name, _silent)
