"""A stored document written again for a question: from its integers, at the cost it had."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import tiny_focused, tiny_z
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.errors import CodecMismatchError, ConfigError, SpanError
from zcontext.evaluation.asking import Panel, QuestionTask
from zcontext.evaluation.conditions import Condition, Kind
from zcontext.evaluation.contexts import Contexts
from zcontext.evaluation.questions import QARow
from zcontext.evaluation.respondents import ReaderRespondent
from zcontext.gloss import _rising, gloss_of, gloss_text
from zcontext.model import ZLanguageModel
from zcontext.readers import ZDecompressor
from zcontext.spans import SupportsFocus, ZDocument
from zcontext.symbols import Symbols
from zcontext.testing import ByteCodec

TEXT = "Anna lives in Oslo. In 2019 she moved there from Lima, where her father had a shop. "
OTHER = "The harbour of the town is deep, and ships of every size can lie there in a storm. "
ASKED = "Where did she live before?"
SMALL = CompressSettings(window=32)
EVERY_BYTE = 257


def focusing(
    *, size: int = EVERY_BYTE, depth: int = 4, named: bool = True, seed: int = 0
) -> ZLanguageModel:
    """A tiny codec of names whose focus has an idea of its own."""
    return tiny_focused(named=named, size=size, depth=depth, seed=seed)


@pytest.fixture(scope="module")
def model() -> ZLanguageModel:
    return focusing()


@pytest.fixture(scope="module")
def compressor(model: ZLanguageModel) -> ZCompressor:
    return ZCompressor(model)


def lengths(document: ZDocument) -> list[int]:
    """Tokens of every segment."""
    edges = [[0, *(span.ends or ())] for span in document.spans]
    return [b - a for row in edges for a, b in pairwise(row)]


# -- what codes say --------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1.5, 2, 3])
def test_where_every_token_is_named_the_gloss_is_the_text(
    compressor: ZCompressor, ratio: float
) -> None:
    document = compressor.compress(TEXT + OTHER, settings=SMALL, ratio=ratio)
    assert gloss_text(compressor.model, document) == TEXT + OTHER


def test_at_a_coarser_ratio_the_gloss_leaves_tokens_out(compressor: ZCompressor) -> None:
    document = compressor.compress(TEXT, settings=SMALL, ratio=8)
    said = iter(TEXT)
    gloss = gloss_text(compressor.model, document)
    assert 0 < len(gloss) < len(TEXT)
    assert all(letter in said for letter in gloss)  # a subsequence: in the order of the text


def test_literals_stand_in_the_gloss_where_they_are_kept(compressor: ZCompressor) -> None:
    chosen = SMALL.replace(protect=("numbers",))
    document = compressor.compress(TEXT, settings=chosen, ratio=2)
    assert document.has_literals
    assert gloss_text(compressor.model, document) == TEXT
    for gloss in gloss_of(compressor.model, document):
        for extent, literal in zip(gloss.literals, gloss.span.literals, strict=True):
            assert bytes(gloss.places[extent.start : extent.end]) == bytes(
                range(literal.tokens.start + 1, literal.tokens.end + 1)
            )


@pytest.mark.parametrize("ratio", [2, 4, 8, 30])
def test_every_token_has_a_place_in_the_segment_that_names_it(
    compressor: ZCompressor, ratio: int
) -> None:
    document = compressor.compress(TEXT * 2, settings=SMALL, ratio=ratio)
    for gloss in gloss_of(compressor.model, document):
        assert list(gloss.places) == sorted(gloss.places)
        assert gloss.n_named <= len(gloss.span.tokens)
        assert all(0 < place <= len(gloss.span.tokens) for place in gloss.places)


def test_a_document_that_names_more_than_its_text_has_is_cut_to_it(model: ZLanguageModel) -> None:
    document = ZCompressor(model).compress(TEXT, ratio=2)
    (span,) = document.spans
    loud = Symbols(tuple((70, 71, 72, 73) for _ in span.symbols.codes), EVERY_BYTE, model.codec[:4])
    told = dataclasses.replace(document, spans=(dataclasses.replace(span, symbols=loud),))
    (gloss,) = gloss_of(model, told)
    assert gloss.n_named == len(span.tokens)
    (again,) = ZCompressor(model).compress_together([told], question=ASKED)
    assert again.n_symbols == document.n_symbols


@given(st.data())
def test_ends_rise_to_the_end_whatever_the_places_are(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 30))
    places = sorted(data.draw(st.lists(st.integers(0, n), min_size=1, max_size=n)))
    found = _rising(places, n)
    assert len(found) == len(places)
    assert found[-1] == n
    assert all(a < b for a, b in pairwise((0, *found)))
    if all(a < b for a, b in pairwise((0, *places[:-1], n))):
        assert found == (*places[:-1], n)


# -- written again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [2, 4, 9])
def test_a_document_is_written_again_at_the_cost_it_had(
    compressor: ZCompressor, ratio: int
) -> None:
    assert isinstance(compressor, SupportsFocus)
    assert compressor.refocuses
    stored = compressor.compress(TEXT * 3, settings=SMALL, ratio=ratio)
    (again,) = compressor.compress_together([stored], question=ASKED)
    assert again.n_symbols == stored.n_symbols
    assert again.symbols != stored.symbols
    assert lengths(again).count(1) > lengths(stored).count(1)
    assert max(lengths(again)) > max(lengths(stored))


def test_what_is_true_of_the_source_stays_and_what_is_not_goes(compressor: ZCompressor) -> None:
    chosen = SMALL.replace(exact=True, min_fidelity=0.5)
    stored = compressor.compress(TEXT * 2, settings=chosen, ratio=4)
    assert stored.exact
    (again,) = compressor.compress_together([stored], question=ASKED, settings=chosen)
    for name in ("codec", "n_tokens", "n_chars", "n_bytes", "text_sha256", "depth", "size"):
        assert getattr(again, name) == getattr(stored, name), name
    assert [span.tokens for span in again.spans] == [span.tokens for span in stored.spans]
    assert [span.chars for span in again.spans] == [span.chars for span in stored.spans]
    assert again.ratio == stored.ratio
    assert not again.exact
    assert not again.n_errata_bytes
    assert all(span.fidelity is None for span in again.spans)


def test_it_is_stored_and_read_like_any_other(compressor: ZCompressor) -> None:
    stored = compressor.compress(TEXT * 2, settings=SMALL.replace(protect=("numbers",)), ratio=3)
    (again,) = compressor.compress_together([stored], question=ASKED)
    assert ZDocument.from_compact(again.to_compact()) == again
    assert ZDocument.from_json(again.to_json()) == again
    read = ZDecompressor(compressor.model).decompress(again)
    assert "2019" in read
    (twice,) = compressor.compress_together([again], question=ASKED)
    assert twice.n_positions == stored.n_positions


def test_where_all_is_named_it_is_what_the_text_itself_would_be(compressor: ZCompressor) -> None:
    stored = compressor.compress(TEXT, ratio=4)
    (again,) = compressor.compress_together([stored], question=ASKED)
    (fresh,) = compressor.compress_together([TEXT], question=ASKED, ratio=4)
    assert again == fresh


def test_literals_stay_where_they_are(compressor: ZCompressor) -> None:
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    chosen = SMALL.replace(protect=("numbers", "tables"))
    stored = compressor.compress(f"{TEXT}\n\n{table}\n{TEXT}", settings=chosen, ratio=3)
    assert any(span.is_literal for span in stored.spans)
    assert any(span.literals and not span.is_literal for span in stored.spans)
    (again,) = compressor.compress_together([stored], question=ASKED)
    assert [span.literals for span in again.spans] == [span.literals for span in stored.spans]
    assert again.n_positions == stored.n_positions
    texts = [[part for part in d.parts if isinstance(part, str)] for d in (stored, again)]
    assert "".join(texts[0]) == "".join(texts[1])


def test_documents_and_texts_share_one_budget(compressor: ZCompressor) -> None:
    chosen = SMALL.replace(ratio=2.5)
    stored = [compressor.compress(text, settings=chosen) for text in (TEXT, OTHER)]
    given_ = [stored[0], OTHER * 2, stored[1]]
    together = compressor.compress_together(given_, question=ASKED, settings=chosen)
    alone = [stored[0], compressor.compress(OTHER * 2, settings=chosen), stored[1]]
    assert sum(d.n_symbols for d in together) == sum(d.n_symbols for d in alone)
    assert [d.n_symbols for d in together] != [d.n_symbols for d in alone]
    assert [d.text_sha256 for d in together] == [d.text_sha256 for d in alone]
    texts = [TEXT, OTHER * 2, OTHER]  # every token is named, so nothing is lost on the way
    fresh = compressor.compress_together(texts, question=ASKED, settings=chosen)
    assert [d.n_symbols for d in fresh] == [d.n_symbols for d in together]


def test_it_keeps_its_own_depth_and_takes_windows_as_they_are(compressor: ZCompressor) -> None:
    stored = compressor.compress(TEXT * 3, settings=SMALL.replace(memory=4), ratio=3, depth=2)
    later = CompressSettings(window=64, context=16, memory=3)
    (again,) = compressor.compress_together([stored], question=ASKED, settings=later, depth=3)
    assert (again.depth, again.n_symbols) == (2, stored.n_symbols)
    assert [span.tokens for span in again.spans] == [span.tokens for span in stored.spans]
    assert again.memory == 3


def test_a_cap_on_symbols_is_no_matter_where_there_is_no_text(compressor: ZCompressor) -> None:
    stored = compressor.compress(TEXT, ratio=4)
    chosen = CompressSettings(max_symbols=5)
    (again,) = compressor.compress_together([stored], question=ASKED, settings=chosen)
    assert again.n_symbols == stored.n_symbols
    with pytest.raises(ConfigError, match="caps one document"):
        compressor.compress_together([stored, TEXT], question=ASKED, settings=chosen)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_same_integers_give_the_same_bytes(model: ZLanguageModel, batch_size: int) -> None:
    compressor = ZCompressor(model, batch_size=batch_size)
    stored = compressor.compress(TEXT * 2, settings=SMALL, ratio=4)
    first, second = (compressor.compress_together([stored], question=ASKED) for _ in range(2))
    assert first[0].to_bytes() == second[0].to_bytes()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_codes_make_a_document(compressor: ZCompressor, data: st.DataObject) -> None:
    """Codes that nobody wrote so: names of bytes that are no characters, silence, in any order."""
    stored = compressor.compress(TEXT, settings=SMALL.replace(protect=("numbers",)), ratio=3)
    code = st.sampled_from([0, 0, 1, 60, 128, 200, 256])
    spans = []
    for span in stored.spans:
        drawn = [data.draw(st.tuples(*[code] * stored.depth)) for _ in span.symbols.codes]
        codes = Symbols(tuple(drawn), stored.size, span.symbols.codec)
        spans.append(dataclasses.replace(span, symbols=codes))
    strange = dataclasses.replace(stored, spans=tuple(spans))
    (again,) = compressor.compress_together([strange], question=ASKED)
    assert again.n_symbols <= strange.n_symbols
    assert ZDocument.from_bytes(again.to_bytes()) == again


# -- what stays as it is, and what is refused ------------------------------------------------------


def test_without_focus_a_document_stays_as_it_is() -> None:
    for model in (tiny_z(named=True, size=EVERY_BYTE), tiny_z()):
        compressor = ZCompressor(model)
        assert not compressor.refocuses
        stored = compressor.compress(TEXT, ratio=4)
        assert compressor.compress_together([stored, TEXT], question=ASKED, ratio=4) == [
            stored,
            compressor.compress(TEXT, ratio=4, question=ASKED),
        ]


def test_a_document_that_names_nothing_stays_as_it_is(model: ZLanguageModel) -> None:
    compressor = ZCompressor(model)
    stored = compressor.compress(TEXT, settings=SMALL.replace(exact=True), ratio=4)
    spans = [
        dataclasses.replace(
            span, symbols=Symbols(((0,) * 4,) * len(span.symbols), EVERY_BYTE, model.codec[:4])
        )
        for span in stored.spans
    ]
    silent = dataclasses.replace(stored, spans=tuple(spans))
    empty = compressor.compress("")
    assert compressor.compress_together([silent, empty], question=ASKED) == [silent, empty]
    # Where only some of its spans are silent, those stay, without what corrected them.
    mixed = dataclasses.replace(stored, spans=(spans[0], *stored.spans[1:]))
    (again,) = compressor.compress_together([mixed], question=ASKED)
    assert again.spans[0].symbols == spans[0].symbols
    assert again.spans[1:] != stored.spans[1:]
    assert not again.n_errata_bytes


def test_documents_of_another_codec_are_refused(compressor: ZCompressor) -> None:
    foreign = ZCompressor(tiny_z(seed=5)).compress(TEXT, ratio=4)
    for who in (compressor, ZCompressor(tiny_z())):
        with pytest.raises(CodecMismatchError, match="load the bundle that wrote it"):
            who.compress_together([TEXT, foreign], question=ASKED, ratio=4)
    with pytest.raises(SpanError):
        gloss_of(compressor.model, foreign)


def test_codes_that_are_no_names_are_refused_with_what_to_do() -> None:
    compressor = ZCompressor(focusing(named=False, size=32, depth=3))
    assert not compressor.refocuses
    stored = compressor.compress(TEXT, ratio=4)
    with pytest.raises(ConfigError, match="give the text") as caught:
        compressor.compress_together([stored], question=ASKED)
    assert caught.value.field == "named"


def test_a_question_that_does_not_fit_beside_a_span_is_refused(compressor: ZCompressor) -> None:
    stored = compressor.compress("a" * 1500, settings=CompressSettings(window=1600), ratio=4)
    with pytest.raises(ConfigError, match="ask a shorter question") as caught:
        compressor.compress_together([stored], question="why? " * 150, settings=SMALL)
    assert caught.value.field == "question"


# -- measured --------------------------------------------------------------------------------------


def test_it_is_measured_from_what_is_stored(compressor: ZCompressor) -> None:
    contexts, condition = Contexts(compressor), Condition("refocused", 2.5)
    stored = compressor.compress_many([TEXT, OTHER], ratio=2.5)
    expected = compressor.compress_together(stored, question=ASKED)
    found = contexts.parts([TEXT, OTHER], condition, question=ASKED)
    assert found == [document.symbols for document in expected]
    assert sum(map(len, found)) == contexts.n_positions([TEXT, OTHER], condition)
    plain = contexts.parts([TEXT, OTHER], Condition("symbols", 2.5), question=ASKED)
    assert plain == [document.symbols for document in stored]
    # A codec that cannot is measured as it is used: on what is stored.
    unable = Contexts(ZCompressor(tiny_z()))
    kinds: tuple[Kind, ...] = ("refocused", "symbols")
    pair = [unable.parts([TEXT], Condition(kind, 2.5), question=ASKED) for kind in kinds]
    assert pair[0] == pair[1]


def test_predictions_of_another_focus_are_not_taken() -> None:
    codec, reader = ByteCodec(), ReaderRespondent(ByteCodec())
    rows, condition = [QARow(TEXT, ASKED, ("Lima",))], Condition("refocused", 4.0)
    keys = set()
    for seed in (0, 0, 1):
        codec.model = SimpleNamespace(focus=focusing(seed=seed).focus)  # type: ignore[attr-defined]
        panel = Panel(Contexts(codec), {"infer": reader})
        task = QuestionTask("qa", rows, conditions=[condition], panel=panel)
        keys.add(task.key(0, condition))
    assert len(keys) == 2
