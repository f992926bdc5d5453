"""Run-ahead in the cloud: predict on and on within the window, and follow the device's frames.

    while the session lasts:
        take in what has arrived            Extend, Credit: the root of the tree moves
        pick the likeliest continuations    `branches` of them, none beyond the window; fewer, or
                                            none but the best path, where the link is full
        predict them in one pass            speculative, except the confirmed answer's own next
        send what is still of use

With nothing to pick it waits for the device. The pass for a token that the device waits for is not
marked speculative, all others are: a server runs those when no session waits.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from cloud_sim.model import Logprobs, ScoreBatch
from cloud_sim.session.admission import Refuse, out_of_turn
from cloud_sim.session.pace import Flow, Window
from cloud_sim.session.talk import Mode, Talk
from cloud_sim.session.tree import Node, Tree
from edge_runtime import wire
from edge_runtime.schedules.actions import Action, Compute, Load, Send


def stream(talk: Talk) -> Mode:
    """Serve run-ahead until the device closes or opens anew; returns that frame."""
    opening, limits, mail = talk.opening, talk.limits, talk.mail
    branches = min(max(1, opening.branches), limits.branches)
    least_chance = max(opening.least_chance, limits.least_chance)
    last = min(opening.max_tokens, limits.answer_tokens) - 1
    window, flow = Window(opening.window, limits.window), Flow()
    tree = Tree(talk.prompt, talk.answer, talk.cache, talk.model.end_ids)
    try:
        while True:
            horizon = min(tree.root.position + window.size, last)
            room = flow.room
            most = min(branches, max(1, room))
            nodes = tree.pick(most, horizon, least_chance, opening.depth, sides=room > 0)
            frame = (yield from mail.already()) if nodes else (yield from mail.next())
            if frame is not None:
                if isinstance(frame, wire.Turns):
                    return frame
                _follow(talk, tree, window, flow, frame)
                continue
            yield from _predict(talk, tree, nodes, branches)
            while frame := (yield from mail.already()):
                if isinstance(frame, wire.Turns):
                    return frame
                _follow(talk, tree, window, flow, frame)
            for node in nodes:
                if node.alive and node.position >= tree.root.position:
                    after = tree.path(node)
                    now_ms = yield Send(
                        wire.Candidates(mail.epoch, node.position, node.payload, after)
                    )
                    node.receipt = flow.sent(len(node.payload), now_ms)
                    if not node.off_main:
                        window.sent(node.position, now_ms)
    finally:
        talk.cache = tree.release()


def _predict(
    talk: Talk, tree: Tree, nodes: list[Node], branches: int
) -> Generator[Action, Any, None]:
    """One forward pass over `nodes`."""
    requests = tuple(tree.request(node) for node in nodes)
    load = Load(
        rows=len(requests),
        tokens=max(len(request.tokens) for request in requests),
        past=max(request.keep for request in requests),
        candidates=talk.model.vocabulary_size,
        speculative=all(request.speculative for request in requests),
    )
    if len(requests) == 1:
        rows: list[Logprobs] = [(yield Compute("score", requests[0], load))]
    else:
        rows = yield Compute("score", ScoreBatch(requests), load)
    talk.scored += len(nodes)
    for node, logprobs in zip(nodes, rows, strict=True):
        payload = talk.codec.encode(logprobs[-1])
        # Decoded again, so that both sides agree on which token is the best.
        tree.grow(node, payload, talk.codec.decode(payload), branches)


def _follow(talk: Talk, tree: Tree, window: Window, flow: Flow, frame: wire.Up) -> None:
    """Move the root to where the device is. Raises `Refuse`."""
    receipt = None
    if not isinstance(frame, wire.Extend | wire.Credit):
        raise out_of_turn(frame, "extend, credit, open or close")
    while tree.root.position < frame.position:
        receipt = tree.root.receipt or receipt
        if not tree.advance():
            raise Refuse(
                "position",
                "the device is ahead of what was predicted for it",
                frame.position,
                f"at most {tree.root.position}",
            )
    if isinstance(frame, wire.Extend):
        if frame.position < tree.root.position or not frame.tokens:
            raise Refuse(
                "position",
                "an answer that was confirmed cannot be taken back",
                frame.position,
                f"at least {tree.root.position}, and a token",
            )
        talk.check(frame)
        receipt = tree.root.receipt or receipt
        for token in frame.tokens:
            tree.advance(token)
    window.confirmed(tree.root.position, talk.mail.now_ms)
    if receipt is not None:
        flow.read(receipt, talk.mail.now_ms)
