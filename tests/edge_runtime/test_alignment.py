"""Two tokenizers: bytes, maps, byte-by-byte choice against brute force, and whole answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cloud_sim.model import ScoreRequest
from cloud_sim.session import session
from edge_runtime.alignment import (
    END,
    ByteTree,
    Opinion,
    TokenMap,
    choose_bytes,
    token_bytes,
)
from edge_runtime.branches import open_branches
from edge_runtime.bundle import Bundle
from edge_runtime.candidates import CandidateSet, codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.device import SteeredDevice
from edge_runtime.errors import UsageError
from edge_runtime.rules import PRESETS
from edge_runtime.sampling import GREEDY, Sampler
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.text import Text
from edge_runtime.translated import How, TranslatedDevice
from tests.fakes import FakeCloud

words = st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=30, unique=True)


def stranger() -> Tokenizer:
    """Another byte-level vocabulary: other merges, other ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["the other cloud thinks in other pieces of words, and of numbers like 2024", "東京 é"],
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


@pytest.mark.parametrize("text", ["Tell me, Maria: 12 + 30?", "naïve 東京 🙂\n\ttab", "  two  "])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tiny_bundle: Bundle, text: str) -> None:
    for tokenizer in (Text.open(tiny_bundle).tokenizer, stranger()):
        table = token_bytes(tokenizer)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert b"".join(table[i] or b"" for i in ids) == text.encode()
        assert table[0] is None, "special tokens have no bytes"


def test_sentencepiece_tokens_are_read_as_bytes_too() -> None:
    tokenizer = Tokenizer(models.BPE({"▁the": 0, "<0x0A>": 1, "▁": 2, "é": 3}, []))
    assert token_bytes(tokenizer) == [b" the", b"\n", b" ", "é".encode()]


def test_a_vocabulary_maps_onto_itself_and_another_onto_what_they_share() -> None:
    ours = [b"a", b"b", b"ab", None, b"c"]
    same = TokenMap.between(ours, ours, ((3,), (3,)))
    assert same.to_ours.tolist() == [0, 1, 2, 3, 4]
    other = TokenMap.between(ours, [b"ab", b"zz", None, b"c", None], ((3,), (2,)))
    assert other.to_ours.tolist() == [2, -1, 3, 4, -1]
    assert other.shared == 3


@given(words, st.binary(max_size=3))
def test_the_tree_splits_a_prefix_as_brute_force_does(tokens: list[bytes], prefix: bytes) -> None:
    tree = ByteTree(tokens)
    chances = np.arange(1, len(tokens) + 1, dtype=float)
    mass = Opinion(tree, tree.masses(chances)).next(prefix)
    expected = np.zeros(257)
    for chance, word in zip(chances, tokens, strict=True):
        if word.startswith(prefix):
            expected[word[len(prefix)] if len(word) > len(prefix) else END] += chance
    assert mass == pytest.approx(expected)


def best(
    symbols: np.ndarray, cloud: np.ndarray, aware: np.ndarray, agnostic: np.ndarray
) -> tuple[int, float]:
    scores = cloud + 0.7 * (aware - agnostic)
    scores = scores - np.logaddexp.reduce(scores)
    return int(np.argmax(scores)), float(scores.max())


@given(words, st.integers(0, 2**31))
def test_byte_choice_is_the_walk_that_it_says_it_is(tokens: list[bytes], seed: int) -> None:
    rng = np.random.default_rng(seed)
    cloud, aware, agnostic = np.log(rng.dirichlet(np.ones(len(tokens)), 3))
    tree = ByteTree(tokens)
    chosen, logprob = choose_bytes(
        tokens, cloud, Opinion.of(tree, aware), Opinion.of(tree, agnostic), best
    )
    prefix = b""
    while True:
        left = [i for i, word in enumerate(tokens) if word.startswith(prefix)]
        if len(left) == 1:
            assert left == [chosen]
            break
        mass: dict[int, np.ndarray] = {}
        for i in left:
            symbol = tokens[i][len(prefix)] if len(tokens[i]) > len(prefix) else END
            part = np.exp([cloud[i], aware[i], agnostic[i]])
            mass[symbol] = mass.get(symbol, np.zeros(3)) + part
        score = {
            s: np.log(m[0]) + 0.7 * np.log(max(m[1], 1e-9) / max(m[2], 1e-9))
            for s, m in mass.items()
        }
        symbol = max(score, key=lambda s: score[s])
        if symbol == END:
            assert tokens[chosen] == prefix
            break
        prefix += bytes([symbol])
    assert logprob <= 1e-9


def answer(device: SteeredDevice | TranslatedDevice, cloud: FakeCloud, tokens: int) -> list[int]:
    request = Request("Where to?", "", codec("full"), tokens)
    transcript = run_direct(lockstep(device, request), session(cloud))
    return [record.token for record in transcript.records]


@pytest.mark.parametrize("name", ["light", "costeer", "blend"])
def test_with_one_vocabulary_map_changes_nothing(tiny_bundle: Bundle, name: str) -> None:
    text, rule = Text.open(tiny_bundle), PRESETS[name]
    size = tiny_bundle.manifest.architecture.vocabulary_size
    ends = tiny_bundle.manifest.tokens.end_ids
    cloud = FakeCloud(size, spread=1.0)
    # Tokens that are spelt otherwise when read again would be another answer: bytes alone.
    plain = {i for i, raw in enumerate(token_bytes(text.tokenizer)) if raw is not None}
    prompts = text.prompts("Where to?", "Maria lives in Porto.")
    branches = open_branches(tiny_bundle, max_length=120)
    direct = SteeredDevice(branches, prompts, rule, GREEDY, ends)
    first = answer(direct, cloud, 1)
    mapped = TranslatedDevice(
        open_branches(tiny_bundle, max_length=120), prompts, text, text, rule, GREEDY,
        our_ends=ends, end_ids=ends,
    )  # fmt: skip
    assert mapped.shared >= len(plain)
    mapped.prefill()
    direct.prefill()
    logprobs = cloud.score([_first(cloud)])[0][-1]
    logprobs[[i for i in range(size) if i not in plain]] = -40.0
    candidates = CandidateSet(np.arange(size), logprobs.astype(np.float32), full=True)
    one = direct.choose(0, candidates, direct.head(candidates))
    two = mapped.choose(0, candidates, mapped.head(candidates))
    assert two.token == one.token
    assert two.policy_logprob == pytest.approx(one.policy_logprob, abs=1e-3)
    assert first


def _first(cloud: FakeCloud) -> ScoreRequest:
    return ScoreRequest(cloud, cloud.open(), 0, tuple(cloud.prompt("Where to?")))


@pytest.mark.parametrize("how", ["map", "byte"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_strange_cloud_is_steered_without_stopping(
    tiny_bundle: Bundle, how: How, temperature: float
) -> None:
    text, theirs = Text.open(tiny_bundle), Text(stranger())
    size = theirs.tokenizer.get_vocab_size()
    cloud = FakeCloud(size, spread=2.0)
    cloud.end_ids = (1,)

    def device(note: str, seed: int = 3) -> TranslatedDevice:
        return TranslatedDevice(
            open_branches(tiny_bundle, max_length=200),
            text.prompts("Where to?", note), text, theirs, PRESETS["costeer"],
            Sampler(temperature, seed=seed), our_ends=tiny_bundle.manifest.tokens.end_ids,
            end_ids=(1,), how=how,
        )  # fmt: skip

    one = device("Maria lives in Porto.")
    tokens = answer(one, cloud, 24)
    assert len(tokens) == 24 or tokens[-1] == 1
    table = token_bytes(theirs.tokenizer)
    read = b"".join(table[t] or b"" for t in tokens[: one.length])
    assert one.branches.length == len(text.encode(read.decode("utf-8", errors="ignore")))
    assert answer(device("Maria lives in Porto."), cloud, 24) == tokens
    assert answer(device("The phone knows the rest."), cloud, 24) != tokens, "the note counts"


def test_rolling_back_reads_the_shorter_text(tiny_bundle: Bundle) -> None:
    text, theirs = Text.open(tiny_bundle), Text(stranger())
    device = TranslatedDevice(
        open_branches(tiny_bundle, max_length=200), text.prompts("Q?", "Note."), text, theirs,
        PRESETS["light"], our_ends=tiny_bundle.manifest.tokens.end_ids, end_ids=(1,),
    )  # fmt: skip
    device.prefill()
    ids: Sequence[int] = theirs.encode("the other cloud 東京")
    device.extend(ids[:3])
    before = np.array(device.head(CandidateSet(np.arange(4), np.zeros(4, np.float32))))
    device.extend(ids[3:])
    device.rollback(3)
    after = device.head(CandidateSet(np.arange(4), np.zeros(4, np.float32)))
    assert after == pytest.approx(before, abs=1e-3)
    with pytest.raises(UsageError, match="cannot draft"):
        device.alone(3)
