"""The channel: it hears what pooling put in, and what it says is a distribution of tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tiny import tiny_base, tiny_z
from zcontext.bundle import load_bundle, save_bundle
from zcontext.channel import TRUST, Channel, Lanes
from zcontext.compressor import ZCompressor
from zcontext.config import CodecConfig, CompressSettings, GenerationSettings
from zcontext.errors import BundleError, ConfigError
from zcontext.fidelity import measure_fidelity, overall_fidelity, read_span
from zcontext.hearing import Hearing, Track, heard, segment_edges
from zcontext.layouts import lay_out, span_layouts
from zcontext.model import ZLanguageModel
from zcontext.phrases import Phrase
from zcontext.pooling import weights_of_places
from zcontext.readers import ZDecompressor
from zcontext.segmentation import segment_of
from zcontext.tokenization import decoded, text_tokenizer
from zcontext.upkeep import start_from_tokens
from zcontext.vocabulary import Symbols
from zcontext.windows import Extent

TEXT = "The lighthouse keeper wrote the weather into his book each evening at nine o'clock sharp."


def with_channel(*, seed: int = 0, trained: bool = True) -> ZLanguageModel:
    """A tiny codec whose channel has random values in everything."""
    model = tiny_z(seed=seed)
    channel = model.add_channel()
    if trained:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in channel.state_dict().values():
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
            channel.metric.copy_(channel.metric @ channel.metric.T)
            channel.noise.mul_(0.1)
    model.seal()
    return model


def spelling_model(*, phrases: Sequence[Phrase] = ()) -> ZLanguageModel:
    """A codec whose codes are tokens and phrases, and a channel that trusts only their fit."""
    base = tiny_base()
    config = CodecConfig(
        depth=4, size=300, shared=True, named=True, writer_layers=2, lora_rank=4, window=64
    )
    model = ZLanguageModel.create(base, config)
    table = base.model.get_input_embeddings().weight.detach()
    start_from_tokens(model.codebook, table, torch.ones(len(table)), phrases)
    channel = model.add_channel()
    deviations = table - model.codebook.mean_embedding
    with torch.no_grad():
        channel.metric.copy_(torch.linalg.inv(deviations.T @ deviations / len(table)))
        channel.strength.copy_(((deviations @ channel.metric) * deviations).sum(-1))
        channel.direct.weight.zero_()
        channel.direct.weight[0, 3] = 20.0
    model.seal()
    return model


def lanes_of(model: ZLanguageModel, lengths: list[int], *, seed: int = 1) -> Lanes:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), model.config.depth)
    codes = torch.randint(model.config.size, shape, generator=generator)
    return Hearing(model).lanes(codes, torch.tensor(lengths))


# -- hearing what was pooled ---------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 1000))
def test_the_weights_of_places_are_those_of_pooling(last: set[int], seed: int) -> None:
    book = tiny_z().codebook
    with torch.no_grad():
        noise = torch.randn(book.place_logits.shape, generator=torch.Generator().manual_seed(seed))
        book.place_logits.copy_(noise)
        ends = torch.tensor(sorted(last))
        n = int(ends[-1]) + 1
        tokens = torch.randn(1, n, 64, generator=torch.Generator().manual_seed(seed))
        pooled = book.pool(tokens, ends.unsqueeze(0))[0] - book.mean_embedding
        lengths = torch.diff(ends, prepend=torch.tensor([-1]))
        weights = weights_of_places(book.place_logits, lengths)
    weighed = weights[weights > 0].unsqueeze(-1) * (tokens[0] - book.mean_embedding)
    stood = torch.zeros_like(pooled).index_add_(0, segment_of(ends, n), weighed)
    torch.testing.assert_close(stood, pooled, rtol=1e-4, atol=1e-4)


def test_a_token_that_no_code_speaks_of_leaves_what_is_left_as_it_is() -> None:
    model = spelling_model()
    hearing = Hearing(model)
    table = model.base.model.get_input_embeddings().weight.detach()
    codes = torch.tensor([[8, 8, 91, 0]])  # code t + 1 is token t
    lanes = hearing.lanes(codes, torch.tensor([4]))
    lanes.weights.fill_(1.0)
    whole = lanes.left.clone()
    hearing.take(lanes, torch.tensor([7]))
    torch.testing.assert_close(lanes.left, whole - (table[7] - model.codebook.mean_embedding))
    before = lanes.left.clone()
    hearing.take(lanes, torch.tensor([200]))
    assert torch.equal(lanes.left, before)
    for token in (7, 90):
        hearing.take(lanes, torch.tensor([token]))
    assert float(lanes.left.abs().max()) < 1e-5
    assert lanes.place.tolist() == [4]


def test_what_is_left_never_grows() -> None:
    model = with_channel()
    hearing, lanes = Hearing(model), lanes_of(model, [3])
    for token in (7, 7, 90):
        before = float(lanes.left.norm())
        hearing.take(lanes, torch.tensor([token]))
        assert float(lanes.left.norm()) <= before
    assert lanes.said.tolist() == [[7, 7, 90]]
    assert lanes.place.tolist() == [3]


def test_a_code_is_used_up_by_the_token_it_says() -> None:
    model = spelling_model()
    hearing = Hearing(model)
    rows, table = model.codebook.table(0), model.base.model.get_input_embeddings().weight
    deviations = table.detach() - model.codebook.mean_embedding
    code_of = {t: int((rows - deviations[t]).square().sum(-1).argmin()) for t in (40, 50, 60)}
    codes = torch.tensor([[code_of[40], code_of[50], code_of[60], 0]])
    lanes = hearing.lanes(codes, torch.tensor([3]))
    hearing.take(lanes, torch.tensor([50]))
    assert lanes.used[0].argmax() == 1
    assert lanes.used[0, 1] > 0.9
    hearing.take(lanes, torch.tensor([40]))
    assert bool((lanes.used[0, :2] > 0.9).all())
    assert lanes.used[0, 2] < 0.5


# -- what it says of the next token --------------------------------------------------------------


def test_a_fresh_channel_changes_nothing() -> None:
    model = with_channel(trained=False)
    scores = torch.randn(3, model.base_vocab, generator=torch.Generator().manual_seed(0))
    scores[:, 5:9] = -torch.inf
    found = Hearing(model).weigh(scores, lanes_of(model, [1, 4, 9]))
    torch.testing.assert_close(found, scores.log_softmax(-1))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 100))
def test_scores_are_numbers_and_what_is_barred_stays_barred(lengths: list[int], seed: int) -> None:
    model = with_channel(seed=seed % 3)
    generator = torch.Generator().manual_seed(seed)
    scores = 10 * torch.randn(len(lengths), model.base_vocab, generator=generator)
    scores[:, : 200 + seed % 58] = -torch.inf  # as few as one token is left
    found = Hearing(model).weigh(scores, lanes_of(model, lengths, seed=seed))
    assert torch.equal(found.isinf(), scores.isinf())
    assert not bool(found.isnan().any())


def test_what_codes_spell_out_is_said_whatever_is_foreseen() -> None:
    model = spelling_model(phrases=[(7, 8, 7)])
    assert model.codebook.lexicon is not None
    phrase = model.codebook.lexicon.codes[7, 8, 7]
    hearing = Hearing(model)
    codes = torch.tensor([[phrase, 91, 0, 0], [8, 91, 0, 0], [phrase, 0, 0, 0]])
    lanes = hearing.lanes(codes, torch.tensor([4, 4, 3]))  # the second names 2 tokens of 4
    assert lanes.spelled.tolist() == [[7, 8, 7, 90], [-1] * 4, [7, 8, 7, -1]]
    scores = torch.zeros(3, model.base_vocab)
    scores[:, 200] = 30.0
    odds = hearing.weigh(scores, lanes).log_softmax(-1).exp()
    assert odds[0, 7] >= TRUST
    assert odds[2, 7] >= TRUST
    assert float(odds[0].sum()) == pytest.approx(1.0)
    hearing.take(lanes, torch.tensor([200, 200, 200]))  # another token was forced
    assert hearing.weigh(scores, lanes).argmax(-1).tolist()[::2] == [8, 8]
    scores[0, 8] = -torch.inf  # what is barred stays barred
    assert math.isinf(float(hearing.weigh(scores, lanes)[0, 8]))


def test_lanes_do_not_see_each_other() -> None:
    model = with_channel()
    hearing, lengths = Hearing(model), [2, 7, 1]
    scores = torch.randn(3, model.base_vocab, generator=torch.Generator().manual_seed(0))
    together = hearing.weigh(scores, lanes_of(model, lengths))
    lanes = lanes_of(model, lengths)
    for at in range(3):
        alone = hearing.weigh(scores[at : at + 1], lanes.of(torch.tensor([at])))
        torch.testing.assert_close(alone[0], together[at])
    shorter = lanes_of(model, [2])
    shorter.rows = shorter.rows[:, :2]
    shorter.energy, shorter.used = shorter.energy[:, :2], shorter.used[:, :2]
    joined = Lanes.joined([lanes, shorter])
    assert joined.rows.shape == (4, 3, 64)
    assert joined.said.shape == (4, 7)
    assert joined.energy[3, 2] == 0


def test_a_token_that_both_halves_nominate_is_learned_from_once() -> None:
    """The gradient of a scattered sum equals differences of the loss."""
    model = with_channel()
    channel, hearing = model.add_channel(), Hearing(model)
    scores = torch.randn(2, model.base_vocab, generator=torch.Generator().manual_seed(0))
    lanes, target = lanes_of(model, [3, 5]), torch.tensor([9, 200])
    channel.double()
    doubled = Lanes(
        **{
            f.name: t.double() if t.is_floating_point() else t
            for f in dataclasses.fields(lanes)
            for t in [getattr(lanes, f.name)]
        }
    )
    table = hearing._table.double()
    mean = model.codebook.mean_embedding.double()

    def loss() -> torch.Tensor:
        found = channel(scores, doubled, table.float(), mean)
        return nn.functional.cross_entropy(found.double(), target)

    for parameter in (channel.outside, channel.direct.weight):
        parameter.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(), parameter)
        step, flat = 1e-3, parameter.detach().view(-1)
        for at in range(0, len(flat), 5):
            with torch.no_grad():
                flat[at] += step
                up = loss()
                flat[at] -= 2 * step
                down = loss()
                flat[at] += step
            assert float(gradient.view(-1)[at]) == pytest.approx(
                float(up - down) / (2 * step), abs=2e-3
            )
        parameter.requires_grad_(False)


# -- spans ---------------------------------------------------------------------------------------


def test_reading_a_known_text_equals_spelling_it_token_by_token() -> None:
    model = with_channel()
    hearing = Hearing(model)
    symbols = Symbols(((1, 2, 3), (4, 5, 6), (7, 8, 9)), 32, model.codec[:4])
    literals = [Extent(4, 6)]
    voices = hearing.voices(symbols, (4, 9, 12), 14, literals=literals)
    assert voices is not None
    assert voices.owner == (0, 0, 0, 0, -1, -1, 1, 1, 1, 2, 2, 2, -1, -1)
    ids = torch.randint(3, 259, (14,), generator=torch.Generator().manual_seed(0))
    scores = torch.randn(14, model.base_vocab, generator=torch.Generator().manual_seed(1))
    forced = heard(model, voices, scores, ids)
    track = Track(voices, hearing)
    for at, token in enumerate(ids.tolist()):
        if track.lanes is None:
            expected = scores[at]
        else:
            expected = hearing.weigh(scores[at : at + 1], track.lanes)[0]
        torch.testing.assert_close(forced[at], expected)
        track.take(token)
    torch.testing.assert_close(heard(model, voices, scores, ids), forced)  # nothing was used up


@pytest.mark.parametrize(
    ("ends", "literals", "starts", "stops"),
    [
        ((3, 8), (), [0, 3], [3, 8]),
        ((3, 8), ((0, 2),), [2, 3], [3, 8]),
        ((3, 8), ((3, 5),), [0, 5], [3, 8]),
        ((3, 8), ((6, 8),), [0, 3], [3, 6]),
        ((3, 8), ((4, 5),), [0, 3], [3, 8]),
        ((4,), ((0, 2), (2, 4)), [4], [4]),
    ],
)
def test_a_literal_with_a_slot_of_its_own_belongs_to_no_symbol(ends, literals, starts, stops):
    found = segment_edges(ends, [Extent(*each) for each in literals])
    assert found == (starts, stops)


def test_symbols_without_known_segments_are_read_without_the_channel() -> None:
    model = with_channel()
    symbols = Symbols(((1, 2, 3),), 32, model.codec[:4])
    nothing = symbols[:0]
    assert lay_out(model, nothing, symbols, 4).voices is None
    assert lay_out(model, nothing, nothing, 4, ends=()).voices is None
    assert lay_out(tiny_z(), nothing, symbols, 4, ends=(4,)).voices is None
    assert lay_out(model, nothing, symbols, 4, ends=(4,)).voices is not None
    with pytest.raises(ConfigError, match="no channel"):
        Hearing(tiny_z())


def test_codes_that_are_tokens_are_spelled_by_the_channel_alone() -> None:
    """The reader is random: every token of these texts comes from the codes."""
    model = spelling_model()
    compressor, reader = ZCompressor(model), ZDecompressor(model)
    document = compressor.compress(TEXT, ratio=1.0)
    assert reader.decompress(document) == TEXT
    assert overall_fidelity(measure_fidelity(model, document, TEXT)).token_accuracy == 1.0
    del model.channel
    model.channel = None
    assert reader.decompress(document) != TEXT


def test_a_text_that_is_spelled_out_needs_no_pass_of_the_model(monkeypatch) -> None:
    tokens = text_tokenizer(tiny_base().tokenizer)
    model = spelling_model(phrases=[tuple(tokens.ids(piece)) for piece in (TEXT[3:6], " th")])
    compressor, reader = ZCompressor(model), ZDecompressor(model)
    document = compressor.compress(TEXT, ratio=2.0)
    exact = compressor.compress(TEXT, settings=CompressSettings(ratio=2.0, exact=True))
    protecting = CompressSettings(ratio=2.0, protect=("numbers",))
    kept = compressor.compress(f"{TEXT} 1234", settings=protecting)
    longer = reader.decompress(document.symbols, n_tokens=len(TEXT.encode()) + 1)
    coarse = compressor.compress(TEXT, ratio=8.0)
    guessed = reader.decompress(coarse.symbols)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr("zcontext.decompressor.generate", refuse)
    monkeypatch.setattr("zcontext.decompressor.Decoding", refuse)
    assert reader.decompress(document) == TEXT
    assert "".join(reader.stream(document)) == TEXT
    assert reader.decompress(exact) == TEXT
    assert "".join(reader.stream(exact)) == TEXT
    assert reader.decompress(kept) == f"{TEXT} 1234"
    assert reader.decompress(document.symbols, n_tokens=len(TEXT.encode())) == TEXT
    assert longer != TEXT
    # A symbol with a code to spare has left nothing out.
    spare = Symbols(
        tuple(codes for codes in document.symbols.codes if 0 in codes),
        document.symbols.size,
        document.codec[:4],
    )
    told = model.codebook.lexicon.tokens_of(spare.codes)
    assert len(told) > 4
    assert (
        reader.decompress(spare) == "".join(reader.stream(spare)) == decoded(model.tokenizer, told)
    )
    assert guessed != TEXT
    with pytest.raises(AssertionError, match="was asked"):
        reader.decompress(document, settings=GenerationSettings(temperature=1.0))
    with pytest.raises(AssertionError, match="was asked"):
        reader.decompress(coarse)
    with pytest.raises(AssertionError, match="was asked"):
        reader.decompress(coarse.symbols)  # they may have left something out


def test_batches_streams_and_single_texts_are_spelled_alike() -> None:
    model = with_channel()
    compressor = ZCompressor(model)
    documents = [
        compressor.compress(TEXT[:k], ratio=r) for k, r in ((80, 3.0), (33, 2.0), (9, 4.0))
    ]
    alone = [ZDecompressor(model, batch_size=1).decompress(d) for d in documents]
    assert ZDecompressor(model, batch_size=3).decompress_many(documents) == alone
    assert ["".join(ZDecompressor(model).stream(d)) for d in documents] == alone


def test_what_is_forced_is_what_greedy_spelling_would_say() -> None:
    """Errata rest on it: the likeliest token of the forced reading is the one decoding takes."""
    model = with_channel()
    document = ZCompressor(model).compress(TEXT, ratio=3.0)
    (span,), (layout,) = document.spans, span_layouts(model, document)
    told = ZDecompressor(model).decompress(document)
    ids = list(told.encode())
    if len(ids) == len(span.tokens):
        assert read_span(model, layout, ids).accuracy == 1.0


@pytest.mark.parametrize("protect", [(), ("numbers",)])
def test_exact_documents_are_exact_with_a_channel_too(protect: tuple[str, ...]) -> None:
    model, text = with_channel(), f"{TEXT} 1234 {TEXT}"
    chosen = CompressSettings(ratio=3.0, exact=True, protect=protect)
    document = ZCompressor(model).compress(text, settings=chosen)
    assert ZDecompressor(model).decompress(document) == text


# -- on disk -------------------------------------------------------------------------------------


def test_a_bundle_keeps_the_channel_and_names_it_in_the_codec(tmp_path: Path, monkeypatch) -> None:
    model, plain = with_channel(), tiny_z()
    assert model.codec != plain.codec
    save_bundle(model, tmp_path / "heard")
    monkeypatch.setattr("zcontext.bundle.load_base", lambda *_, **__: tiny_base())
    again = load_bundle(tmp_path / "heard")
    assert again.codec == model.codec
    document = ZCompressor(model).compress(TEXT, settings=CompressSettings(ratio=3.0))
    assert ZDecompressor(again).decompress(document) == ZDecompressor(model).decompress(document)
    part = tmp_path / "heard" / "channel.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(BundleError, match="altered or cut short"):
        load_bundle(tmp_path / "heard")


def test_a_channel_of_another_shape_is_refused(tmp_path: Path, monkeypatch) -> None:
    model = with_channel()
    model.channel = Channel(hidden_size=32, vocab_size=model.base_vocab)
    save_bundle(model, tmp_path / "foreign")
    monkeypatch.setattr("zcontext.bundle.load_base", lambda *_, **__: tiny_base())
    with pytest.raises(BundleError, match="channel does not fit"):
        load_bundle(tmp_path / "foreign")
