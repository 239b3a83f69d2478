"""Units never mix, tiktoken is exact or an error, and the ledger adds up."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcontext import accounting
from zcontext.accounting import Count, KVShape, Ledger, Saving, TiktokenCounter, Unit, count_bytes
from zcontext.errors import ConfigError, MissingDependencyError, VocabularyError
from zcontext.testing import ByteCodec

UNITS: tuple[Unit, ...] = get_args(Unit)
COUNTS = st.builds(Count, st.integers(0, 10**12), st.sampled_from(UNITS))


@pytest.fixture
def no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any copy of the encodings' tables."""
    monkeypatch.setattr(accounting, "_loaded", {})
    monkeypatch.setattr(accounting, "_folders", lambda: iter(()))
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)


@given(COUNTS, COUNTS)
def test_counts_of_one_unit_add_and_of_two_units_never_do(a: Count, b: Count) -> None:
    if a.unit == b.unit:
        assert (a + b).n == a.n + b.n
        assert (a < b, a <= b, a > b, a >= b) == (a.n < b.n, a.n <= b.n, a.n > b.n, a.n >= b.n)
        return
    for mix in (Count.__add__, Count.__lt__, Count.__le__, Count.__gt__, Count.__ge__, Saving):
        with pytest.raises(ConfigError, match="different things") as refused:
            mix(a, b)
        assert refused.value.field == "unit"


def test_equal_numbers_of_two_units_are_not_equal() -> None:
    for a, b in itertools.combinations(UNITS, 2):
        assert Count(5, a) != Count(5, b)


@pytest.mark.parametrize(("n", "unit"), [(-1, "symbols"), (1.0, "symbols"), (1, "tokens")])
def test_a_count_of_nothing_known_is_refused(n: int, unit: Unit) -> None:
    with pytest.raises(ConfigError):
        Count(n, unit)


def test_bytes_are_those_of_utf8() -> None:
    assert count_bytes("aé漢🙂\0") == Count(1 + 2 + 3 + 4 + 1, "utf8_bytes")
    assert str(count_bytes("a" * 1200)) == "1,200 utf8_bytes"
    with pytest.raises(VocabularyError, match="surrogate"):
        count_bytes("\udc80")


def test_kv_bytes_are_keys_and_values_of_all_layers() -> None:
    shape = KVShape(n_layers=30, n_kv_heads=3, head_dim=64, bytes_per_value=2)
    assert shape.bytes_per_position == 2 * 30 * 3 * 64 * 2
    assert shape.kv_bytes(10) == Count(10 * shape.bytes_per_position, "kv_bytes")
    with pytest.raises(ConfigError, match="n_layers"):
        KVShape(n_layers=0, n_kv_heads=1, head_dim=1)


@pytest.mark.parametrize(("encoding", "expected"), [("cl100k_base", 4), ("o200k_base", 4)])
def test_tiktoken_counts_offline_and_puts_the_environment_back(
    encoding: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting, "_loaded", {})
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    before = dict(os.environ)
    counted = TiktokenCounter(encoding).count("Hello, world!")  # type: ignore[arg-type]
    assert (counted.n, counted.unit) == (expected, encoding)
    assert dict(os.environ) == before


def test_special_tokens_in_text_count_as_text() -> None:
    assert TiktokenCounter().count("<|endoftext|>").n > 1
    assert TiktokenCounter().count("").n == 0
    with pytest.raises(VocabularyError):
        TiktokenCounter().count("\ud800")


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(ConfigError, match="o200k_base"):
        TiktokenCounter("gpt2")  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_tables")
def test_a_missing_table_is_an_error_with_remedies_and_no_estimate() -> None:
    before = dict(os.environ)
    with pytest.raises(MissingDependencyError) as refused:
        TiktokenCounter().count("text")
    message = str(refused.value)
    assert all(word in message for word in ("llama-index-core", "TIKTOKEN_CACHE_DIR", "estimate"))
    assert dict(os.environ) == before


@pytest.mark.usefixtures("no_tables")
def test_a_users_own_cache_folder_is_respected_even_when_it_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tiktoken

    seen: list[str | None] = []

    def refuse(name: str) -> None:
        seen.append(os.environ.get("TIKTOKEN_CACHE_DIR"))
        raise OSError(f"no network for {name}")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(MissingDependencyError, match="no network for cl100k_base"):
        TiktokenCounter().count("text")
    assert seen == [str(tmp_path)]
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(tmp_path)


@pytest.mark.usefixtures("no_tables")
def test_the_environment_comes_back_after_a_failed_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tiktoken

    def refuse(name: str) -> None:
        raise ValueError(f"altered table of {name}")

    table = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    (tmp_path / table).write_bytes(b"")
    monkeypatch.setattr(accounting, "_folders", lambda: iter([tmp_path]))
    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(MissingDependencyError, match="altered table"):
        TiktokenCounter().count("text")
    assert "TIKTOKEN_CACHE_DIR" not in os.environ


def test_without_tiktoken_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "tiktoken.py").write_text("raise ImportError('not here')")
    code = (
        "from zcontext import TiktokenCounter, MissingDependencyError\n"
        "try:\n    TiktokenCounter().count('x')\n"
        "except MissingDependencyError as error:\n    print(error)\n"
    )
    source = str(Path(accounting.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), source])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "pip install tiktoken" in done.stdout


def test_a_saving_counts_what_was_saved_even_when_it_is_a_loss() -> None:
    saving = Saving(Count(100, "positions"), Count(25, "positions"))
    assert (saving.saved, saving.ratio, saving.unit) == (75, 4.0, "positions")
    assert Saving(Count(1, "symbols"), Count(3, "symbols")).saved == -2
    assert Saving(Count(0, "symbols"), Count(0, "symbols")).ratio == 1.0
    assert Saving(Count(1, "symbols"), Count(0, "symbols")).ratio == float("inf")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=6))
def test_the_ledger_sums_documents_unit_by_unit(texts: list[str]) -> None:
    codec = ByteCodec()
    ledger = Ledger(kv_bytes_per_position=100)
    documents = [codec.compress(codec.vocabulary.guard(t, on_symbols="drop")) for t in texts]
    for document in documents:
        ledger.add(document)
    assert ledger.n_documents == len(documents)
    if not documents:
        assert str(ledger) == "nothing booked"
        return
    savings = ledger.savings
    assert set(savings) == {"positions", "stored_bytes", "kv_bytes"}
    assert savings["positions"].before.n == sum(d.n_tokens for d in documents)
    assert savings["positions"].after.n == sum(d.n_symbols for d in documents)
    assert savings["stored_bytes"].before.n == sum(d.n_bytes for d in documents)
    assert savings["kv_bytes"].saved == 100 * savings["positions"].saved


def test_the_ledger_books_texts_under_any_counter_and_refuses_mixed_units() -> None:
    ledger = Ledger()
    ledger.add_text("a long text", "short", count=count_bytes)
    ledger.add_text("a long text", "short", count=TiktokenCounter().count)
    assert set(ledger.savings) == {"utf8_bytes", "cl100k_base"}
    assert "utf8_bytes: 11 -> 5 (2.20x)" in str(ledger)
    with pytest.raises(ConfigError):
        ledger.record(before=Count(1, "base_tokens"), after=Count(1, "symbols"))
    assert set(ledger.savings) == {"utf8_bytes", "cl100k_base"}


def test_a_ledger_shared_by_threads_loses_nothing() -> None:
    ledger = Ledger()
    document = ByteCodec().compress("some text")

    def book() -> None:
        for _ in range(200):
            ledger.add(document)

    threads = [threading.Thread(target=book) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.n_documents == 800
    assert ledger.savings["positions"].before.n == 800 * document.n_tokens
