"""The whole method in one file: steer a cloud model by a private note, in memory.

    python examples/steer.py BUNDLE

Both models run in this process and no socket is opened; `costeer serve` and `costeer generate` do
the same over a network, with the same schedule and the same session.
"""

import sys
from pathlib import Path

from cloud_sim.live.llm import TransformersModel
from cloud_sim.session import session
from edge_runtime.assembly import Plan, device_for
from edge_runtime.bundle import open_bundle
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.rules import method
from edge_runtime.schedules.exchange import Request
from edge_runtime.text import Text

QUERY = "What should I cook for dinner tonight?"
NOTE = Path(__file__).with_name("dinner-note.txt").read_text().strip()

cloud = TransformersModel.open_source("smollm2-135m")
bundle = open_bundle(sys.argv[1])
text = Text.open(bundle)
request = Request(QUERY, text.fingerprint, codec("topk:64"), max_tokens=48)

for rule in (method("cloud-only"), method("light", gain=1.0)):
    device = device_for(bundle, text, QUERY, NOTE, rule, max_tokens=48)
    transcript = run_direct(Plan("lockstep").make(device, request), session(cloud))
    print(f"\n{rule.name}, gain {rule.gain:g}:\n{text.decode(transcript.tokens)}")
