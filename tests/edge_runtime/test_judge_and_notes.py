"""The judge over a real socket; several notes against one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from edge_runtime.branches import open_branches
from edge_runtime.bundle import Bundle
from edge_runtime.errors import ConnectionFailed, UsageError
from edge_runtime.notes import ManyNotes, prompts_of
from edge_runtime.text import Text
from scenarios.datasets import read
from scenarios.models.judge import Judge

CASE = read("notes", limit=1)[0]


class _Server(ThreadingHTTPServer):
    said = "8"
    asked: dict[str, Any]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked = json.loads(raw) | {"auth": self.headers.get("Authorization")}
        body = json.dumps({"choices": [{"message": {"content": self.server.said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def judge(server: _Server, key: str = "") -> Judge:
    return Judge(f"http://127.0.0.1:{server.server_port}", "m", key)


@pytest.mark.parametrize(
    ("said", "grade"), [("8", 8), ("10", 10), ("Grade: 7/10.", 7), ("I say 9.", 9)]
)
def test_a_judge_sees_note_query_and_answer_and_its_number_is_the_grade(
    server: _Server, said: str, grade: int
) -> None:
    server.said = said
    assert judge(server, "secret").grade(CASE, "My answer.") == grade
    shown = server.asked["messages"][0]["content"]
    assert CASE.context in shown
    assert CASE.query in shown
    assert "My answer." in shown
    assert server.asked["auth"] == "Bearer secret"


@pytest.mark.parametrize("said", ["no idea", "42", "7.5", "0"])
def test_what_is_no_grade_is_refused(server: _Server, said: str) -> None:
    server.said = said
    with pytest.raises(ConnectionFailed, match="did not reply with a grade"):
        judge(server).grade(CASE, "x")


def test_a_judge_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ConnectionFailed, match="judge: it cannot be asked"):
        Judge("http://127.0.0.1:9", "m", timeout_s=2).grade(CASE, "x")


NOTES = ("Maria is allergic to peanuts.", "The river is near Porto.")


def test_deltas_of_several_notes_are_added_with_their_weights(tiny_bundle: Bundle) -> None:
    text = Text.open(tiny_bundle)
    prompts = prompts_of(text, "Where to?", NOTES)
    alone = []
    for one in prompts:
        branches = open_branches(tiny_bundle, max_length=120)
        branches.prefill(one.aware, one.agnostic)
        branches.extend([9, 30])
        alone.append(np.array(branches.logits()))
    many = ManyNotes(
        [open_branches(tiny_bundle, max_length=120) for _ in NOTES], prompts, [0.7, -0.2]
    )
    many.prefill((), prompts[0].agnostic)
    many.extend([9, 30, 31])
    many.rollback(2)
    found = many.logits()
    delta = 0.7 * (alone[0][0] - alone[0][1]) - 0.2 * (alone[1][0] - alone[1][1])
    assert found[0] - found[1] == pytest.approx(delta, abs=1e-3)
    assert many.logits(np.array([5, 8]))[1] == pytest.approx(alone[0][1][[5, 8]], abs=1e-3)
    assert many.length == 2
    assert many.past == 2 + max(len(p.aware) for p in prompts)


def test_notes_weights_and_branches_must_be_as_many(tiny_bundle: Bundle) -> None:
    prompts = prompts_of(Text.open(tiny_bundle), "Q?", NOTES)
    one = open_branches(tiny_bundle, max_length=80)
    with pytest.raises(UsageError, match="every note needs"):
        ManyNotes([one], prompts)
