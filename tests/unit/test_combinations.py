"""Question, literals, exactness, floors and profiles at once: each promise beside the others."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_exactness import repeater

from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.documents import ZDocument
from zcontext.errors import ConfigError
from zcontext.fidelity import measure_fidelity, overall_fidelity, readable_parts
from zcontext.fragile import protected_places
from zcontext.integrations.exchange import ACTION, REASON, Chunk, Exchange, ExchangeSettings
from zcontext.integrations.items import n_positions_of
from zcontext.model import ZLanguageModel
from zcontext.profiles import PROFILES, profile
from zcontext.readers import Inferencer, ZDecompressor
from zcontext.spans import Part
from zcontext.symbols import Symbols
from zcontext.testing import ByteCodec

TEXT = (
    "aaaaaaaa No 1333333 bbbbb.\n\n| a | b |\n|---|---|\n| 1 | x |\n\n"
    "eeeee!!!! \u6e2f Anna aaaaaaaaaa 42."
)
ASKED = "Who is No 42?"
KINDS = (("tables",), ("numbers", "names"), ("re:a{4}", "tables"))


@pytest.fixture(scope="module")
def model() -> ZLanguageModel:
    return repeater()


def mixed(parts: tuple[Part, ...]) -> tuple[str, int]:
    """The text among some parts, and how many symbols stand beside it."""
    texts = "".join(part for part in parts if isinstance(part, str))
    return texts, sum(len(part) for part in parts if isinstance(part, Symbols))


options = st.fixed_dictionaries(
    {
        "profile": st.sampled_from(["legal", "default", "summary"]),
        "purpose": st.sampled_from([{}, {"question": ASKED}, {"emphasis": "end"}]),
        "protect": st.just(()) | st.sampled_from(KINDS),
        "exact": st.booleans(),
        "min_fidelity": st.none() | st.sampled_from([0.0, 0.3, 0.98]),
        "on_low_fidelity": st.sampled_from(["keep", "raw", "finer"]),
        "memory": st.sampled_from([0, 3]),
        "placement": st.sampled_from(["surprisal", "anchored"]),
        "budget": st.sampled_from([{}, {"ratio": 3.0}, {"bits_per_symbol": 30.0}]),
    }
)


def chosen_of(given_: dict[str, Any]) -> CompressSettings:
    table = dict(given_)
    base = profile(table.pop("profile")).replace(**table.pop("budget"), **table.pop("purpose"))
    return dataclasses.replace(base, window=32, context=0, **table)


@settings(max_examples=24, deadline=None, suppress_health_check=list(HealthCheck))
@given(options)
def test_every_promise_holds_beside_the_others(
    model: ZLanguageModel, given_: dict[str, Any]
) -> None:
    chosen = chosen_of(given_)
    document = ZCompressor(model).compress(TEXT, settings=chosen)
    # What is protected stands between the symbols, as it was.
    kept = "".join(TEXT[b:e] for b, e in protected_places(TEXT, chosen.protect))
    assert mixed(document.parts) == (kept, document.n_symbols)
    # Every span is measured, or none, and the measure is the one taken afterwards.
    assert all((span.fidelity is not None) == chosen.measures for span in document.spans)
    assert document.exact == chosen.exact
    if chosen.measures:
        assert overall_fidelity(document) == overall_fidelity(
            measure_fidelity(model, document, TEXT)
        )
        _check_floor(document, chosen)
    # Exact means exact, from the stored form too, and at another batch size.
    stored = ZDocument.from_compact(document.to_compact())
    assert stored == document
    if chosen.exact:
        assert ZDecompressor(model, batch_size=2).decompress(stored) == TEXT
    # The same bytes again, among others and in passes of its own.
    again = ZCompressor(model).compress_many(["bb", TEXT], settings=chosen)[1]
    assert again.to_bytes() == document.to_bytes()


def _check_floor(document: ZDocument, chosen: CompressSettings) -> None:
    low = [s for s in document.spans if s.fidelity and s.fidelity.token_accuracy < chosen.floor]
    if chosen.on_low_fidelity == "finer":
        assert all(len(s.symbols) == len(s.tokens) - s.n_literal_tokens for s in low)
    parts = readable_parts(document, TEXT, floor=chosen.floor)
    raw = {span.chars.start for span in low}
    expected = ""
    for span in document.spans:
        whole = TEXT[span.chars.start : span.chars.end]
        literals = "".join(each.text for each in span.literals)
        expected += whole if span.chars.start in raw else literals
    n_symbols = sum(len(s.symbols) for s in document.spans if s.chars.start not in raw)
    assert mixed(parts) == (expected, n_symbols)


def test_literals_stay_where_other_spans_are_handed_over_as_text(model: ZLanguageModel) -> None:
    """What was missing once: parts for readers knew symbols and raw spans, and no literals."""
    chosen = CompressSettings(window=32, ratio=3, min_fidelity=0.0, protect=("tables", "numbers"))
    document = ZCompressor(model).compress(TEXT, settings=chosen)
    parts = readable_parts(document, TEXT, floor=0.0)
    assert parts == document.parts
    assert "| 1 | x |" in mixed(parts)[0]
    assert Inferencer(model).count(parts) == document.n_positions + Inferencer(model).count([""])


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_profile_works_with_a_question_and_literals(model: ZLanguageModel, name: Any) -> None:
    context = min(profile(name).context, 16)
    chosen = profile(name).replace(question=ASKED, protect=("numbers",), window=64, context=context)
    document = ZCompressor(model).compress(TEXT, settings=chosen)
    assert document.exact == (name == "legal")
    if document.exact:
        assert ZDecompressor(model).decompress(document) == TEXT


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_question_and_literals_leave_exactness_to_any_reader(
    model: ZLanguageModel, n_threads: int
) -> None:
    chosen = CompressSettings(
        window=32, memory=3, exact=True, question=ASKED, protect=("tables", "names")
    )
    document = ZCompressor(model, batch_size=2).compress(TEXT, settings=chosen)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        for batch_size in (1, 3):
            assert ZDecompressor(model, batch_size=batch_size).decompress(document) == TEXT
    finally:
        torch.set_num_threads(before)


# -- behind the doors -------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PROFILES))
@pytest.mark.parametrize("output", ["symbols", "text"])
@pytest.mark.parametrize("protect", [(), ("numbers",)])
@pytest.mark.parametrize("cap", [60, 150, 1000])
def test_a_budget_of_positions_holds_under_every_profile(
    name: Any, output: Any, protect: tuple[str, ...], cap: int
) -> None:
    """Under a cap, "finer" has no room and does as "raw"; the cap holds."""
    from zcontext.integrations.pruned import PrunedExchange

    codec = ByteCodec()
    given_ = ExchangeSettings(
        compress=profile(name), output=output, protect=protect, max_tokens=cap, min_tokens=8
    )
    chunks = [Chunk(f"{n}: {TEXT}", {}, f"chunk {n}", score=1 - n / 9) for n in range(4)]
    if output == "text":
        found = PrunedExchange(codec.vocabulary, pruner=lambda: codec, settings=given_).swap(chunks)
    else:
        exchange = Exchange(
            codec.vocabulary, compressor=lambda: codec, settings=given_, question=ASKED
        )
        found = exchange.swap(chunks)
    assert len(found) == len(chunks)
    spent = sum(
        n_positions_of(codec.vocabulary, each.text, count=codec.count_tokens) for each in found
    )
    assert spent <= cap
    assert cap < 1000 or all(each.record[ACTION] == "raw" for each in found)


def test_a_floor_hands_over_text_behind_a_door_with_literals_and_a_question(
    model: ZLanguageModel,
) -> None:
    chosen = CompressSettings(
        window=32, min_fidelity=1.0, on_low_fidelity="raw", protect=("tables",), exact=True
    )
    given_ = ExchangeSettings(compress=chosen, ratio=3.0, min_tokens=8, query_aware=True)
    exchange = Exchange(
        model.vocabulary, compressor=lambda: ZCompressor(model), settings=given_, question=ASKED
    )
    (found,) = exchange.swap([Chunk(TEXT, {}, "x")])
    assert (found.text, found.record[ACTION], found.record[REASON]) == (TEXT, "raw", "low accuracy")


@pytest.mark.parametrize("option", [{"min_fidelity": 1.5}, {"on_low_fidelity": "some"}])
def test_what_no_profile_may_become_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        profile("legal").replace(**option)
    with pytest.raises(ConfigError, match="finer"):
        profile("legal").replace(max_symbols=9)
