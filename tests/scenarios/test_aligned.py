"""Likelihoods through another tokenizer: tables by token, positions by byte; notes apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from typer.testing import CliRunner

from cloud_sim.live.llm import TransformersModel
from cloud_sim.live.load import load
from cloud_sim.live.ragged import ATTENTION
from cloud_sim.session import session
from edge_runtime.alignment import END
from edge_runtime.assembly import Stranger, device_for
from edge_runtime.budget import Budget
from edge_runtime.bundle import Bundle
from edge_runtime.candidates import codec
from edge_runtime.connections.direct import run_direct
from edge_runtime.device import CloudOnlyDevice
from edge_runtime.errors import UsageError
from edge_runtime.rules import PRESETS
from edge_runtime.schedules.exchange import Request
from edge_runtime.schedules.lockstep import lockstep
from edge_runtime.steering import log_softmax
from edge_runtime.text import Text
from scenarios.datasets import Case, read
from scenarios.evaluate import Plan, evaluate
from scenarios.methods import parse_all, score
from scenarios.models.aligned import by_bytes, mapped, rows_along
from scenarios.models.pair import Align, Lengths, Pair, along, open_pair
from scenarios.models.predictions import AGNOSTIC, AWARE, CLOUD, UPLOAD, Store
from tests.tiny import CHATML, SENTENCES, write_model

LENGTHS = Lengths(60, 10)


def write_stranger(folder: Path) -> Path:
    """A tiny model whose vocabulary is another: fewer merges, other ids."""
    write_model(folder, seed=23, vocab_size=330)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<unk>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["chat_template"] = CHATML
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    return write_model(root / "small", seed=7), write_stranger(root / "cloud")


def pair_of(folders: Sequence[Path], align: Align) -> Pair:
    return open_pair(f"float:{folders[0]}", str(folders[1]), cloud_dtype="float32", align=align)


@pytest.fixture(scope="module")
def case() -> Case:
    one = read("notes", limit=1)[0]
    return replace(one, query=one.query[:60], aware=f"{one.context}\n\n{one.query[:60]}")


def test_mapped_tables_are_the_small_models_on_shared_tokens(
    folders: tuple[Path, Path], case: Case
) -> None:
    pair = pair_of(folders, "map")
    tokens = pair.reference(case, LENGTHS)
    branches, own = pair.rows(case, 8)
    device = pair.translated(case, PRESETS["light"], branches)
    aware, agnostic = mapped(device, tokens, pair.cloud.vocabulary_size)
    to_ours = device.token_map.to_ours
    # The oracle: the small model by itself, behind the text so far in its own tokens.
    plain = TransformersModel(load(str(folders[0]), attention=ATTENTION))
    for at in (0, 4, len(tokens) - 1):
        text = pair.spoken.decode(tokens[:at])
        ids = pair.text.encode(text)
        [row] = along(plain, case.query, [*ids, 0])[-1:]
        shared = np.flatnonzero(to_ours >= 0)
        expected = log_softmax(row[to_ours[shared]].astype(np.float64))
        assert agnostic[at][shared] == pytest.approx(expected, abs=1e-3)
        others = np.setdiff1d(np.arange(len(to_ours)), shared)
        assert (aware[at][others] == agnostic[at][others]).all()
    for one in own:
        one.close()


def test_byte_positions_multiply_to_the_clouds_own_token_probabilities(
    folders: tuple[Path, Path], case: Case
) -> None:
    pair = pair_of(folders, "byte")
    tokens = pair.reference(case, LENGTHS)
    cloud, upload = (along(pair.cloud, m, tokens) for m in (case.query, case.aware))
    branches, own = pair.rows(case, 8)
    kept = by_bytes(pair.translated(case, PRESETS["light"], branches), tokens, cloud, upload)
    ends = set(pair.cloud.end_ids)
    spelt = pair.translated(case, PRESETS["light"], branches)
    speakable = [i for i, word in enumerate(spelt.words) if word is not None or i in ends]
    for row, table in ((CLOUD, cloud), (UPLOAD, upload)):
        # Special tokens that end nothing have no bytes: their mass is outside of the tree.
        among = log_softmax(table[:, speakable].astype(np.float64))
        at = [speakable.index(token) for token in tokens]
        assert kept.nll(row) == pytest.approx(-among[range(len(tokens)), at].sum(), rel=1e-3)
    assert END in kept.tokens
    assert kept.nll(AWARE) != kept.nll(AGNOSTIC)
    assert score(PRESETS["cloud-only"], kept).nll == pytest.approx(kept.nll(CLOUD), rel=1e-3)
    for one in own:
        one.close()


@pytest.mark.parametrize("align", ["map", "byte"])
def test_evaluate_takes_two_vocabularies(
    folders: tuple[Path, Path], case: Case, align: Align, tmp_path: Path
) -> None:
    pair = pair_of(folders, align)
    plan = Plan(parse_all("cloud-only,light,names,upload"), LENGTHS, generate=6)
    result = evaluate([case, replace(case, id="b", query="Why?")], pair, plan, Store(tmp_path))
    assert result.row("cloud-only")["gap_captured"]["value"] == pytest.approx(0, abs=1e-3)
    assert result.row("upload")["gap_captured"]["value"] == pytest.approx(1, abs=1e-3)
    assert result.row("light")["nll"] != result.row("cloud-only")["nll"]
    assert all(one.tokens for one in result.results["names"].answers)


def test_rows_along_are_before_each_token(folders: tuple[Path, Path], case: Case) -> None:
    pair = pair_of(folders, "map")
    branches, own = pair.rows(case, 8)
    device = pair.translated(case, PRESETS["light"], branches)
    assert len(list(rows_along(device, [5, 6, 7]))) == 3
    assert device.length == 2
    for one in own:
        one.close()


def test_notes_apart_are_added_with_their_weights(
    folders: tuple[Path, Path], case: Case, tmp_path: Path
) -> None:
    several = replace(case, notes=("Maria is allergic to peanuts.", "The river is near Porto."))
    source = f"float:{folders[0]}"

    def kept(weights: Sequence[float]) -> np.ndarray:
        pair = open_pair(
            source, str(folders[0]), cloud_dtype="float32", notes="apart", weights=weights
        )
        plan = Plan(parse_all("light"), Lengths(400, 10), generate=3)
        result = evaluate([several], pair, plan, Store(tmp_path))
        assert result.results["light"].answers[0].tokens
        return result.kept[0].logprobs[AWARE] - result.kept[0].logprobs[AGNOSTIC]

    one, two, both = kept([1, 0]), kept([0, 1]), kept([1, 1])
    inside = slice(0, 300)
    # Deltas add up to a constant over the vocabulary, which normalising takes out.
    difference = (both - one - two)[inside]
    assert np.ptp(difference) < 2e-3
    assert np.ptp((both - one)[inside]) > 0.01


def test_the_command_takes_the_flags(
    folders: tuple[Path, Path], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    import costeer

    result = CliRunner().invoke(
        costeer.app("evaluate"),
        ["evaluate", "notes", "--device", str(tiny_bundle.path), "--cloud-model", str(folders[1]),
         "--cloud-dtype", "float32", "--methods", "light", "--limit", "2", "--align", "map",
         "--reference-tokens", "6", "--note-tokens", "30", "--generate", "3", "--notes", "apart",
         "--weights", "1,0.5", "--cache", str(tmp_path), "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.strip().splitlines()[-1])["light"]["cases"] == 2
    refused = CliRunner().invoke(
        costeer.app("evaluate"),
        ["evaluate", "notes", "--device", str(tiny_bundle.path), "--cloud-model", str(folders[1]),
         "--cloud-dtype", "float32", "--limit", "1", "--weights", "1,x"],
    )  # fmt: skip
    assert isinstance(refused.exception, Exception)
    assert "not numbers" in str(refused.exception)


def test_generate_weighs_notes_and_speaks_to_a_stranger(
    folders: tuple[Path, Path], tiny_bundle: Bundle
) -> None:
    text, rule = Text.open(tiny_bundle), PRESETS["costeer"]
    cloud = TransformersModel(load(str(folders[1]), attention=ATTENTION))
    stranger = Stranger.open(folders[1] / "tokenizer.json", "map")
    assert stranger.text.fingerprint == cloud.vocabulary
    notes = ["Maria is allergic to peanuts.", "The river is near Porto."]

    def answer(weights: Sequence[float]) -> list[int]:
        device = device_for(
            tiny_bundle, text, "Where to?", "\n\n".join(notes), rule,
            max_tokens=8, notes=notes, weights=weights, stranger=stranger,
        )  # fmt: skip
        request = Request("Where to?", cloud.vocabulary, codec("full"), 8)
        return run_direct(lockstep(device, request), session(cloud)).tokens

    plain = run_direct(
        lockstep(CloudOnlyDevice(end_ids=cloud.end_ids),
                 Request("Where to?", cloud.vocabulary, codec("full"), 8)), session(cloud)
    ).tokens  # fmt: skip
    assert answer([0, 0]) == plain
    assert len({tuple(answer(w)) for w in ([0, 0], [3, 0], [0, 3])}) == 3
    with pytest.raises(UsageError, match="budget"):
        device_for(
            tiny_bundle, text, "Q?", "N.", rule, max_tokens=4, stranger=stranger,
            budget=Budget(memory_mb=500),
        )  # fmt: skip
