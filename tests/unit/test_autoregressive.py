"""The autoregressive writer: what it draws, where it points, and the laws that documents keep."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zcontext.bundle
from tiny import tiny_base, tiny_z
from zcontext.bundle import load_bundle, read_manifest, save_bundle
from zcontext.composer import MAX_PACE
from zcontext.composing import Composition, Passage
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.errors import BundleError, ConfigError, ModelError
from zcontext.pointing import Allowance, Pointer, Request, price_of
from zcontext.readers import ZDecompressor
from zcontext.relaxation import squared_distances, straight_through
from zcontext.segmentation import usual_weight, weigh
from zcontext.spans import ZDocument
from zcontext.spelling import Speller, crowding, draw_noise, with_end
from zcontext.store import MemoryStore

BY_STEPS = CompressSettings(window=32, writer="autoregressive")
STORY = (
    "Anna lives in Oslo. She is 31 years old and builds bridges! In 2019 she moved there from "
    "Lima, where her father had a shop. Why? Nobody asked her.\n\nThe shop is closed now. "
)
TEXTS = [STORY, "Short.", STORY * 2, "", "x", STORY[:77], "Ωmega and 中文 and 🚀🚀🚀 fly."]


def composing_z(*, seed: int = 0, depth: int = 3, size: int = 32, shared: bool = False):
    """A codec whose composer has random values too, so that pace and END vary."""
    model = tiny_z(seed=seed, depth=depth, size=size)
    if shared:
        from zcontext.model import ZLanguageModel

        config = dataclasses.replace(model.config, shared=True)
        model = ZLanguageModel.create(tiny_base(seed=seed), config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    composer = model.add_composer()
    with torch.no_grad():
        for parameter in composer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for parameter in model.parameters_of(("compose",)).values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        composer.to_end.bias.fill_(-1.5)
    model.seal()
    return model


@pytest.fixture(scope="module")
def model():
    return composing_z()


@pytest.fixture(scope="module")
def compressor(model):
    return ZCompressor(model)


def passage_of(model, texts, *, price=20.0, depth=3):
    ids = torch.tensor([list(text.encode()) for text in texts])
    with model.using("compress"), torch.no_grad():
        state = model.read(ids, torch.ones_like(ids))
    n = ids.shape[1]
    requests = [Request(price, n)] * len(ids)
    rows = [range(n)] * len(ids)
    return Passage.of(state, rows, requests, codebook=model.codebook, start=0, width=n)


def drawn(model, texts, *, seed=0, depth=3, **options):
    passage = passage_of(model, texts, **options)
    seeds = torch.Generator().manual_seed(seed)
    with model.using("compose"):
        return passage, Composition(model, passage, depth=depth, seeds=seeds).run()


# The distribution


def test_at_depth_one_a_step_is_one_softmax_over_the_codes_and_end():
    """The setting of arXiv 2603.25340: nothing else has a logit."""
    model = composing_z(depth=1)
    latents = torch.randn(2, 5, model.hidden_size)
    odds = torch.randn(2, 5)
    distances = squared_distances(latents - model.codebook.mean_embedding, model.codebook.table(0))
    scores = model.composer.scores(distances, stage=0)
    logits = with_end(scores, odds)
    assert logits.shape == (2, 5, model.config.size + 1)
    assert torch.allclose(logits.exp().sum(-1), torch.ones(2, 5), atol=1e-5)
    assert torch.allclose(logits[..., -1].exp(), odds.sigmoid(), atol=1e-6)
    speller = Speller(model.composer, model.codebook, 1)
    codes = torch.randint(model.config.size, (2, 5, 1))
    said, ending = speller.nats(latents, odds, codes)
    whole = -logits.gather(-1, codes).squeeze(-1)
    assert torch.allclose(said[..., 0] + ending[..., 1], whole, atol=1e-5)
    assert torch.allclose(ending[..., 0], -logits[..., -1], atol=1e-5)


def test_draws_follow_the_distribution_stage_by_stage():
    model = composing_z(depth=2, size=4)
    speller = Speller(model.composer, model.codebook, 2)
    n = 40_000
    latent, odds = torch.randn(model.hidden_size) * 0.02, torch.tensor(-0.3)
    latents, all_odds = latent.expand(n, -1), odds.expand(n)
    seeds = torch.Generator().manual_seed(1)
    noise = draw_noise((n,), depth=2, size=4, seeds=seeds)
    codes, ended = speller.draw(latents, all_odds, noise)
    assert float(ended.float().mean()) == pytest.approx(float(odds.sigmoid()), abs=0.01)
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    said, _ = speller.nats(latent.expand(16, -1), odds.expand(16), pairs)
    wanted = (-said.sum(-1)).exp()
    found = torch.bincount(codes[~ended] @ torch.tensor([4, 1]), minlength=16)
    assert torch.allclose(found / (~ended).sum(), wanted, atol=0.015)


def test_without_noise_the_nearest_code_is_chosen_and_end_where_it_is_likelier_than_all_codes():
    model = composing_z()
    speller = Speller(model.composer, model.codebook, 3)
    latents, odds = torch.randn(6, model.hidden_size), torch.linspace(-2, 2, 6)
    codes, ended = speller.greedy(latents, odds)
    assert torch.equal(codes, model.codebook.nearest(latents, depth=3))
    silence = [torch.zeros(6, size + 1) for size in (32, 31, 31)]
    likeliest, _ = speller.draw(latents, torch.full((6,), -9.0), silence)
    assert torch.equal(codes, likeliest)
    assert ended.tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize("temperature", [0.2, 0.8])
def test_relaxed_rows_are_those_drawn_with_the_gradient_of_the_softmax_that_drew_them(temperature):
    """Law E, at equal noise: one stage against straight-through written out."""
    model = composing_z(depth=1)
    model.codebook.requires_grad_(False)
    speller = Speller(model.composer, model.codebook, 1)
    latents = torch.randn(4, 7, model.hidden_size)
    odds = torch.randn(4, 7)
    noise = draw_noise((4, 7), depth=1, size=32, seeds=torch.Generator().manual_seed(2))
    codes, _ = speller.draw(latents, odds.masked_fill(odds > -99, -30.0), noise)
    weight = torch.randn(4, 7, model.hidden_size)

    def gradient(rows):
        leaf = latents.clone().requires_grad_()
        found = rows(leaf)
        (found * weight).sum().backward()
        return found.detach(), leaf.grad

    def by_hand(leaf):
        table = model.codebook.table(0)
        distances = squared_distances(leaf - model.codebook.mean_embedding, table)
        scores = model.composer.scores(distances, stage=0)
        noisy = with_end(scores, torch.full_like(odds, -30.0)) + noise[0]
        return straight_through(noisy, temperature=temperature)[..., :32] @ table

    def relaxed(leaf):
        chosen = speller.relax(
            leaf, torch.full_like(odds, -30.0), codes, noise=noise, temperature=temperature
        )
        return chosen.rows[..., 0, :]

    (one, gradient_one), (other, gradient_other) = gradient(relaxed), gradient(by_hand)
    assert torch.allclose(one, other, atol=1e-5)
    assert torch.allclose(gradient_one, gradient_other, atol=1e-4, rtol=1e-3)
    assert gradient_one.abs().sum() > 0


def test_crowding_is_none_where_codes_are_used_alike_and_has_a_gradient_elsewhere():
    real = torch.ones(4, dtype=torch.bool)
    assert float(crowding([torch.eye(4)], real, shared=False)) == pytest.approx(0, abs=1e-6)
    logits = torch.tensor([[3.0, 0.0, 0.0, 0.0]] * 4, requires_grad=True)
    crowded = crowding([logits.softmax(-1)] * 2, real, shared=True)
    assert float(crowded.detach()) > 0.4
    crowded.backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 0]) > 0 > float(logits.grad[0, 1])
    everything_else = torch.tensor([True, False, False, False])
    padded = torch.eye(4).clone()
    assert float(crowding([padded], everything_else, shared=False)) == pytest.approx(math.log(4))


# The pointer


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 30), min_size=1, max_size=60),
    st.floats(0.5, 200),
    st.integers(1, 70),
    st.lists(st.floats(1 / MAX_PACE, MAX_PACE), min_size=1, max_size=8),
    st.sets(st.integers(1, 59)),
)
def test_ends_rise_strictly_to_the_last_token_and_the_cap_is_kept(bits, price, most, paces, stops):
    n = len(bits)
    inside = sorted(stop for stop in stops if stop < n)
    pointer = Pointer(torch.tensor(bits), Request(price, most), stops=inside)
    for step in range(n + 1):
        if pointer.stopped:
            break
        pointer.advance(paces[step % len(paces)])
    assert pointer.stopped
    ends = pointer.ends
    assert ends == sorted(set(ends))
    assert ends[-1] == n
    assert 1 <= len(ends) <= min(n, most)
    if len(ends) < most:  # with room for it, no segment reaches across a stop
        for begin, end in zip([0, *ends], ends, strict=False):
            assert not any(begin < stop < end for stop in inside)


def test_at_the_pace_asked_for_a_symbol_stands_for_its_price():
    bits = torch.rand(400, generator=torch.Generator().manual_seed(0)) * 8
    total = float(weigh(bits).sum())
    for price in (10.0, 20.0, 40.0):
        pointer = Pointer(bits, Request(price, 400))
        while not pointer.stopped:
            pointer.advance(1.0)
        assert abs(len(pointer.ends) - total / price) <= 1
        slower = Pointer(bits, Request(price, 400))
        while not slower.stopped:
            slower.advance(0.5)
        assert len(slower.ends) > 1.8 * len(pointer.ends)


def test_a_cap_below_what_the_price_would_take_raises_the_price():
    bits = torch.full((100,), 4.0)
    pointer = Pointer(bits, Request(9.0, 5))
    while not pointer.stopped:
        pointer.advance(1.0)
    assert pointer.ends == [20, 40, 60, 80, 100]


def test_dense_windows_are_asked_for_as_much_a_bit_as_predictable_ones():
    allowance = Allowance(300, None, 75, False, 4.0)
    price = price_of(4.0, mean_surprisal=4.0)
    assert allowance.next(100, windows_left=2) == Request(price, 100)
    assert allowance.next(200, windows_left=0) == Request(price, 200)
    capped = Allowance(300, None, 10, True, 4.0)
    first = capped.next(100, windows_left=2)
    assert first.most == 8
    capped.spend(8, n_tokens=100)
    assert capped.next(100, windows_left=1).most == 1
    capped.spend(1, n_tokens=100)
    assert capped.next(100, windows_left=0).most == 1


# One step after another, and all at once


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rollout_and_replay_give_the_same_symbols_under_the_same_noise(seed, shared):
    from zcontext.training.retracing import retrace

    model = composing_z(seed=seed, shared=shared)
    passage, found = drawn(model, [STORY[:60], STORY[60:120], STORY[30:90]], seed=seed)
    assert found.path is not None
    assert found.noise is not None
    path = found.path
    assert len(set(map(len, found.codes))) > 1 or bool(path.ended.any())
    with model.using("compose"), torch.no_grad():
        traced = retrace(model, passage, path)
    speller = Speller(model.composer, model.codebook, 3)
    codes, ended = speller.draw(traced.latents, traced.odds, found.noise)
    assert torch.equal(codes[path.real], path.codes[path.real])
    assert torch.equal(ended & path.real, path.ended)
    # And the pointer is led to where it stood.
    pointers = passage.pointers(depth=3)
    for row, pointer in enumerate(pointers):
        for step in range(int(path.real[row].sum())):
            pointer.advance(float(traced.paces[row, step]))
            assert pointer.ends[-1] - 1 == int(path.ends[row, step])


def test_the_gradient_reaches_the_pace_through_where_segments_end():
    from zcontext.training.retracing import retrace

    model = composing_z()
    passage, found = drawn(model, [STORY[:60]])
    assert found.path is not None
    with model.using("compose"):
        traced = retrace(model, passage, found.path)
    weight = torch.zeros_like(traced.latents)
    weight[:, 1] = 1.0
    (gradient,) = torch.autograd.grad((traced.latents * weight).sum(), model.composer.to_pace.bias)
    assert float(gradient.abs()) > 0


def test_the_first_slot_is_never_the_end(model):
    with torch.no_grad():
        certain = composing_z(seed=4)
        certain.composer.to_end.bias.fill_(50.0)
    _, found = drawn(certain, [STORY[:60], STORY[60:120]])
    assert [len(codes) for codes in found.codes] == [1, 1]
    assert found.ends == ((60,), (60,))
    document = ZCompressor(certain).compress(STORY, settings=BY_STEPS, ratio=1)
    assert document.n_symbols == len(document.spans)


# Documents


def test_the_same_input_gives_the_same_bytes(compressor):
    one, other = (compressor.compress(STORY, settings=BY_STEPS).to_bytes() for _ in range(2))
    assert one == other
    assert ZCompressor(composing_z()).compress(STORY, settings=BY_STEPS).to_bytes() == one


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("memory", "context"), [(0, 0), (6, 8)])
def test_a_batch_gives_the_same_bytes_as_one_by_one(model, batch_size, memory, context):
    chosen = dataclasses.replace(BY_STEPS, memory=memory, context=context)
    batched = ZCompressor(model, batch_size=batch_size)
    alone = [batched.compress(text, settings=chosen) for text in TEXTS]
    assert batched.compress_many(TEXTS, settings=chosen) == alone
    assert batched.compress_many(TEXTS[::-1], settings=chosen) == alone[::-1]


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=120), st.floats(1, 64), st.integers(8, 40))
def test_any_text_becomes_a_document_that_is_whole_and_is_read_like_any_other(
    compressor, text, ratio, window
):
    text = text.encode("utf-8", "ignore").decode()
    chosen = dataclasses.replace(BY_STEPS, window=window, on_symbols="escape")
    document = compressor.compress(text, ratio=ratio, settings=chosen)
    assert document.n_tokens == compressor.count_tokens(text)
    assert ZDocument.from_bytes(document.to_bytes()) == document
    for span in document.spans:
        assert span.ends is not None
        assert len(span.ends) == len(span.symbols) <= len(span.tokens)
    vocabulary = compressor.vocabulary
    if document.n_symbols:
        assert vocabulary.parse(vocabulary.render(document.symbols)) == document.symbols


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(1, 400))
def test_a_cap_is_never_passed(compressor, cap, n_chars):
    text = (STORY * 3)[:n_chars]
    document = compressor.compress(text, max_symbols=cap, settings=BY_STEPS)
    assert 1 <= document.n_symbols <= cap


def test_fewer_symbols_come_of_a_higher_ratio_and_a_higher_price(model):
    steady = ZCompressor(tiny_z())
    steady.model.add_composer()
    steady.model.seal()
    for name, values in (("ratio", (2.0, 4.0, 8.0, 32.0)), ("bits_per_symbol", (5.0, 20.0, 80.0))):
        counts = [
            steady.compress(STORY * 2, settings=BY_STEPS, **{name: value}).n_symbols
            for value in values
        ]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > 2 * counts[-1]


def test_a_fresh_composer_writes_what_the_one_pass_writer_writes():
    """Where distillation begins: segments alike, and most codes the same."""
    model = tiny_z()
    model.add_composer()
    model.seal()
    compressor = ZCompressor(model)
    text = STORY[:60]
    chosen = CompressSettings(window=64, ratio=4.0)
    one = compressor.compress(text, settings=chosen)
    other = compressor.compress(text, settings=chosen, writer="autoregressive")
    # The head guesses as many bits for every token: more than text of that mean draws.
    dearer = float(weigh(torch.tensor(5.0))) / usual_weight(5.0)
    assert one.n_symbols <= other.n_symbols <= dearer * one.n_symbols + 1
    assert one.symbols.codes[0] == other.symbols.codes[0]


def test_the_decompressor_reads_it_like_any_other(compressor):
    document = compressor.compress(STORY[:40], settings=BY_STEPS)
    text = ZDecompressor(compressor.model).decompress(document)
    assert isinstance(text, str)
    exact = compressor.compress(STORY, settings=dataclasses.replace(BY_STEPS, exact=True))
    assert ZDecompressor(compressor.model).decompress(exact) == STORY


def test_what_reads_back_badly_is_written_again_and_comes_to_an_end(compressor):
    chosen = dataclasses.replace(BY_STEPS, min_fidelity=1.0, on_low_fidelity="finer", ratio=8.0)
    document = compressor.compress(STORY[:60], settings=chosen)
    plain = compressor.compress(STORY[:60], settings=dataclasses.replace(BY_STEPS, ratio=8.0))
    assert document.n_symbols > plain.n_symbols


def test_literals_stand_between_segments_and_are_not_written(compressor):
    chosen = dataclasses.replace(BY_STEPS, protect=("numbers",), window=64)
    document = compressor.compress(STORY, settings=chosen)
    kept = [each.text for span in document.spans for each in span.literals]
    assert kept == [" 31", " 2019"]
    for span in document.spans:
        for each in span.literals:
            first = span.ends and min((e for e in span.ends if e > each.tokens.start), default=0)
            assert first is None or first == 0 or first >= each.tokens.end


def test_memory_and_a_question_change_what_is_written(compressor):
    plain = compressor.compress(STORY, settings=BY_STEPS)
    remembered = compressor.compress(STORY, settings=dataclasses.replace(BY_STEPS, memory=8))
    assert plain.spans[0] == remembered.spans[0]
    assert plain.spans[1:] != remembered.spans[1:]
    asked = compressor.compress(STORY, settings=BY_STEPS, question="Where is the shop?")
    assert asked.n_tokens == plain.n_tokens
    assert asked.spans != plain.spans


def test_the_stream_is_the_document_span_by_span(compressor):
    document = compressor.compress(STORY, settings=BY_STEPS, max_symbols=20)
    assert tuple(compressor.stream(STORY, settings=BY_STEPS, max_symbols=20)) == document.spans


def test_another_composer_is_another_entry_in_a_store(model):
    store = MemoryStore()
    ZCompressor(model, store=store).compress(STORY, settings=BY_STEPS)
    ZCompressor(model, store=store).compress(STORY, settings=BY_STEPS)
    assert len(store) == 1
    other = composing_z()
    with torch.no_grad():
        other.composer.slot.add_(0.1)
    other.seal()
    assert other.codec == model.codec
    ZCompressor(other, store=store).compress(STORY, settings=BY_STEPS)
    assert len(store) == 2


# The part of the bundle


def test_a_codec_without_it_says_what_to_do(tiny_model):
    plain = ZCompressor(tiny_model)
    with pytest.raises(ConfigError, match=r"part 'compose'.*autoregress\.toml.*one-pass") as caught:
        plain.compress(STORY, writer="autoregressive")
    assert caught.value.field == "writer"
    with pytest.raises(ConfigError, match="one of one-pass, autoregressive"):
        CompressSettings(writer="both")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"part 'compose'.*zcontext train"):
        Composition(tiny_model, passage_of(tiny_model, ["abc"]), depth=3)


def test_it_is_saved_and_loaded_and_leaves_the_codec_as_it_was(model, tmp_path, monkeypatch):
    monkeypatch.setattr(zcontext.bundle, "load_base", lambda *a, **k: tiny_base())
    save_bundle(tiny_z(), tmp_path / "without")
    save_bundle(model, tmp_path / "with")
    assert "compose" not in read_manifest(tmp_path / "without")["parts"]
    assert "compose" in read_manifest(tmp_path / "with")["parts"]
    plain, loaded = load_bundle(tmp_path / "without"), load_bundle(tmp_path / "with")
    assert plain.codec == loaded.codec == model.codec == tiny_z().codec
    assert plain.composer is None
    assert loaded.composer is not None
    assert loaded.composer.digest == model.composer.digest
    document = ZCompressor(model).compress(STORY, settings=BY_STEPS)
    assert ZCompressor(loaded).compress(STORY, settings=BY_STEPS) == document
    # Spans that it wrote are read by a codec that cannot write them.
    assert isinstance(ZDecompressor(plain).decompress(document.symbols), str)
    save_bundle(loaded, tmp_path / "again")
    name = "compose.safetensors"
    assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_damaged_or_foreign_part_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(zcontext.bundle, "load_base", lambda *a, **k: tiny_base())
    save_bundle(model, tmp_path / "b")
    path = tmp_path / "b" / "compose.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match="compose"):
        load_bundle(tmp_path / "b")
    path.unlink()
    with pytest.raises(BundleError, match="compose"):
        load_bundle(tmp_path / "b")


def test_adding_it_changes_no_pass_of_the_others(tiny_model):
    model = tiny_z()
    before = ZCompressor(model).compress(STORY)
    learning = [n for n, p in model.base.model.named_parameters() if p.requires_grad]
    model.add_composer()
    assert ZCompressor(model).compress(STORY) == before
    assert [n for n, p in model.base.model.named_parameters() if p.requires_grad] == learning
    assert model.adapters.role is None
    ids = torch.tensor([[5, 6, 7]])
    plain = tiny_base()
    with torch.no_grad(), model.using(None):
        assert torch.equal(model.base.model(ids).logits, plain.model(ids).logits)
    assert isinstance(model.composer, nn.Module)


# Doors


def test_the_command_line_asks_for_it(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from zcontext.cli import app, engines

    asked = []

    class Opened:
        vocabulary = ZCompressor(tiny_z()).vocabulary

        def compressor(self, *, store=None):
            return self

        def compress_many(self, texts, *, settings, progress=False):
            asked.append(settings.writer)
            return [ZCompressor(composing_z()).compress(text, settings=settings) for text in texts]

    monkeypatch.setattr(engines, "open_engines", lambda *options: Opened())
    path = tmp_path / "a.txt"
    path.write_text(STORY)
    arguments = ["compress", str(path), "--format", "symbols"]
    plain = CliRunner().invoke(app, arguments)
    by_steps = CliRunner().invoke(app, [*arguments, "--writer", "autoregressive"])
    assert (plain.exit_code, by_steps.exit_code) == (0, 0)
    assert asked == ["one-pass", "autoregressive"]
    assert plain.stdout != by_steps.stdout


def test_the_benchmark_compares_both_at_equal_numbers_of_symbols(compressor, monkeypatch):
    import importlib.util
    from pathlib import Path
    from types import SimpleNamespace

    path = Path(__file__).parents[2] / "benchmarks" / "writers.py"
    spec = importlib.util.spec_from_file_location("writers", path)
    assert spec is not None
    assert spec.loader is not None
    writers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writers)
    texts = [STORY[:40], STORY[40:90], "aaaa bbbb " * 4]
    options = SimpleNamespace(tokens=64, repeats=1)
    bits = [writers.surprisal(compressor, text) for text in texts]
    row = writers.compare(compressor, texts, bits, options, 4.0)
    assert row["texts"] == 3
    assert 0 <= row["codes_alike"] <= 1
    assert row["dense"]["bits_per_token"] >= row["predictable"]["bits_per_token"]
    for writer in ("autoregressive", "one-pass"):
        assert 0 <= row[writer]["token_accuracy"] <= 1
        assert row["seconds_per_symbol"][writer] > 0
