"""The continuations of one answer that run-ahead follows, as a tree; the likeliest are next.

    answer so far ─ root ─ is ─ a ─ good        on the cloud's own best tokens: the main path
                      │     └─ the              side branches, while they are likely enough
                      └─── was ─ a

A node stands for the answer up to its token and predicts the position after it. Scored nodes hold
a row, a KV cache with their tokens in it: the first child that is scored goes on in its parent's
row, others in a fork of it. When the device confirms tokens the root moves down, and what is not
below it any more is freed.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from cloud_sim.model import ScoreRequest
from cloud_sim.session.cache import Cache
from cloud_sim.session.odds import UNTOLD, Belief
from cloud_sim.session.pace import Receipt
from edge_runtime.candidates import CandidateSet


@dataclass(slots=True, eq=False)
class Row:
    """A KV cache that nodes share; the deepest of them is its tip."""

    cache: Cache
    tip: Node
    users: int = 0


@dataclass(slots=True, eq=False)
class Node:
    """The answer up to `token`; predicts `position`."""

    parent: Node | None
    token: int
    position: int
    chance: float
    """Logarithm, since the answer began: only differences mean anything."""
    off_main: int = 0
    """Steps since its path left the cloud's own best tokens."""
    belief: Belief = UNTOLD
    """Of what the device does, if the answer goes this way."""
    row: Row | None = None
    base: CandidateSet | None = None
    payload: bytes = b""
    receipt: Receipt | None = None
    """Of the frame with what it predicts, once that was sent."""
    children: dict[int, Node] = field(default_factory=dict)
    alive: bool = True


class Tree:
    """`root` is the confirmed answer; `pick` says what to predict next, `grow` takes it in."""

    def __init__(
        self, prompt: list[int], answer: list[int], cache: Cache, end_ids: tuple[int, ...] = ()
    ) -> None:
        self._prompt = prompt
        self._end_ids = end_ids
        """After these an answer is not continued, unless the device says so."""
        self.answer = answer
        # What `cache` holds may be anything: `Cache.request` finds out what of it is of use.
        start = Node(None, -1, len(answer) - 1, 0.0)
        self._use(start, Row(cache, start))
        self._anchor = start
        """The deepest scored node of the confirmed answer: its row is kept for the root."""
        self.root = Node(start, -1, len(answer), 0.0)
        self._frontier: dict[Node, None] = {self.root: None}
        """In order of coming, which decides between equals: a set would go by addresses."""

    # --- growing ---

    def pick(
        self, most: int, horizon: int, least_chance: float, depth: int, *, sides: bool = True
    ) -> list[Node]:
        """Up to `most` nodes to predict next, likeliest first.

        None beyond position `horizon`, none less likely than `least_chance`, none more than
        `depth` steps off the main path (0: no such bound), and without `sides` none off it.
        """
        least = self.root.chance + math.log(max(least_chance, 1e-12))
        able = (
            node
            for node in self._frontier
            if node.position <= horizon
            and (node is self.root or node.chance >= least)
            and (not depth or node.off_main <= depth)
            and (sides or not node.off_main)
        )
        return heapq.nlargest(most, able, key=lambda node: (node.chance, -node.position))

    def request(self, node: Node) -> ScoreRequest:
        """The work that predicts `node`'s position; gives it a row."""
        above = node.parent
        while above is not None and above.row is None:
            above = above.parent
        assert above is not None
        row = above.row
        assert row is not None
        tokens = [*self._prompt, *self.answer, *self.path(node)]
        if row.tip is not above:
            row = Row(row.cache.fork(len(self._prompt) + above.position), node)
        self._use(node, row)
        row.tip = node
        return row.cache.request(tokens, len(tokens) - 1, speculative=node is not self.root)

    def grow(self, node: Node, payload: bytes, base: CandidateSet, most: int) -> None:
        """`node` was predicted: its `most` likeliest children may be next."""
        node.payload, node.base = payload, base
        self._frontier.pop(node, None)
        best = base.best
        for token, chance, belief in node.belief.choices(base, most):
            side = node.off_main + 1 if node.off_main or token != best else 0
            child = Node(node, token, node.position + 1, node.chance + chance, side, belief)
            node.children[token] = child
            if token not in self._end_ids:
                self._frontier[child] = None
        if node is self.root:
            self._settle()

    def path(self, node: Node) -> tuple[int, ...]:
        """Tokens from the root to `node`."""
        tokens = []
        while node is not self.root:
            tokens.append(node.token)
            assert node.parent is not None
            node = node.parent
        return tuple(reversed(tokens))

    # --- moving on ---

    def advance(self, token: int | None = None) -> bool:
        """The answer goes on with `token` (None: with the root's own best). False: no best yet."""
        root = self.root
        if root.base is None and token is None:
            return False
        if root.base is not None:
            token = root.base.best if token is None else token
        assert token is not None
        self._frontier.pop(root, None)
        new = root.children.pop(token, None)
        for child in root.children.values():
            self._prune(child)
        root.children.clear()
        if new is None:
            new = Node(root, token, root.position + 1, root.chance)
            new.belief = root.belief.after(root.base, token) if root.base else root.belief
        if new.row is None:
            self._frontier[new] = None
        self._lift(new)
        self.answer.append(token)
        self.root = new
        if new.row is not None:
            self._settle()
        return True

    def _lift(self, node: Node) -> None:
        """`node`, which the device has chosen, is on the main path now, and so is its best."""
        if not node.off_main:
            return
        node.off_main = 0
        stack = [node]
        while stack:
            above = stack.pop()
            best = above.base.best if above.base is not None else None
            for token, child in above.children.items():
                on_main = not above.off_main and token == best
                child.off_main = 0 if on_main else above.off_main + 1
                stack.append(child)

    def release(self) -> Cache:
        """Free everything but one cache, the confirmed answer's; the tree is of no use after."""
        self._prune(self.root, keep=self._anchor)
        row = self._anchor.row
        assert row is not None
        return row.cache

    def _settle(self) -> None:
        """The root has a row: what was kept for it above is not needed any more."""
        if self._anchor is not self.root:
            self._leave(self._anchor)
            self._anchor = self.root
            self.root.parent = None

    def _prune(self, top: Node, keep: Node | None = None) -> None:
        """Free `top` and all below it, except `keep`."""
        stack = [top]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            if node is keep:
                continue
            node.alive = False
            self._frontier.pop(node, None)
            if node.row is not None:
                # A row is a chain of nodes; what is left of it, if anything, ends above `top`.
                if node.row.tip is node and top.parent is not None:
                    node.row.tip = top.parent
                self._leave(node)

    def _use(self, node: Node, row: Row) -> None:
        node.row = row
        row.users += 1

    def _leave(self, node: Node) -> None:
        row = node.row
        assert row is not None
        node.row = None
        row.users -= 1
        if not row.users:
            row.cache.close()
