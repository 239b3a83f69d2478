"""The cost benchmark: its figures add up, and what is paid back is what was paid."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zcontext.caches import n_bytes
from zcontext.evaluation import timing
from zcontext.model import ZLanguageModel
from zcontext.tokenization import text_tokenizer

TEXT = "The river rises in the north, and was first mapped in 1832. " * 4
SECONDS = st.floats(0.01, 100)


@pytest.fixture(scope="module")
def costs() -> ModuleType:
    return timing


@pytest.fixture(scope="module")
def row(costs: ModuleType, tiny_model: ZLanguageModel) -> dict:
    return costs.time_length(tiny_model, TEXT, ratios=(2, 4), repeats=2, n_output=3)


def test_a_row_counts_what_was_read(row: dict, tiny_model: ZLanguageModel) -> None:
    n = text_tokenizer(tiny_model.tokenizer).count(TEXT)
    frame = row["raw"]["n_positions"] - n
    assert row["n_tokens"] == n
    for span in row["spans"]:
        assert span["n_symbols"] == round(n / span["ratio"])
        for name in ("cold", "stored", "cached"):
            assert span[name]["n_positions"] == span["n_symbols"] + frame
            # fp32 here, so twice the 16 bits that the model states.
            expected = 2 * tiny_model.kv_bytes_per_position * span[name]["n_positions"]
            assert span[name]["kv_bytes"] == expected


def test_ratios_are_those_of_the_times(row: dict) -> None:
    for span in row["spans"]:
        assert span["compress_over_prefill"] == pytest.approx(
            span["compress_tokens_per_second"] / row["prefill_tokens_per_second"]
        )
        assert span["total_speedup"] == pytest.approx(
            row["raw"]["total_seconds"] / span["stored"]["total_seconds"]
        )
        assert span["cold"]["first_token_seconds"] > span["compress_seconds"] / 2
        for of in (row["raw"], row["raw_cached"], span["cold"], span["stored"], span["cached"]):
            assert 0 < of["first_token_seconds"] < of["total_seconds"]


def test_a_kept_prefix_ends_where_the_question_starts(
    costs: ModuleType, tiny_model: ZLanguageModel
) -> None:
    one = costs.Reading(tiny_model, (TEXT,))
    n = text_tokenizer(tiny_model.tokenizer).count(TEXT)
    head = len("user\nContext:\n") + 1
    assert one.n_prefix == head + n
    _, past = one.answer(2)
    assert past.get_seq_length() == one.n_prefix
    assert n_bytes(past) == 2 * tiny_model.kv_bytes_per_position * one.n_prefix


def test_a_plain_prefill_is_the_base_s(costs: ModuleType, tiny_model: ZLanguageModel) -> None:
    ids = torch.tensor([text_tokenizer(tiny_model.tokenizer).ids(TEXT)])
    cache = costs.prefill(tiny_model, tiny_model.embed_tokens(ids)[0], role=None)
    with tiny_model.using(None), torch.no_grad():
        plain = tiny_model.base.model(ids, use_cache=True).past_key_values
    torch.testing.assert_close(cache.layers[-1].values, plain.layers[-1].values)


@given(cost=SECONDS, raw=SECONDS, spans=SECONDS)
def test_compression_has_paid_for_itself_at_the_break_even(
    costs: ModuleType, cost: float, raw: float, spans: float
) -> None:
    n = costs.break_even(cost, raw - spans)
    if n is None:
        assert spans >= raw
        return
    assert cost + n * spans <= n * raw * (1 + 1e-9) + 1e-9
    assert n == 1 or cost + (n - 1) * spans >= (n - 1) * raw * (1 - 1e-9) - 1e-9


@given(compress=SECONDS, stored=SECONDS, cached=SECONDS, raw=SECONDS, raw_cached=SECONDS)
def test_so_it_has_where_prefixes_are_kept(
    costs: ModuleType,
    compress: float,
    stored: float,
    cached: float,
    raw: float,
    raw_cached: float,
) -> None:
    def ours(n: int) -> float:
        return compress + stored + (n - 1) * cached

    def theirs(n: int) -> float:
        return raw + (n - 1) * raw_cached

    n = costs.break_even_cached(compress, stored, cached, raw, raw_cached)
    if n is None:
        assert ours(1) > theirs(1)
        assert cached >= raw_cached
        return
    assert ours(n) <= theirs(n) * (1 + 1e-9) + 1e-9
    assert n == 1 or ours(n - 1) >= theirs(n - 1) * (1 - 1e-9) - 1e-9
