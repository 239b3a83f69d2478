"""Protected text: found by form, kept between symbols, counted, stored, and never lost."""

from __future__ import annotations

import dataclasses
import json
import time
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcontext.accounting import Ledger
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.documents import ZDocument
from zcontext.emphasis import share_slots
from zcontext.errors import ConfigError, CorruptSpanError, SpanError
from zcontext.fidelity import measure_fidelity, overall_fidelity
from zcontext.fragile import KINDS, merged, protected_places
from zcontext.literals import lay_windows, symbols_beside
from zcontext.readers import Inferencer, ZDecompressor
from zcontext.spans import Fidelity, LiteralText, ZSpan, written_parts
from zcontext.symbols import Symbols
from zcontext.testing import ByteCodec
from zcontext.windows import Extent, WindowPlan

TEXT = (
    "Intro about rivers in 1993 and Anna.\n\n| a | b |\n|---|---|\n| 1 | x |\n\nThen more prose "
    'follows, with 42 things and {"k": [1, "v"]} at the end. See https://x.no/a?b=1 now.'
)
ALL = ("tables", "json", "numbers", "names", "urls")
CHOSEN = CompressSettings(window=48, memory=4, exact=True)


def texts_of(text: str, *protect: str) -> list[str]:
    return [text[begin:end] for begin, end in protected_places(text, protect)]


# -- finding it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("tables", "a | b\n--|--\n1 | 2\nend\n", ["a | b\n--|--\n1 | 2\n"]),
        ("tables", "no | table\nno | dashes\n", []),
        ("tables", "---\n| x |\n", []),
        ("code", "see\n```py\na = 1\n```\nend `f(x)` .", ["```py\na = 1\n```\n", " `f(x)`"]),
        ("code", "~~~\nnever closed", ["~~~\nnever closed"]),
        ("json", 'so {"a": [1, {"b": null}]} it is', [' {"a": [1, {"b": null}]}']),
        ("json", "cite [12], set {a}, pair [1, 2]", []),
        ("json", '[[1, 2], ["x"]] and {"a": {"b": 1} broken', ['[[1, 2], ["x"]]', ' {"b": 1}']),
        ("json", r'["a\"]", "]"]', [r'["a\"]", "]"]']),
        ("numbers", "In 1993 it was 3.5% of 1,200.", [" 1993", " 3.5%", " 1,200"]),
        ("names", "He saw Anna Karenina. She left.", [" Anna Karenina"]),
        ("urls", "at https://x.no/a?b=1, or a@b.de", [" https://x.no/a?b=1,", " a@b.de"]),
        ("re:ART-[0-9]+", "as ART-12 and ART-x", [" ART-12"]),
    ],
)
def test_what_is_protected(kind: str, text: str, found: list[str]) -> None:
    assert texts_of(text, kind) == found


@settings(deadline=None)
@given(st.text(st.sampled_from('{}[]",:|`-~ \n1aA.@/\\"'), max_size=60))
def test_json_found_is_json_and_places_never_touch(text: str) -> None:
    for begin, end in protected_places(text, ("json",)):
        json.loads(text[begin:end])
    places = protected_places(text, KINDS)
    assert all(a[1] < b[0] for a, b in pairwise(places))
    assert merged(places) == places


HARD = ("[", '["', '{"a":', "`", "a|\n", "[1,", "~~~\n", "1", "1.", "A", "a.", "a@", "a@a.", "a'")


@pytest.mark.parametrize("kind", KINDS)
def test_finding_ends_on_long_hard_text(kind: str) -> None:
    started = time.process_time()
    for piece in HARD:
        protected_places(piece * 100_000, (kind,))
    assert time.process_time() - started < 60  # 1.3 alone on one core; quadratic takes minutes


@pytest.mark.parametrize("protect", ["tables", ("table",), ("re:[",), (7,), ["json"]])
def test_what_names_nothing_is_refused(protect: object) -> None:
    with pytest.raises(ConfigError, match="give a tuple of numbers, names"):
        CompressSettings(protect=protect)  # type: ignore[arg-type]


# -- windows and budgets ----------------------------------------------------------------------

runs = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=6)


@settings(deadline=None)
@given(runs, st.integers(0, 40), st.integers(24, 64))
def test_w_windows_cover_the_document_once_and_cut_no_literal(
    shape: list[tuple[int, int]], rest: int, window: int
) -> None:
    literals, at = [], 0
    for gap, length in shape:
        literals.append(Extent(at + gap + 1, at + gap + 1 + length))
        at = literals[-1].end
    n = at + rest
    blocks = [each for each in literals if len(each) > 6]
    inline = [each for each in literals if len(each) <= 6]
    laid = lay_windows(WindowPlan(window=window), n, blocks=blocks, inline=inline)
    places = [
        token for each in laid for token in range(each.window.target.start, each.window.target.end)
    ]
    assert places == list(range(n))
    assert [each.window.index for each in laid] == list(range(len(laid)))
    kept = [
        range(each.window.target.start + literal.start, each.window.target.start + literal.end)
        for each in laid
        for literal in each.literals
    ]
    assert [token for run in kept for token in run] == [
        t for e in literals for t in range(e.start, e.end)
    ]
    assert all(not each.n_free or len(each.window.target) <= window for each in laid)


@given(st.integers(0, 500), st.integers(0, 500), st.floats(1, 64))
def test_budgets_count_literals(n_free: int, n_literal: int, ratio: float) -> None:
    n = n_free + n_literal
    symbols = symbols_beside(n, n_literal, ratio=ratio)
    assert min(n_free, 1) <= symbols <= n_free
    if symbols > max(1, n_free // 64):
        assert symbols + n_literal <= n / ratio + 1e-6
    least = n_literal + min(n_free, 1)
    assert symbols_beside(n, n_literal, max_symbols=max(1, least)) == min(
        n_free, max(1, least) - n_literal
    )
    if least > 1:
        with pytest.raises(ConfigError, match="raise it to"):
            symbols_beside(n, n_literal, max_symbols=least - 1)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 50))
def test_every_run_gets_a_slot_and_denser_ones_more(lengths: list[int], extra: int) -> None:
    n_slots = min(sum(lengths), len(lengths) + extra)
    found = share_slots([torch.full((n,), 3.0) for n in lengths], n_slots)
    assert sum(found) == n_slots
    assert all(1 <= share <= n for share, n in zip(found, lengths, strict=True))
    two = share_slots([torch.full((8,), 1.0), torch.full((8,), 9.0)], 8)
    assert two[1] > two[0] >= 1


# -- documents --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def documents(tiny_model) -> dict[tuple[str, ...], ZDocument]:
    compressor = ZCompressor(tiny_model)
    kinds = [(), ("tables",), ("numbers",), ALL]
    return {
        k: compressor.compress(TEXT, settings=CHOSEN.replace(protect=k), ratio=2) for k in kinds
    }


def test_literals_stand_between_symbols_and_are_counted(documents, tiny_model):
    reader = Inferencer(tiny_model)
    for protect, document in documents.items():
        found = "".join(part for part in document.parts if isinstance(part, str))
        assert found == "".join(texts_of(TEXT, *protect))
        assert document.n_positions <= document.n_tokens / 2
        assert reader.count(document.parts) == document.n_positions + reader.count([""])
        assert document.ratio == document.n_tokens / document.n_positions
        assert document.has_literals == bool(protect)
        assert sum(len(p) for p in document.parts if isinstance(p, Symbols)) == document.n_symbols
        ledger = Ledger()
        ledger.add(document)
        assert ledger.savings["positions"].after.n == document.n_positions
    assert documents[()].bits < documents[ALL].bits + documents[()].symbols.bits


def test_a_literal_of_several_lines_breaks_the_window_and_a_short_one_does_not(documents):
    tables = [span for span in documents[ALL].spans if span.is_literal]
    assert next(span.literals[0].text for span in tables).startswith("| a | b |")
    inside = [span for span in documents[("numbers",)].spans if span.literals]
    assert inside
    assert all(not span.is_literal and len(span.symbols) for span in inside)


def test_x_decompression_is_exact_with_literals(documents, tiny_model):
    for batch_size in (1, 3):
        reader = ZDecompressor(tiny_model, batch_size=batch_size)
        assert reader.decompress_many(list(documents.values())) == [TEXT] * len(documents)
    for document in documents.values():
        assert document.exact
        assert "".join(reader.stream(document)) == TEXT


def test_without_errata_literals_come_back_in_their_places(documents, tiny_model):
    reader = ZDecompressor(tiny_model)
    for document in documents.values():
        spans = tuple(dataclasses.replace(span, errata=b"") for span in document.spans)
        plain = dataclasses.replace(document, spans=spans)
        text = reader.decompress(plain)
        assert "".join(reader.stream(plain)) == text
        at = 0
        for literal in (literal for span in spans for literal in span.literals):
            at = text.index(literal.text, at) + len(literal.text)
        whole = [span for span in spans if span.is_literal]
        assert [reader.decompress(span) for span in whole] == [s.literals[0].text for s in whole]


def test_z_stored_forms_round_trip_and_the_older_schema_is_kept(documents):
    for protect, document in documents.items():
        schema = 2 if protect else 1
        assert document.to_bytes()[:5] == b"ZDOC" + bytes([schema])
        assert document.to_compact().startswith(f"zdoc{schema}.")
        assert document.to_dict()["schema"] == schema
        assert ZDocument.from_bytes(document.to_bytes()) == document
        assert ZDocument.from_compact(document.to_compact()) == document
        assert ZDocument.from_json(document.to_json()) == document
        with pytest.raises(CorruptSpanError):
            ZDocument.from_dict({**document.to_dict(), "schema": 3 - schema})
        other = document.to_compact().replace(f"zdoc{schema}", f"zdoc{3 - schema}")
        with pytest.raises(CorruptSpanError):
            ZDocument.from_compact(other)


def test_the_written_form_is_taken_apart_again(documents, tiny_model):
    vocabulary = tiny_model.vocabulary
    for document in documents.values():
        text = written_parts(vocabulary, document.parts)
        assert tuple(vocabulary.split(text)) == document.parts


def test_streamed_batched_and_single_documents_are_one(documents, tiny_model):
    for protect in documents:
        chosen = CHOSEN.replace(protect=protect, ratio=2)
        for each in (chosen, chosen.replace(exact=False)):
            written = ZCompressor(tiny_model).compress(TEXT, settings=each)
            assert tuple(ZCompressor(tiny_model).stream(TEXT, settings=each)) == written.spans
    batched = ZCompressor(tiny_model, batch_size=2)
    many = batched.compress_many([TEXT, "", "no. 7"], settings=chosen)
    assert many == [batched.compress(text, settings=chosen) for text in (TEXT, "", "no. 7")]


def test_a_literal_is_read_back_without_loss(documents, tiny_model):
    whole = overall_fidelity(documents[ALL])
    assert not {"1993", "Anna", "42"} & set(whole.lost)
    assert overall_fidelity(documents[()]).lost != ()
    for protect, document in documents.items():
        bare = tuple(dataclasses.replace(span, fidelity=None) for span in document.spans)
        again = measure_fidelity(tiny_model, dataclasses.replace(document, spans=bare), TEXT)
        assert [s.fidelity for s in again.spans] == [s.fidelity for s in document.spans], protect


def test_a_cap_is_met_with_literals_or_refused(tiny_model):
    compressor = ZCompressor(tiny_model)
    chosen = CompressSettings(protect=("tables",), window=64)
    document = compressor.compress(TEXT, settings=chosen, max_symbols=40)
    assert document.n_positions == 40
    with pytest.raises(ConfigError, match="protect"):
        compressor.compress(TEXT, settings=chosen, max_symbols=20)
    crowded = compressor.compress(TEXT, settings=chosen, ratio=60)  # text that is kept stays
    assert crowded.n_symbols >= 1
    assert any(isinstance(part, str) and "| a | b |" in part for part in crowded.parts)


def test_a_text_that_is_all_literal_runs_no_model(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model, "read", None)
    text = "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 30
    chosen = CompressSettings(protect=("tables",), exact=True)
    document = ZCompressor(tiny_model).compress(text, settings=chosen)
    assert (document.n_symbols, document.parts, document.exact) == (0, (text,), True)
    assert ZDecompressor(tiny_model).decompress(document) == text


ODD = st.sampled_from(
    [*" \n|-`", "| a |\n|--|\n", '{"a": "b"}', "```\n", "é", "1.5", "Ann", "\x04"]
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ODD | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=8))
def test_x_any_text_comes_back_with_everything_protected(tiny_model, pieces):
    text = tiny_model.vocabulary.guard("".join(pieces), on_symbols="drop")
    chosen = CompressSettings(window=32, exact=True, protect=KINDS)
    document = ZCompressor(tiny_model).compress(text, settings=chosen, ratio=3)
    assert ZDecompressor(tiny_model).decompress(document) == text
    assert ZDocument.from_bytes(document.to_bytes()) == document
    codec = ByteCodec()
    assert codec.decompress(codec.compress(text, settings=chosen, ratio=3)) == text


def test_the_byte_codec_keeps_literals_too():
    codec = ByteCodec()
    document = codec.compress(TEXT, settings=CompressSettings(protect=ALL, exact=True), ratio=2)
    assert codec.decompress(document) == TEXT
    assert codec.count(document.parts) == document.n_positions
    assert "".join(p for p in document.parts if isinstance(p, str)) == "".join(texts_of(TEXT, *ALL))


# -- values -----------------------------------------------------------------------------------

NOTHING = Symbols((), 256, "3f9a")
ONE = Symbols(((1,),), 256, "3f9a")


@pytest.mark.parametrize(
    "fields",
    [
        {"literals": (LiteralText(Extent(0, 3), 0, "abc"),), "symbols": ONE, "ends": (3,)},
        {"literals": (LiteralText(Extent(0, 3), 0, "ab"),)},
        {"literals": (LiteralText(Extent(0, 3), 0, "abc"),), "errata": b"x"},
        {"literals": (LiteralText(Extent(2, 4), 0, "b"),), "symbols": ONE, "ends": (3,)},
        {"literals": (LiteralText(Extent(0, 1), 3, "a"),), "symbols": ONE, "ends": (3,)},
        {"literals": (LiteralText(Extent(1, 2), 0, "a"), LiteralText(Extent(1, 2), 1, "b"))},
        {"literals": (LiteralText(Extent(0, 1), 0, "a"),), "symbols": ONE},
        {"literals": [LiteralText(Extent(0, 1), 0, "a")]},
    ],
)
def test_spans_refuse_literals_that_do_not_fit(fields):
    given = {"symbols": NOTHING, "tokens": Extent(0, 3), "chars": Extent(0, 3), **fields}
    with pytest.raises(SpanError):
        ZSpan(**given)


def test_literals_spell_no_symbols():
    with pytest.raises(SpanError, match="spells no symbols"):
        LiteralText(Extent(0, 1), 0, "[|z3f9a:0C|]")


def test_a_literal_of_another_tokenizer_is_refused(documents, tiny_model):
    document = documents[("numbers",)]
    at = next(i for i, span in enumerate(document.spans) if span.literals)
    span = document.spans[at]
    first, *rest = span.literals
    forged = dataclasses.replace(first, text=first.text[:-1] + "\u6e2f")  # three bytes for one
    spans = list(document.spans)
    spans[at] = dataclasses.replace(span, literals=(forged, *rest), fidelity=Fidelity(1.0, 0.0))
    with pytest.raises(CorruptSpanError, match="another tokenizer"):
        ZDecompressor(tiny_model).decompress(dataclasses.replace(document, spans=tuple(spans)))
