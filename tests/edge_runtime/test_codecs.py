"""Candidate codecs: what comes back, how many bytes it took, and refusals of torn payloads."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.candidates import TopK, best_ids, codec
from edge_runtime.compact import NUCLEUS_CAP, pack, unpack
from edge_runtime.errors import ConnectionFailed, UsageError
from edge_runtime.steering import log_softmax

NAMES = ["full", "full8", "topk:20", "topk:64", "packed:20", "packed:64", "nucleus:0.9"]


def prediction(seed: int, size: int = 5000, spread: float = 4.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return log_softmax(rng.normal(0, spread, size)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0, 9.0])
def test_what_comes_back_is_what_was_meant(name: str, spread: float) -> None:
    logprobs = prediction(1, spread=spread)
    one = codec(name)
    assert one.name == name
    back = one.decode(one.encode(logprobs))
    assert (np.diff(back.ids) > 0).all()
    floor = logprobs.max() - 31  # e^-31 of the best: what is below may be anything lower
    sent, got = np.maximum(logprobs[back.ids], floor), np.maximum(back.logprobs, floor)
    assert got == pytest.approx(sent, abs=0.07)
    assert back.full == name.startswith("full")
    assert back.best == int(np.argmax(logprobs))
    if not back.full:
        inside = np.exp(logprobs[back.ids].astype(float)).sum()
        assert back.left_out == pytest.approx(1 - inside, abs=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_packed_and_topk_keep_the_same_tokens(seed: int, k: int) -> None:
    logprobs = prediction(seed, 700)
    plain, packed = TopK(k).encode(logprobs), codec(f"packed:{k}").encode(logprobs)
    one, two = TopK(k).decode(plain), codec(f"packed:{k}").decode(packed)
    assert one.ids.tolist() == two.ids.tolist() == best_ids(logprobs, k).tolist()
    assert len(packed) < len(plain) + 14


@given(
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=60, unique=True),
    st.floats(0, 1, width=32),
)
def test_any_ids_survive_packing(ids: list[int], left_out: float) -> None:
    wanted = np.array(sorted(ids), np.int64)
    back = unpack(pack(wanted, np.linspace(-9, 0, len(ids)), left_out))
    assert back.ids.tolist() == wanted.tolist()
    assert back.left_out == left_out


def test_a_sure_prediction_costs_a_nucleus_few_bytes() -> None:
    one = codec("nucleus:0.99")
    sure, unsure = np.full(9000, -30.0), prediction(0, 9000, 0.5)
    sure[17] = 0.0
    few, many = one.encode(log_softmax(sure)), one.encode(unsure)
    assert len(one.decode(few).ids) == 1
    assert len(few) < 20
    assert len(one.decode(many).ids) == NUCLEUS_CAP


def test_bytes_a_token_of_a_large_vocabulary() -> None:
    logprobs = prediction(2, 151_936)
    size = {name: len(codec(name).encode(logprobs)) for name in NAMES}
    assert size["full"] == 303_872
    assert size["full8"] == 151_944
    assert size["topk:64"] == 388
    assert size["packed:64"] < 220


@given(st.binary(max_size=60), st.sampled_from(NAMES))
def test_torn_payloads_are_refused_or_read_never_a_crash(raw: bytes, name: str) -> None:
    with contextlib.suppress(ConnectionFailed):
        back = codec(name).decode(raw)
        assert len(back.ids) == len(back.logprobs)


@pytest.mark.parametrize(
    "name", ["fulll", "topk", "topk:0", "topk:-1", "packed:70000", "nucleus:1", "nucleus:x", ""]
)
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no such candidate codec"):
        codec(name)


@pytest.mark.parametrize("name", ["full", "full8", "topk:4", "packed:4"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_no_model_predicts_is_refused(name: str, value: float) -> None:
    """A cloud model that overflows: the answer would be nonsense, and nothing would say so."""
    payload = bytearray(codec(name).encode(np.log(np.full(8, 1 / 8, np.float32))))
    raw = np.float16(value).tobytes() if name in ("full", "topk:4") else np.float32(value).tobytes()
    at = {"full": 0, "full8": 0, "topk:4": 16, "packed:4": 0}[name]
    payload[at : at + len(raw)] = raw
    with pytest.raises(ConnectionFailed, match="no log-probabilities"):
        codec(name).decode(bytes(payload))


def test_a_number_of_thousands_of_digits_is_no_codec() -> None:
    with pytest.raises(UsageError, match="no such candidate codec"):
        codec("topk:" + "9" * 5000)
