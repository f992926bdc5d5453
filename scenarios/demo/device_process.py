"""The device in a process of its own, so that its memory and its time are its own.

The parent (`DeviceProcess`) starts `python -m scenarios.demo.device_process`, writes one job as
JSON and reads one JSON object a line: every token as it is emitted, and the whole answer at the
end. The child loads no torch, transformers or simpy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edge_runtime.errors import CosteerError, EnvironmentFailure


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to make."""

    url: str
    query: str
    context: str
    method: str
    gain: float | None = None
    bundle: str = ""
    """The tokenizer comes from it even where no model runs on the device."""
    codec: str = "topk:64"
    schedule: str = "lockstep"
    max_tokens: int = 64
    tape: str = ""
    """Where the answer is recorded (`scenarios.demo.recorded`); empty: it is not."""


class DeviceFailed(CosteerError):
    """The device process ended with an error of its own: its line and exit code are passed on."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__("device", line)
        self.line, self.exit_code = line, code

    def __str__(self) -> str:
        return getattr(self, "line", "")


def events(job: Job) -> Iterator[dict[str, Any]]:
    """Run `job` in a new process: `kind` is `ready`, `token` (many), then `done`."""
    child = subprocess.Popen(
        [sys.executable, "-m", "scenarios.demo.device_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(asdict(job)))
        child.stdin.close()
        finished = False
        for line in child.stdout:
            event = json.loads(line)
            if event["kind"] == "error":
                raise DeviceFailed(event["line"], event["code"])
            finished = event["kind"] == "done"
            yield event
        if not finished:
            raise EnvironmentFailure(
                "device", "the device process ended before its answer", got=child.wait()
            )
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def main() -> int:
    """The child: one job in, events out."""
    job = Job(**json.load(sys.stdin))
    try:
        _answer(job)
    except CosteerError as error:
        _tell("error", line=str(error), code=error.exit_code)
        return error.exit_code
    return 0


def _answer(job: Job) -> None:
    import asyncio
    import time

    from edge_runtime.assembly import device_for
    from edge_runtime.bundle import open_bundle
    from edge_runtime.candidates import codec
    from edge_runtime.connections.websocket import answer
    from edge_runtime.graphs.memory import peak_rss_mb
    from edge_runtime.rules import method
    from edge_runtime.schedules.exchange import Request
    from edge_runtime.text import Text
    from edge_runtime.transcript import TokenRecord
    from scenarios.answers import answer_row, token_row
    from scenarios.demo.recorded import Listener, listens
    from scenarios.plans import plan_of

    began = time.perf_counter()
    bundle = open_bundle(job.bundle)
    text = Text.open(bundle)
    device = device_for(
        bundle,
        text,
        job.query,
        job.context,
        method(job.method, job.gain),
        max_tokens=job.max_tokens,
    )
    request = Request(job.query, text.fingerprint, codec(job.codec), job.max_tokens)
    listener = None
    if job.tape and listens(device, job.schedule):
        listener = Listener(bundle, device, job.query, request.codec)
        request = replace(request, codec=listener)
    _tell("ready", load_ms=1e3 * (time.perf_counter() - began))
    shown = text.stream()

    def on_token(record: TokenRecord) -> None:
        if listener is not None:
            listener.emitted(record)
        _tell("token", text=shown.push(record.token))

    transcript = asyncio.run(
        answer(
            plan_of(job.schedule).make(device, request),
            job.url,
            on_token=on_token,
            method=device.method.name,
            gain=device.method.gain,
        )
    )
    again = text.stream()
    tokens = [
        token_row(record, again.push(record.token), text.decode) for record in transcript.records
    ]
    if listener is not None:
        listener.tape.save(Path(job.tape))
    row = answer_row(transcript, text.decode(transcript.tokens), peak_rss_mb=peak_rss_mb())
    _tell("done", row=row, tokens=tokens)


def _tell(kind: str, **more: Any) -> None:
    print(json.dumps({"kind": kind, **more}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
