"""What runs on the phone: two branches of a small model, steering, schedules and the wire."""

import os

# From version 1.29 on onnxruntime tells its maker of every session: a number of the device, the
# model's file and producer, how often it ran and for how long, which says how long note and answer
# were. Unless this is set before the library loads. Nothing but emitted tokens is to leave the
# device; who wants to report sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
