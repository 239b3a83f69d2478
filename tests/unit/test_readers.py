"""The readers: layouts as trained, codecs that match, answers that no cache changes."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

from tiny import tiny_z
from zcontext.caches import fork, n_bytes, rows_of
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings, GenerationSettings
from zcontext.decompressor import lay_out, span_layouts
from zcontext.errors import (
    CodecMismatchError,
    ConfigError,
    ContextOverflowError,
    SymbolCollisionError,
    UnknownSymbolError,
    VocabularyError,
)
from zcontext.layouts import embed_pieces
from zcontext.passes import spread_positions
from zcontext.prefixes import PrefixCache, prefix_key
from zcontext.readers import Inferencer, ZDecompressor
from zcontext.spans import ChatMessage, SupportsDecompress, SupportsRead
from zcontext.vocabulary import Symbols

TEXT = "Anna lives in Oslo. She is 31 and builds bridges! Her father had a shop in Lima. 🚀"
SHORT = GenerationSettings(max_new_tokens=10)
LIVELY = GenerationSettings(max_new_tokens=10, temperature=1.2, seed=5)


@pytest.fixture(scope="module")
def model():
    return tiny_z()


@pytest.fixture(scope="module")
def document(model):
    return ZCompressor(model).compress(TEXT, settings=CompressSettings(window=24, memory=5))


@pytest.fixture
def inferencer(model):
    return Inferencer(model)


# -- decompressor -----------------------------------------------------------------------------


def test_they_are_readers(model, inferencer):
    assert isinstance(ZDecompressor(model), SupportsDecompress)
    assert isinstance(inferencer, SupportsRead)
    assert (inferencer.codec, inferencer.context_length) == (model.codec, 2048)


def test_the_layout_is_the_one_of_training(model, document):
    """Memory at 0..m-1, each symbol where its segment ends behind it, the start token at m."""
    layouts = list(span_layouts(model, document))
    assert [layout.n_memory for layout in layouts[:3]] == [0, 5, 5]
    for span, layout in zip(document.spans, layouts, strict=True):
        m, k = layout.n_memory, len(span.symbols)
        assert span.ends is not None
        assert layout.positions.tolist() == [*range(m), *[m + end for end in span.ends]]
        assert len(layout.symbols) == m + k
    with torch.no_grad():
        before = document.spans[0].symbols + document.spans[1].symbols
        remembered = model.embed_codes(torch.tensor([before.codes[-5:]]))[0]
    assert torch.equal(layouts[2].symbols[:5], remembered)


def test_generated_tokens_continue_the_positions_of_the_text(model, document, monkeypatch):
    seen = []
    run = model.run

    def watched(embeddings, *, positions, **kwargs):
        seen.append(positions[0].tolist())
        return run(embeddings, positions=positions, **kwargs)

    monkeypatch.setattr(model, "run", watched)
    span = document.spans[0]
    ZDecompressor(model).decompress(span)
    assert seen[0] == [*span.ends, 0]
    assert seen[1:] == [[i] for i in range(1, len(span.tokens))]
    seen.clear()
    ZDecompressor(model).decompress(span.symbols, n_tokens=len(span.tokens))
    spread = spread_positions(len(span.symbols), len(span.tokens))
    assert seen[0] == [*spread.tolist(), 0]


def test_decoding_says_what_the_teacher_forced_pass_would_say(model, document):
    """Free decoding and `restore_states` are one function of the tokens before."""
    span = document.spans[0]
    nothing = Symbols((), 32, model.codec[:4])
    layout = lay_out(model, nothing, span.symbols, len(span.tokens), ends=span.ends)
    from zcontext.decompressor import Prefill, generate

    row = ZDecompressor(model)._row(layout, forced=True)
    assert isinstance(row, Prefill)
    ids = generate(model, "decompress", [row], settings=GenerationSettings())[0].ids
    inputs = torch.tensor([[model.start_token, *ids[:-1]]])
    with model.using("decompress"), torch.no_grad():
        states = model.restore_states(
            layout.symbols[None],
            layout.positions[None],
            torch.ones(1, len(layout.positions), dtype=torch.long),
            inputs,
            torch.ones_like(inputs),
        )
        scores = model.logits(states)[0]
    scores[:, :3] = -torch.inf
    assert tuple(scores.argmax(-1).tolist()) == ids


@pytest.mark.parametrize("chosen", [None, GenerationSettings(temperature=1.3, seed=2)])
def test_batches_streams_and_single_spans_say_the_same(model, document, chosen):
    one = ZDecompressor(model, batch_size=1).decompress(document, settings=chosen)
    many = ZDecompressor(model, batch_size=3)
    assert many.decompress(document, settings=chosen) == one
    assert "".join(many.stream(document, settings=chosen)) == one
    bare = document.spans[1].symbols
    together = many.decompress_many([bare, document, document.spans[0]], settings=chosen)
    assert together[1] == one
    assert together[0] == many.decompress(bare, settings=chosen)
    assert together[2] == many.decompress(document.spans[0], settings=chosen)


def test_a_document_comes_back_with_its_number_of_tokens(model, document):
    pieces = []
    decompressor = ZDecompressor(model)
    for row in decompressor._rows(document, None, sampled=False):
        pieces.append(row.max_new_tokens)
        assert row.forced
    assert sum(pieces) == document.n_tokens


def test_stop_strings_do_not_cut_a_document_short(model, document):
    chosen = GenerationSettings(stop=("a", "e"), max_new_tokens=1)
    decompressor = ZDecompressor(model)
    assert decompressor.decompress(document, settings=chosen) == decompressor.decompress(document)


def test_bare_symbols_take_the_length_they_are_given(model, document):
    decompressor = ZDecompressor(model)
    symbols = document.spans[0].symbols
    span = dataclasses.replace(document.spans[0], ends=None)
    n = len(span.tokens)
    assert decompressor.decompress(symbols, n_tokens=n) == decompressor.decompress(span)
    assert len(decompressor._rows(symbols, None, sampled=False)) == 1
    assert decompressor._rows(symbols, None, sampled=False)[0].max_new_tokens == 8 * len(symbols)
    for wrong in (0, -1):
        with pytest.raises(ConfigError, match="n_tokens"):
            decompressor.decompress(symbols, n_tokens=wrong)
    with pytest.raises(ConfigError, match="knows its own length"):
        decompressor.decompress(document, n_tokens=4)
    with pytest.raises(ConfigError, match="batch_size"):
        ZDecompressor(model, batch_size=0)


def test_the_empty_document_is_the_empty_text(model):
    empty = ZCompressor(model).compress("")
    decompressor = ZDecompressor(model)
    assert decompressor.decompress(empty) == ""
    assert list(decompressor.stream(empty)) == []
    assert decompressor.decompress(empty.symbols) == ""
    assert decompressor.decompress_many([]) == []


def test_symbols_of_another_codec_are_refused_everywhere(model, document):
    other = tiny_z(seed=1)
    decompressor, inferencer = ZDecompressor(other), Inferencer(other)
    for item in (document, document.spans[0], document.symbols):
        with pytest.raises(CodecMismatchError):
            decompressor.decompress(item)
        with pytest.raises(CodecMismatchError):
            decompressor.stream(item)
    same_tag = dataclasses.replace(document, codec=document.codec[:4] + "0" * 60)
    with pytest.raises(CodecMismatchError):
        ZDecompressor(model).decompress(same_tag)
    for call in (inferencer.complete, inferencer.stream, inferencer.count, inferencer.token_ids):
        with pytest.raises(CodecMismatchError):
            call([document.symbols])
    with pytest.raises(CodecMismatchError):
        inferencer.ask("Who?", [document.symbols])
    deep = Symbols(((1, 1, 1, 1),), 32, model.codec[:4])
    with pytest.raises(UnknownSymbolError):
        ZDecompressor(model).decompress(deep)


def test_a_span_that_does_not_fit_is_refused_with_numbers(model):
    symbols = Symbols(((1, 1, 1),), 32, model.codec[:4])
    with pytest.raises(ContextOverflowError, match=r"2,049 positions.*2,048"):
        ZDecompressor(model).decompress(symbols, n_tokens=2048)


# -- inferencer -------------------------------------------------------------------------------


def test_symbols_and_text_stand_at_consecutive_positions(inferencer, document, monkeypatch):
    model = inferencer.model
    seen = []
    run = model.run

    def watched(embeddings, *, positions, **kwargs):
        seen.extend(positions[0].tolist())
        return run(embeddings, positions=positions, **kwargs)

    monkeypatch.setattr(model, "run", watched)
    answer = inferencer.complete(["ab", document.symbols, "cd"], settings=SHORT)
    n = 4 + document.n_symbols
    assert seen[: n + 2] == list(range(n + 2))
    assert (answer.n_prompt_tokens, answer.n_prompt_symbols) == (4, document.n_symbols)
    assert answer.n_output_tokens <= 10


def test_a_symbol_in_a_prompt_is_its_embedding(inferencer, document):
    model = inferencer.model
    pieces = inferencer._completion(["a", document.symbols])
    with torch.no_grad():
        expected = model.embed_codes(torch.tensor([document.symbols.codes]))[0]
    assert torch.equal(embed_pieces(model, pieces)[1:], expected)


@pytest.mark.parametrize("chosen", [SHORT, LIVELY])
@pytest.mark.parametrize("tail", [["cd"], []])
def test_the_cached_answer_is_the_uncached_answer(model, document, chosen, tail):
    parts = ["ab", document.symbols, *tail]
    keeping, forgetting = Inferencer(model), Inferencer(model, prefix_cache_bytes=0)
    plain = forgetting.complete(parts, settings=chosen).text
    assert [keeping.complete(parts, settings=chosen).text for _ in range(3)] == [plain] * 3
    assert (keeping.prefixes.n_hits, keeping.prefixes.n_misses) == (2, 1)
    assert len(forgetting.prefixes) == 0


def test_two_questions_share_the_prefix_of_one_context(inferencer, document):
    first = [inferencer.ask(q, [document.symbols], settings=SHORT).text for q in ("Who?", "When?")]
    assert inferencer.prefixes.n_hits == 1
    again = [inferencer.ask(q, [document.symbols], settings=SHORT).text for q in ("When?", "Who?")]
    assert again == first[::-1]
    inferencer.prefixes.clear()
    assert inferencer.ask("Who?", [document.symbols], settings=SHORT).text == first[0]


def test_a_prefix_is_only_found_by_exactly_the_same_parts(document):
    symbols = document.symbols
    keys = {
        prefix_key(codec, pieces)
        for codec in ("a", "b")
        for pieces in (
            [[1, 2], symbols],
            [[1], [2], symbols],
            [[12], symbols],
            [symbols, [1, 2]],
            [[1, 2], symbols[1:]],
            [[1, 2], symbols.coarser(2)],
        )
    }
    assert len(keys) == 12


def test_the_prefix_cache_keeps_to_its_bytes_and_drops_the_oldest(inferencer, document):
    inferencer.complete([document.symbols, "a"], settings=SHORT)
    size = inferencer.prefixes.n_bytes
    assert size == document.n_symbols * inferencer.model.kv_bytes_per_position * 2  # fp32
    small = Inferencer(inferencer.model, prefix_cache_bytes=2 * size)
    for text in ("a", "b", "a", "c"):
        small.complete([text, document.symbols[1:], "?"], settings=SHORT)
    assert len(small.prefixes) == 2
    assert small.prefixes.n_bytes <= 2 * size
    hits = small.prefixes.n_hits
    small.complete(["a", document.symbols[1:], "?"], settings=SHORT)
    assert small.prefixes.n_hits == hits + 1
    with pytest.raises(ConfigError, match="max_bytes"):
        PrefixCache(max_bytes=-1)


@torch.no_grad()
def test_extending_a_fork_leaves_the_cache_as_it_was(model):
    ids = torch.randint(3, 259, (2, 5), generator=torch.Generator().manual_seed(0))

    def run(tokens, start, cache):
        with model.using("infer"):
            n = tokens.shape[1]
            return model.run(
                model.embed_tokens(tokens),
                positions=torch.arange(start, start + n).expand(2, -1),
                mask=torch.ones(2, start + n, dtype=torch.long),
                cache=cache,
                use_cache=True,
            )

    cache = run(ids, 0, None).cache
    keys = cache.layers[0].keys.clone()
    run(ids, 5, fork(cache))
    assert cache.get_seq_length() == 5
    assert torch.equal(cache.layers[0].keys, keys)
    assert torch.equal(rows_of(cache, [1, 1, 0]).layers[0].keys, keys[[1, 1, 0]])
    assert n_bytes(cache) == 2 * 5 * model.kv_bytes_per_position * 2


def test_streams_say_what_answers_say(inferencer, document):
    parts = ["Say: ", document.symbols]
    messages = [ChatMessage("user", ("Say: ", document.symbols))]
    assert "".join(inferencer.stream(parts, settings=LIVELY)) == (
        inferencer.complete(parts, settings=LIVELY).text
    )
    assert "".join(inferencer.stream_chat(messages, settings=LIVELY)) == (
        inferencer.chat(messages, settings=LIVELY).text
    )


def test_a_stream_that_is_heard_out_returns_the_answer(inferencer, document):
    parts = ["ab", document.symbols, "cd"]
    stream, pieces = inferencer.stream(parts, settings=SHORT), []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            answer = end.value
            break
    whole = inferencer.complete(parts, settings=SHORT)
    assert dataclasses.replace(answer, seconds=whole.seconds) == whole
    assert "".join(pieces) == answer.text


def test_an_open_stream_does_not_hold_the_model(inferencer, document):
    stream = inferencer.stream(["a"], settings=LIVELY)
    next(stream)
    finished = threading.Event()
    thread = threading.Thread(
        target=lambda: (inferencer.complete(["b"], settings=SHORT), finished.set())
    )
    thread.start()
    assert finished.wait(30)
    thread.join()
    assert inferencer.model.adapters.role is None
    stream.close()


def test_counts_are_positions_and_symbols_have_ids_beyond_the_base(inferencer, document):
    parts = ["héy", document.symbols[:3], "a<|im_end|>"]
    ids = inferencer.token_ids(parts)
    assert inferencer.count(parts) == len(ids) == 4 + 3 + 11
    assert ids[4:7] == [259 + code[0] for code in document.symbols.codes[:3]]
    assert max(ids[:4] + ids[7:]) < 259
    assert inferencer.count([]) == 0


def test_stop_strings_end_an_answer_before_themselves(inferencer):
    free = inferencer.complete(["a"], settings=LIVELY).text
    stop = next(char for char in free[2:] if char != "\ufffd")
    answer = inferencer.complete(["a"], settings=LIVELY.replace(stop=(stop,)))
    assert answer.stop_reason == "stop"
    assert answer.text == free[: free.index(stop)]


def test_an_empty_prompt_is_answered_from_the_start_token(inferencer):
    answer = inferencer.complete([], settings=SHORT)
    assert answer.n_prompt_tokens == 1
    assert inferencer.complete([""], settings=SHORT).text == answer.text


def test_a_prompt_that_leaves_no_room_is_refused_with_numbers(inferencer, document):
    symbols = document.symbols[:8]
    with pytest.raises(ContextOverflowError, match=r"2,048 positions \(2,040 tokens, 8 symbols\)"):
        inferencer.complete(["a" * 2040, symbols], settings=SHORT)
    answer = inferencer.complete(["a" * 2039, symbols], settings=SHORT)
    assert answer.n_output_tokens <= 1
    with pytest.raises(ContextOverflowError):
        inferencer.stream(["a" * 2048])


def test_text_that_spells_symbols_is_refused_wherever_it_stands(inferencer, document):
    spelled = inferencer.vocabulary.render(document.symbols[:1])
    for call in (
        lambda: inferencer.complete([spelled]),
        lambda: inferencer.stream([spelled]),
        lambda: inferencer.ask(spelled, ["x"]),
        lambda: inferencer.ask("Who?", [spelled]),
        lambda: inferencer.chat([ChatMessage("user", (spelled,))]),
        lambda: inferencer.count([spelled]),
    ):
        with pytest.raises(SymbolCollisionError):
            call()
    with pytest.raises(VocabularyError, match="surrogate"):
        inferencer.complete(["\udc80"])


def test_threads_get_the_answers_they_would_get_alone(inferencer, document):
    prompts = [[f"{i}", document.symbols[: 3 + i], "?"] for i in range(6)]
    alone = [inferencer.complete(p, settings=LIVELY).text for p in prompts]
    found = {}

    def work(at):
        found[at] = inferencer.complete(prompts[at], settings=LIVELY).text

    threads = [threading.Thread(target=work, args=(at,)) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(6)] == alone


@pytest.mark.parametrize(
    ("n_contexts", "batch_size", "remedy"),
    [(1, 2, "one context for each question"), (2, 0, "batch_size=0; give 1 or more")],
)
def test_many_questions_need_as_many_contexts_and_a_batch(
    inferencer, n_contexts, batch_size, remedy
):
    with pytest.raises(ConfigError, match=remedy):
        inferencer.ask_many(["a?", "b?"], [["c"]] * n_contexts, batch_size=batch_size)


def test_many_questions_get_the_answers_they_get_one_by_one(tiny_model):
    reader = Inferencer(tiny_model)
    symbols = ZCompressor(tiny_model).compress("The ferry leaves at nine.", ratio=4).symbols
    questions = ["When?", "Who steers the ferry to the island?", "Where?"]
    contexts = [[symbols], ["It leaves at nine. ", symbols], []]
    settings = GenerationSettings(max_new_tokens=6)
    together = reader.ask_many(questions, contexts, settings=settings, batch_size=2)
    alone = [reader.ask(q, c, settings=settings) for q, c in zip(questions, contexts, strict=True)]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.n_prompt_symbols for a in together] == [len(symbols), len(symbols), 0]


# -- saying that the context does not tell -----------------------------------------------------


def test_a_bias_makes_it_say_that_it_does_not_know(model, document, inferencer):
    context = [document.symbols]
    guessed = inferencer.ask("Who?", context, settings=SHORT).text
    assert not guessed.startswith("u")  # the tiny base has bytes for tokens
    careful = Inferencer(model, unknown_bias=1e4)
    settings = dataclasses.replace(SHORT, max_new_tokens=1)
    asked = careful.ask("Who?", context, settings=settings)
    assert asked.text == "u"
    [together] = careful.ask_many(["Who?"], [context], settings=settings)
    assert together.text == "u"
    turns = [ChatMessage("user", (document.symbols, "Who?"))]
    assert "".join(careful.stream_chat(turns, settings=settings)) == "u"


def test_a_bias_is_for_replies_alone_and_must_be_a_number(model, document, inferencer):
    careful = Inferencer(model, unknown_bias=1e4)
    parts = [document.symbols, "Anna"]
    went_on = inferencer.complete(parts, settings=SHORT)
    assert careful.complete(parts, settings=SHORT).text == went_on.text
    assert "".join(careful.stream(parts, settings=SHORT)) == went_on.text
    with pytest.raises(ConfigError, match="finite"):
        Inferencer(model, unknown_bias=float("nan"))
