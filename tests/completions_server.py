"""A completions server of our own making over `FakeCloud`: the dialects that real ones speak."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cloud_sim.live.server import bound
from cloud_sim.model import ScoreRequest
from tests.fakes import FakeCloud


@dataclass
class Completions:
    """`dialect`: llama (ids), vllm (token_id:N), text (the token's text). `most`: log-probability
    limit. `masks_end`: the end token is never generated, as llama.cpp does with `ignore_eos`.
    `breaks_after`: every stream breaks off after so many events, once each."""

    cloud: FakeCloud
    dialect: str = "llama"
    most: int = 10_000
    key: str = ""
    obeys_ignore_eos: bool = True
    breaks_after: int = 0
    prompts: list[list[int]] = field(default_factory=list)
    url: str = ""

    async def __call__(self, request: Request) -> Response:
        asked = await request.json()
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "Invalid API Key"}}, 401)
        if asked["logprobs"] > self.most:
            return JSONResponse(
                {"error": {"message": f"logprobs must be at most {self.most}"}}, 400
            )
        self.prompts.append(asked["prompt"])
        steps = self.steps(asked)
        if asked["stream"]:
            return StreamingResponse(self.stream(steps), media_type="text/event-stream")
        whole: list[Any] = list(steps)
        return JSONResponse(whole[0])

    def steps(self, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        cloud, tokens = self.cloud, list(asked["prompt"])
        for n in range(asked["max_tokens"]):
            sequence = cloud.open()
            (rows,) = cloud.score([ScoreRequest(cloud, sequence, 0, tuple(tokens))])
            cloud.close(sequence)
            row = rows[-1]
            order = np.argsort(-row, kind="stable")[: asked["logprobs"]]
            token = int(order[0])
            if token in cloud.end_ids:
                if not self.obeys_ignore_eos:
                    yield {"choices": [{"text": "", "logprobs": None, "finish_reason": "stop"}]}
                    return
                token = int(order[1]) if len(order) > 1 else token
            tokens.append(token)
            top = [(int(i), float(row[i])) for i in order]
            finish = "length" if n + 1 == asked["max_tokens"] else None
            logprobs = self.logprobs(token, top)
            yield {"choices": [{"text": "x", "logprobs": logprobs, "finish_reason": finish}]}

    def logprobs(self, token: int, top: list[tuple[int, float]]) -> dict[str, Any]:
        if self.dialect == "llama":
            tops = [{"id": i, "logprob": p} for i, p in top]
            return {"content": [{"id": token, "logprob": top[0][1], "top_logprobs": tops}]}
        name = "token_id:{}" if self.dialect == "vllm" else "<{}>"
        return {
            "tokens": [name.format(token)],
            "top_logprobs": [{name.format(i): p for i, p in top}],
        }

    async def stream(self, steps: Iterator[dict[str, Any]]) -> AsyncIterator[bytes]:
        for n, step in enumerate(steps):
            if self.breaks_after and n == self.breaks_after:
                raise ConnectionResetError("on purpose")
            yield b"data: " + json.dumps(step).encode() + b"\n\n"
            await asyncio.sleep(0)
        yield b"data: [DONE]\n\n"


@contextmanager
def completions_server(app: Completions) -> Iterator[Completions]:
    """Serves `app` on a free port; `app.url` is its address."""
    listener = bound("127.0.0.1", 0)
    app.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    routes = [Route("/v1/completions", app.__call__, methods=["POST"])]
    server = uvicorn.Server(
        uvicorn.Config(Starlette(routes=routes), log_config=None, log_level="critical")
    )
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.01)
        yield app
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
