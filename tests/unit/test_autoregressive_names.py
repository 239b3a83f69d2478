"""The autoregressive writer in a codec of names: it says how far and when to end, names are looked
up as the one-pass writer looks them up.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_names import (
    DEPTH,
    STORY,
    composed,
    ids_of,
    naming_z,
    passage_of,
)
from zcontext.channel import TRUST
from zcontext.composer import MAX_PACE
from zcontext.compressor import ZCompressor
from zcontext.config import CodecConfig, CompressSettings
from zcontext.model import ZLanguageModel
from zcontext.naming import place_symbols
from zcontext.pointing import Phrasing, Pointer, Request, price_of
from zcontext.segmentation import weigh
from zcontext.spans import ZDocument
from zcontext.spelling import Namer, with_end
from zcontext.tokenization import text_tokenizer
from zcontext.training.autoregress import Autoregress, AutoregressConfig, one_pass_path
from zcontext.training.data import build_batch
from zcontext.training.objective import StepOutput
from zcontext.training.retracing import retrace

BY_STEPS = CompressSettings(window=40, writer="autoregressive")
TEXTS = [STORY, "Short.", STORY * 2, "", "x", STORY[:77], "Ωmega and 中文 and 🚀🚀🚀 fly."]


@pytest.fixture(scope="module")
def model() -> ZLanguageModel:
    return naming_z()


@pytest.fixture(scope="module")
def endless() -> ZLanguageModel:
    """END is never chosen."""
    return naming_z(ends=-30.0)


def segments(document: ZDocument) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Codes of every symbol and the tokens of its segment; there must be no literals."""
    found = []
    for span in document.spans:
        assert span.ends is not None
        for codes, (a, b) in zip(span.symbols.codes, pairwise([0, *span.ends]), strict=True):
            found.append((codes, (span.tokens.start + a, span.tokens.start + b)))
    return found


# What is written


@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.0])
def test_where_all_phrases_fit_the_symbols_asked_for_all_of_the_text_is_named(endless, ratio):
    document = ZCompressor(endless).compress(STORY * 2, settings=BY_STEPS, ratio=ratio)
    lexicon = endless.codebook.lexicon
    assert lexicon.tokens_of(document.symbols.codes) == ids_of(endless, STORY * 2)[0].tolist()


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=80), st.floats(1, 32))
def test_a_segment_of_no_more_phrases_than_a_symbol_has_names_is_named_token_for_token(
    endless, text, ratio
):
    model = endless
    text = text.encode("utf-8", "ignore").decode()
    chosen = dataclasses.replace(BY_STEPS, on_symbols="escape")
    compressor, lexicon = ZCompressor(model), model.codebook.lexicon
    document = compressor.compress(text, settings=chosen, ratio=ratio)
    ids = text_tokenizer(model.tokenizer).ids(
        compressor.vocabulary.guard(text, on_symbols="escape")
    )
    for codes, (start, end) in segments(document):
        own = ids[start:end]
        if sum(lexicon.cut(torch.tensor([own]))[0].tolist()) <= DEPTH:
            assert lexicon.tokens_of([codes]) == own
        else:
            assert all(codes)  # none is wasted


@pytest.mark.parametrize("price", [4.0, 12.0, 40.0])
def test_codes_are_the_one_pass_writers_where_segments_end_alike(endless, price):
    model = endless
    ids = ids_of(model, STORY[:60], STORY[60:120], STORY[30:90])
    passage = passage_of(model, ids, price=price)
    found = composed(model, passage)
    for row, (codes, ends) in enumerate(zip(found.codes, found.ends, strict=True)):
        with model.using("compress"), torch.no_grad():
            own = ids[row : row + 1]
            state = model.read(own, torch.ones_like(own))
            last = torch.tensor([ends]) - 1
            latents = model.write(state, last, torch.ones_like(last))
            wanted = model.quantise(latents, own, last, state.surprisal)
        assert torch.equal(torch.tensor(codes), wanted.codes[0])


def test_where_names_are_missing_the_phrases_that_have_one_are_named_in_order():
    model = naming_z(complete=False, ends=-30.0)
    lexicon = model.codebook.lexicon
    ids = ids_of(model, STORY[:60])
    found = composed(model, passage_of(model, ids, price=3.0))
    for codes, (a, b) in zip(found.codes[0], pairwise([0, *found.ends[0]]), strict=True):
        own = ids[0, a:b].tolist()
        cut = [*lexicon.cut(torch.tensor([own]))[0].nonzero().squeeze(-1).tolist(), len(own)]
        names = [tuple(own[x:y]) for x, y in pairwise(cut)]
        if len(names) <= DEPTH:
            wanted = [lexicon.codes[name] for name in names if name in lexicon.codes]
            said = iter(codes)
            assert all(code in said for code in wanted)


def test_a_window_that_is_all_kept_as_text_has_no_symbol(model):
    chosen = dataclasses.replace(BY_STEPS, protect=("numbers",))
    assert ZCompressor(model).compress("2019", settings=chosen).n_symbols == 0


@pytest.mark.parametrize("protect", [(), ("numbers",)])
@pytest.mark.parametrize("ratio", [1.0, 2.5, 6.0, 20.0])
def test_no_segment_ends_within_a_phrase(model, ratio, protect):
    chosen = dataclasses.replace(BY_STEPS, window=64, protect=protect)
    document = ZCompressor(model).compress(STORY, settings=chosen, ratio=ratio)
    ids = ids_of(model, STORY)[0]
    for span in document.spans:
        assert span.ends is not None
        edges = {at for each in span.literals for at in (each.tokens.start, each.tokens.end)}
        own = ids[span.tokens.start : span.tokens.end].unsqueeze(0)
        starts = model.codebook.cut(own, [edges])[0].tolist()
        assert all(starts[end] for end in span.ends[:-1])


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_batch_gives_the_same_bytes_as_one_by_one(complete, batch_size):
    model = naming_z(complete=complete)
    batched = ZCompressor(model, batch_size=batch_size)
    for memory, context in ((0, 0), (6, 8)):
        chosen = dataclasses.replace(BY_STEPS, memory=memory, context=context)
        alone = [batched.compress(text, settings=chosen) for text in TEXTS]
        assert batched.compress_many(TEXTS, settings=chosen) == alone
        assert batched.compress_many(TEXTS[::-1], settings=chosen) == alone[::-1]


# The pointer


def led(pointer: Pointer, paces: list[float]) -> list[float]:
    """Lead a pointer to its end; where it stood behind each segment."""
    places = []
    for step in range(pointer.n_tokens + 1):
        if pointer.stopped:
            break
        pointer.advance(paces[step % len(paces)])
        places.append(pointer.place)
    assert pointer.stopped
    return places


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.booleans()), min_size=1, max_size=60),
    st.floats(0.5, 200),
    st.integers(1, 70),
    st.lists(st.floats(1 / MAX_PACE, MAX_PACE), min_size=1, max_size=8),
    st.integers(1, 8),
    st.data(),
)
def test_through_phrases_ends_rise_to_the_last_token_at_ends_of_phrases_and_keep_every_cap(
    tokens, price, most, paces, n_names, data
):
    bits, starts = torch.tensor([each for each, _ in tokens]), [starts for _, starts in tokens]
    n, starts[0] = len(tokens), True
    edges = [at for at in range(1, n) if starts[at]]
    stops = sorted(data.draw(st.sets(st.sampled_from(edges)))) if edges else []
    request, phrasing = Request(price, most), Phrasing(torch.tensor(starts), n_names)
    pointer = Pointer(bits, request, stops=stops, phrasing=phrasing)
    places = led(pointer, paces)
    ends = pointer.ends
    assert ends == sorted(set(ends))
    assert ends[-1] == n
    assert 1 <= len(ends) <= min(sum(starts), most)
    assert all(starts[end] for end in ends[:-1])
    assert places == sorted(places)
    assert places[-1] == pointer.total == pytest.approx(float(weigh(bits).sum()))
    if len(ends) < most:  # with room for it, no segment reaches across a stop
        for begin, end in pairwise([0, *ends]):
            assert not any(begin < stop < end for stop in stops)
    if sum(starts) <= n_names * pointer.total / pointer.price:
        # All can be named: only the last segment that is allowed may be too long for it.
        for begin, end in pairwise([0, *ends[: most - 1]]):
            assert sum(starts[begin:end]) <= n_names


def test_a_hair_less_than_a_whole_number_of_symbols_names_as_many_phrases():
    """Half of the window's bits twice over is 1.9999999999999998 symbols, and two names."""
    bits = torch.tensor([2.1975389196241506e-09, 0.0, 3.0, 3.0, 2.1975389196241506e-09])
    starts = torch.tensor([True, True, False, False, False])
    total = float(weigh(bits).cumsum(0)[-1])
    request = Request(math.nextafter(total / 2, math.inf), 5)
    pointer = Pointer(bits, request, phrasing=Phrasing(starts, 1))
    assert total / pointer.price < 2
    led(pointer, [1.0])
    assert pointer.ends == [1, 5]


def test_shares_that_sum_to_a_hair_more_than_the_whole_lead_no_pointer_back():
    """Five sixths of six phrases are named: 5 times 1.2 bits is 6.000000000000001."""
    starts = torch.tensor([True, *[False] * 6, *[True] * 5])
    request, phrasing = Request(6.0, 5), Phrasing(starts, 5)
    pointer = Pointer(torch.zeros(12), request, stops=[7, 8, 9, 11], phrasing=phrasing)
    places = led(pointer, [1.0])
    assert places == sorted(places)
    assert places[-1] == pointer.total == 6.0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 8),
    st.data(),
)
def test_at_the_pace_asked_for_segments_end_where_the_one_pass_writer_ends_them(
    tokens, n_names, data
):
    bits, starts = torch.tensor([each for each, _ in tokens]), [starts for _, starts in tokens]
    starts[0] = True
    n_symbols = data.draw(st.integers(1, sum(starts)))
    request = Request(float(weigh(bits).sum()) / n_symbols, len(tokens))
    pointer = Pointer(bits, request, phrasing=Phrasing(torch.tensor(starts), n_names))
    led(pointer, [1.0])
    config = CodecConfig(depth=n_names, size=64, shared=True, named=True)
    told = torch.tensor([starts])
    wanted = place_symbols(config, bits.unsqueeze(0), n_symbols, starts=told)[0] + 1
    assert pointer.ends == wanted.tolist()


def test_a_segment_that_its_symbol_cannot_hold_ends_where_it_can_and_the_pointer_stands_there():
    phrasing = Phrasing(torch.ones(40, dtype=torch.bool), 4)
    pointer = Pointer(torch.full((40,), 4.0), Request(14.0, 40), phrasing=phrasing)
    before = pointer.n_left  # at 3.5 bits a phrase
    assert before == 10.0
    pointer.advance(4.0)
    assert pointer.ends == [4]
    assert pointer.n_left == 9.0


# Drawing


def test_only_end_is_drawn_and_as_often_as_its_odds_say(model):
    namer, n = Namer(model.codebook, DEPTH), 20_000
    odds = torch.tensor(-0.3).expand(n, 1)
    noise = namer.noise(odds.shape, torch.Generator().manual_seed(1))
    assert [tuple(each.shape) for each in noise] == [(n, 1, 2)]
    ids = ids_of(model, STORY[:3]).expand(n, -1)
    wording = passage_of(model, ids[:1]).wording(torch.tensor([[2]]))
    wording = dataclasses.replace(
        wording,
        ids=ids,
        tokens=wording.tokens.expand(n, -1, -1),
        ends=wording.ends.expand(n, -1),
        surprisal=wording.surprisal.expand(n, -1),
    )
    latents = torch.zeros(n, 1, model.hidden_size)
    codes, ended = namer.draw(latents, odds, noise, wording=wording)
    assert float(ended.float().mean()) == pytest.approx(float(odds[0].sigmoid()), abs=0.01)
    assert len(codes.flatten(0, 1).unique(dim=0)) == 1


@pytest.mark.parametrize("temperature", [0.2, 0.8])
def test_relaxed_names_are_those_named_with_the_gradients_of_their_latent_and_of_end(
    model, temperature
):
    """Law E at equal noise, for the one choice that is drawn."""
    namer, size = Namer(model.codebook, DEPTH), model.config.size
    latents = torch.randn(2, 5, model.hidden_size, requires_grad=True)
    odds = torch.randn(2, 5, requires_grad=True)
    codes = torch.randint(size, (2, 5, DEPTH))
    noise = namer.noise((2, 5), torch.Generator().manual_seed(2))
    relaxed = namer.relax(latents, odds, codes, noise=noise, temperature=temperature)
    rows = model.codebook.rows_of(codes)
    assert torch.allclose(relaxed.rows, rows, atol=1e-6)
    weight = torch.randn(2, 5, model.hidden_size)
    heard = model.codebook.heard(relaxed.rows)
    found = torch.autograd.grad((heard * weight).sum(), [latents, odds])
    wanted = weight * model.codebook.loudness.mean(0)
    assert torch.allclose(found[0], wanted, atol=1e-5)
    said = ((with_end(torch.zeros(2, 5, 1), odds) + noise[0]) / temperature).softmax(-1)[..., 0]
    value = ((rows * model.codebook.loudness).sum(-2) * weight).sum(-1).detach()
    (by_hand,) = torch.autograd.grad((said * value).sum(), odds)
    assert torch.allclose(found[1], by_hand, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rollout_and_replay_end_alike_under_the_same_noise_and_lead_the_pointer_alike(seed):
    model = naming_z(seed=seed)
    passage = passage_of(model, ids_of(model, STORY[:60], STORY[60:120], STORY[30:90]))
    found = composed(model, passage, torch.Generator().manual_seed(seed))
    assert found.path is not None
    assert found.noise is not None
    path = found.path
    with model.using("compose"), torch.no_grad():
        traced = retrace(model, passage, path)
        wording = passage.wording(path.ends)
        namer = Namer(model.codebook, DEPTH)
        codes, ended = namer.draw(traced.latents, traced.odds, found.noise, wording=wording)
    assert torch.equal(codes[path.real], path.codes[path.real])
    assert torch.equal(ended & path.real, path.ended)
    for row, pointer in enumerate(passage.pointers(depth=DEPTH)):
        for step in range(int(path.real[row].sum())):
            pointer.advance(float(traced.paces[row, step]))
            assert pointer.ends[-1] - 1 == int(path.ends[row, step])


# Training


def objective_of(model: ZLanguageModel, **settings: int) -> Autoregress:
    model.codebook.requires_grad_(False)
    return Autoregress(model, AutoregressConfig(**settings))


def step_of(objective: Autoregress, step: int, *, n_slots: int = 20) -> StepOutput:
    ids = ids_of(objective.z, STORY[:48], STORY[60:108])
    batch = build_batch(ids, None, n_prior=0, n_slots=n_slots, depth=DEPTH)
    return objective(batch, step, torch.Generator().manual_seed(0))


def test_the_way_that_is_distilled_is_the_one_pass_writers_own():
    model = naming_z()
    objective = objective_of(model)
    ids = ids_of(model, STORY[:48], STORY[60:108])
    batch = build_batch(ids, None, n_prior=0, n_slots=20, depth=DEPTH)
    passage, _ = objective.read(batch)
    path = one_pass_path(model, passage, depth=DEPTH)
    for row in range(2):
        own, count = ids[row : row + 1], int(path.written[row].sum())
        with model.using("compress"), torch.no_grad():
            state = model.read(own, torch.ones_like(own))
            starts = model.codebook.cut(own)
            ends = place_symbols(model.config, state.surprisal, count, depth=DEPTH, starts=starts)
            latents = model.write(state, ends, torch.ones_like(ends))
            wanted = model.quantise(latents, own, ends, state.surprisal)
        assert torch.equal(path.ends[row, :count], ends[0])
        assert torch.equal(path.codes[row, :count], wanted.codes[0])
        assert path.ended[row].nonzero().tolist() == [[count]]


@pytest.mark.parametrize(("step", "distil_steps"), [(0, 1), (5, 1)])
def test_a_step_is_finite_and_its_gradient_reaches_pace_and_end(step, distil_steps):
    model = naming_z()
    assert model.composer is not None
    output = step_of(objective_of(model, distil_steps=distil_steps), step)
    assert torch.isfinite(output.loss)
    heads = [model.composer.to_pace.weight, model.composer.to_end.weight]
    for gradient in torch.autograd.grad(output.loss, heads):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0
    # Nothing is learned about codes that are looked up.
    assert float(output.metrics["distil"]) == 0.0
    assert float(output.metrics.get("crowding", 0.0)) == 0.0
    assert float(output.metrics.get("unlike", 0.0)) == 0.0


def test_what_the_reader_loses_reaches_the_pace_through_where_segments_end():
    model = naming_z()
    assert model.composer is not None
    objective = objective_of(model, distil_steps=0, distil_weight=0, length_weight=0)
    output = step_of(objective, 0)
    (gradient,) = torch.autograd.grad(output.loss, [model.composer.to_pace.bias])
    assert float(gradient.abs()) > 0


def test_what_is_named_whole_costs_the_reader_next_to_nothing_and_bears_on_end_alone():
    """The reader that ships has a channel, and takes such segments at their word."""
    model = naming_z(ends=-30.0)
    model.add_channel()
    assert model.composer is not None
    objective = objective_of(model, distil_steps=0, distil_weight=0, length_weight=0)
    heads = [
        model.composer.to_end.bias,
        model.composer.to_pace.bias,
        model.composer.to_latent.weight,
    ]
    output = step_of(objective, 0, n_slots=24)
    assert output.loss.item() == pytest.approx(-math.log(TRUST), abs=1e-4)
    assert float(output.metrics["accuracy"]) == 1.0
    with torch.no_grad():
        model.composer.to_end.bias.fill_(-8.0)  # likely enough to have a gradient, not to be drawn
    output = step_of(objective, 0, n_slots=24)
    to_end, to_pace, to_latent = torch.autograd.grad(output.loss, heads, allow_unused=True)
    assert float(to_end) > 0, "END takes away what was said"
    assert to_pace is None or float(to_pace) == 0
    assert to_latent is None
    coarse = step_of(objective, 0, n_slots=4)
    assert coarse.loss.item() > 1


def test_a_symbol_that_holds_no_more_counts_as_one_however_fast_it_was_to_be():
    model = naming_z(ends=-30.0)
    assert model.composer is not None
    with torch.no_grad():
        model.composer.to_pace.bias.fill_(9.0)
    objective = objective_of(model)
    passage = passage_of(model, ids_of(model, STORY[:48], STORY[60:108]), price=5.0)
    found = composed(model, passage, torch.Generator().manual_seed(0))
    assert found.path is not None
    assert bool(found.path.held.any())
    with model.using("compose"):
        traced = retrace(model, passage, found.path)
    survival = torch.ones_like(traced.odds)
    # All but the last slots are held; these count by what was left over four times the price.
    held = found.path.held & found.path.real
    error = objective._length_error(passage, found.path, traced, survival)
    places = found.path.places
    last = (found.path.real.sum(1, keepdim=True) - 1).long()
    shares = found.path.prices.unsqueeze(1) * MAX_PACE
    rest = (places.gather(1, last) - places.gather(1, last - 1)) / shares
    expected = float(held.sum() + rest.sum())
    one = price_of(1.0, mean_surprisal=model.config.mean_surprisal)
    assert float(error.detach()) == pytest.approx((expected / 96 - one / 5.0) ** 2, abs=1e-5)
