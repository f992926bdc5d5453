"""Answers that a real pair of models gave, kept in files, as the cases of a time study.

    FOLDER/<case>@<gain>.npz    one answer (written by `benchmarks.record_answers`)
    FOLDER/tokenizer.json       the pair's tokenizer, if answers shall be readable in reports

A file holds, for each position, the cloud's best candidates and both rows of the small model over
them: all that lockstep and run-ahead ask on the way of the answer. So any link, machine and window
can be tried without a model. What the cloud guesses beside the way is stood in for (see
`cloud_sim.sim.tape`); a schedule that drafts leaves the way and is refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from cloud_sim.sim.replay import Replay, ReplayedDevice
from cloud_sim.sim.tape import Tape, child
from edge_runtime.candidates import CandidateSet, TopK
from edge_runtime.errors import SpecError, UsageError
from edge_runtime.policy import Decision, Scores
from edge_runtime.rules import method
from edge_runtime.sampling import GREEDY
from edge_runtime.schedules.exchange import Request
from edge_runtime.steering import Method
from scenarios.datasets import Case

if TYPE_CHECKING:
    from scenarios.spec import Cell

VOCABULARY, END_IDS = 151_936, (151_645, 151_643)
"""Of the pair, where a file does not say: Qwen's."""


@dataclass(frozen=True)
class Recording:
    """One recorded answer as its file holds it: n tokens, at each position K candidates."""

    name: str
    query: str
    gain: float
    tokens: list[int]
    ids: npt.NDArray[np.integer]
    """[n, K], ascending: the cloud's best."""
    logprobs: npt.NDArray[np.float16]
    """[n, K]: what the cloud says of them."""
    scores: npt.NDArray[np.float32]
    """[n, 2, K]: both rows of the small model over them, raw."""
    own_best: list[int]
    """The aware row's best token at each position; none where the file does not say."""
    prompt_tokens: int
    aware_tokens: int
    end_ids: tuple[int, ...] = END_IDS
    vocabulary_size: int = VOCABULARY

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a file of `benchmarks.record_answers`. Raises `UsageError` when it is not there,
        `SpecError` when it is none."""
        if not path.is_file():
            raise UsageError(
                "recorded answers",
                "this case was not recorded with this gain",
                got=path.name,
                allowed=", ".join(
                    sorted({p.stem.rpartition("@")[2] for p in path.parent.glob("*@*")})
                ),
            )
        try:
            with np.load(path) as file:
                return cls._of(path.stem, dict(file))
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise SpecError(
                str(path),
                f"this is no recorded answer: {error}",
                todo="Make it again: python -m benchmarks.record_answers",
            ) from error

    @classmethod
    def _of(cls, name: str, arrays: dict[str, npt.NDArray[Any]]) -> Self:
        prompt_tokens, aware_tokens = (int(count) for count in arrays["prompts"])
        own: list[int] = []
        if "own_ids" in arrays:
            best = arrays["own_logprobs"].argmax(1)
            own = arrays["own_ids"][np.arange(len(best)), best].tolist()
        return cls(
            name,
            str(arrays["query"]),
            float(arrays["gain"]),
            arrays["tokens"].tolist(),
            arrays["ids"],
            arrays["logprobs"],
            arrays["scores"],
            own,
            prompt_tokens,
            aware_tokens,
            tuple(int(end) for end in arrays.get("end_ids", END_IDS)),
            int(arrays.get("vocabulary_size", VOCABULARY)),
        )

    @property
    def codec_name(self) -> str:
        """What the cloud's frames are encoded with."""
        return f"topk:{self.ids.shape[1]}"

    @cached_property
    def payloads(self) -> list[bytes]:
        """The cloud's frame for each position."""
        packed = TopK(self.ids.shape[1]).pack
        return [packed(*position) for position in zip(self.ids, self.logprobs, strict=True)]

    def tape(self) -> Tape:
        """The same, for a `Replay`."""
        tape = Tape(
            self.query,
            "recorded",
            "",
            self.vocabulary_size,
            self.end_ids,
            self.codec_name,
            (0,) * self.prompt_tokens,
            (self.aware_tokens, self.prompt_tokens),
        )
        node = tape.root
        for position, token in enumerate(self.tokens):
            node.payload, node.scores = self.payloads[position], self.scores[position]
            node = child(node, token)
        return tape


def cases(folder: Path) -> tuple[Case, ...]:
    """The recorded cases in the order of their names. Raises `SpecError` when there are none.

    A recording has no note: `context` is empty, only its length is known.
    """
    found: dict[str, Case] = {}
    for path in sorted(folder.glob("*@*.npz")):
        name = path.stem.rpartition("@")[0]
        if name not in found:
            query = Recording.load(path).query
            found[name] = Case(name, query, "", query, kind="recorded")
    if not found:
        raise SpecError(
            str(folder),
            "there are no recorded answers in this folder",
            todo="Make some: python -m benchmarks.record_answers",
        )
    return tuple(found.values())


def file_of(cell: Cell) -> Path:
    """Where the cell's answer is."""
    return Path(cell.recorded) / f"{cell.case.id}@{method(cell.method, cell.gain).gain:.3g}.npz"


def _same_answer(rule: Method) -> bool:
    """Whether greedy answers of `rule` are those of softmax(L + gain D), as recorded. (A temper
    leaves the best token the best.)"""
    plain = Method("recorded", rule.gain, temper=rule.temper)
    return replace(rule, name="recorded") == plain


class RecordedReplay(Replay):
    """A replay of one recorded answer: it ends where that does, and goes no other way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokens: list[int] = []
        node = self.tape.root
        while node.children and node.payload is not None:
            token, node = next(iter(node.children.items()))
            self.tokens.append(token)

    def request(self, max_tokens: int) -> Request:
        """What the device asks for."""
        return super().request(min(max_tokens, len(self.tokens)))

    def device(self) -> ReplayedDevice:
        """The device of one run."""
        return RecordedDevice(self)


class RecordedDevice(ReplayedDevice):
    """Where two tokens all but tie, the recording's sum decides and not the order of ours."""

    def __init__(self, replay: RecordedReplay) -> None:
        super().__init__(replay)
        self._tokens = replay.tokens

    def choose(
        self,
        position: int,
        candidates: CandidateSet,
        scores: Scores | None,
        token: int | None = None,
    ) -> Decision:
        """The recorded token."""
        decision = super().choose(position, candidates, scores, token)
        if token is None and position < len(self._tokens):
            wanted = self._tokens[position]
            if decision.token != wanted:
                return super().choose(position, candidates, scores, wanted)
        return decision


@dataclass(slots=True)
class RecordedPair:
    """`scenarios.models.opened.Models` over recorded answers: no model is loaded."""

    _tapes: dict[Path, Tape] = field(default_factory=dict)

    def replay(self, cell: Cell) -> Replay:
        """The cell's answer. Raises `UsageError` for a rule, a codec or a temperature other than
        the recording's."""
        rule = method(cell.method, cell.gain)
        if not _same_answer(rule):
            raise UsageError(
                "recorded answers",
                "they were written by softmax(L + gain D), and this rule is another",
                got=cell.method,
                allowed="light, costeer, tempered, with a gain that was recorded",
            )
        path = file_of(cell)
        if path not in self._tapes:
            self._tapes[path] = Recording.load(path).tape()
        tape = self._tapes[path]
        if cell.codec != tape.codec or cell.temperature:
            raise UsageError(
                "recorded answers",
                "they hold one codec and are greedy",
                got=f"{cell.codec}, temperature {cell.temperature:g}",
                allowed=f"{tape.codec}, temperature 0",
            )
        return RecordedReplay(tape, rule, GREEDY)

    def decode(self, cell: Cell) -> Callable[..., str]:
        """Ids to text, if there is a tokenizer beside the answers; else the ids themselves."""
        return _decoder(Path(cell.recorded) / "tokenizer.json")

    def weights_mb(self, cell: Cell) -> float:
        """What the study says. Raises `UsageError` when it does not."""
        if cell.weights_mb is None:
            raise UsageError(
                "device.weights_mb",
                "recorded answers do not say how large the small model is",
                todo="Set it: what one step reads, in 10^6 bytes (0.5 billion INT8 weights: 494)",
            )
        return cell.weights_mb


@lru_cache(maxsize=4)
def _decoder(path: Path) -> Callable[..., str]:
    if not path.is_file():
        return lambda ids: "".join(f" {token}" for token in ids)
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(path))

    def decode(ids: Iterable[int]) -> str:
        text: str = tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    return decode
