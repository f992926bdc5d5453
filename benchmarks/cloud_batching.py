"""What concurrent sessions cost the real server: tokens/s of n sessions against one.

    python -m benchmarks.cloud_batching [--model smollm2-135m] [--tokens 40] [--sessions 1 2 4 8]

A real server and real sockets; the devices take what the cloud says, so that the server alone is
measured. Rounds are interleaved and medians shown; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

from cloud_sim.live.llm import TransformersModel
from cloud_sim.live.server import running
from edge_runtime.candidates import codec
from edge_runtime.connections.websocket import answer
from edge_runtime.device import CloudOnlyDevice
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep


async def tokens_per_s(url: str, sessions: int, tokens: int) -> float:
    """Tokens of all sessions over the time from the first session's first token to the end."""
    began: list[float] = []

    async def one(n: int) -> int:
        asked = Request(f"Name {n + 3} things that float.", "", codec("topk:64"), tokens)
        schedule = lockstep(CloudOnlyDevice(), asked)
        got = await answer(schedule, url, on_token=lambda _: began.append(time.monotonic()))
        return len(got.tokens)

    counts = await asyncio.gather(*(one(n) for n in range(sessions)))
    # The first pass of each is its prompt, which is not what is measured.
    return (sum(counts) - sessions) / (time.monotonic() - sorted(began)[sessions - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 8])
    given = parser.parse_args()
    rates: dict[int, list[float]] = {n: [] for n in given.sessions}
    with running(TransformersModel.open_source(given.model, dtype=given.dtype)) as server:
        asyncio.run(tokens_per_s(server.url, 1, 4))
        for _ in range(given.rounds):
            for n in given.sessions:
                rates[n].append(asyncio.run(tokens_per_s(server.url, n, given.tokens)))
    median = {n: statistics.median(rate) for n, rate in rates.items()}
    alone = median[min(median)] / min(median)
    for n, rate in median.items():
        print(f"{n:3d} sessions {rate:7.1f} tokens/s {rate / alone:5.2f} times one session")
    print(json.dumps({"model": given.model, "dtype": given.dtype, "tokens_per_s": median}))


if __name__ == "__main__":
    main()
