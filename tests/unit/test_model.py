"""The model's passes: two steps equal one, padding changes nothing, positions are as trained."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny import tiny_z
from zcontext.passes import spread_positions
from zcontext.segmentation import place_evenly


@pytest.fixture(scope="module")
def model():
    return tiny_z()


def tokens(n: int, *, seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.randint(3, 259, (batch, n), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_reading_then_writing_equals_the_one_pass_of_training(model):
    ids, ends = tokens(20, batch=2), place_evenly(20, 5).expand(2, -1)
    memory = model.embed_codes(torch.randint(0, 32, (2, 3, 3)))
    for given_memory in (None, memory):
        with model.using("compress"):
            once, estimate = model.write_in_one_pass(
                ids, torch.ones_like(ids), ends, memory=given_memory
            )
            state = model.read(ids, torch.ones_like(ids), memory=given_memory)
            twice = model.write(state, ends, torch.ones_like(ends))
        assert torch.allclose(once, twice, atol=1e-5)
        assert torch.allclose(estimate, state.surprisal, atol=1e-5)


@torch.no_grad()
def test_right_padding_changes_neither_surprisal_nor_latents(model):
    ids, ends = tokens(13), place_evenly(13, 4).unsqueeze(0)
    padded = torch.cat([ids, torch.full((1, 6), 2)], dim=1)
    mask = torch.cat([torch.ones(1, 13), torch.zeros(1, 6)], dim=1).long()
    more = torch.cat([ends, ends[:, -1:].expand(1, 2)], dim=1)
    with model.using("compress"):
        state = model.read(ids, torch.ones_like(ids))
        plain = model.write(state, ends, torch.ones_like(ends))
        wide = model.read(padded, mask)
        slots = model.write(wide, more, torch.tensor([[1, 1, 1, 1, 0, 0]]))
    assert torch.allclose(state.surprisal, wide.surprisal[:, :13], atol=1e-5)
    assert torch.allclose(plain, slots[:, :4], atol=1e-5)


@torch.no_grad()
def test_the_text_cannot_see_the_slots(model):
    ids = tokens(16)
    with model.using("compress"):
        _, few = model.write_in_one_pass(ids, torch.ones_like(ids), place_evenly(16, 2)[None])
        _, many = model.write_in_one_pass(ids, torch.ones_like(ids), place_evenly(16, 8)[None])
    assert torch.allclose(few, many, atol=1e-5)


@torch.no_grad()
def test_what_stands_in_the_memory_changes_what_is_written(model):
    ids, ends = tokens(16), place_evenly(16, 4)[None]
    one, other = (model.embed_codes(torch.full((1, 4, 3), code)) for code in (1, 9))
    with model.using("compress"):
        latents = [
            model.write_in_one_pass(ids, torch.ones_like(ids), ends, memory=memory)[0]
            for memory in (None, one, other)
        ]
    assert not torch.allclose(latents[0], latents[1], atol=1e-4)
    assert not torch.allclose(latents[1], latents[2], atol=1e-4)


@torch.no_grad()
def test_context_is_read_but_not_written(model):
    """With a context the pooled start of a latent is the target's alone."""
    ids = tokens(20)
    other = ids.clone()
    other[0, :8] = tokens(8, seed=9)
    ends = place_evenly(12, 3)[None] + 8
    with model.using("compress"):
        states = [model.read(row, torch.ones_like(row)) for row in (ids, other)]
        pooled = [model.codebook.pool(state.tokens[:, 8:], ends - 8) for state in states]
        latents = [model.write(s, ends, torch.ones_like(ends), start=8) for s in states]
    assert torch.equal(pooled[0], pooled[1])
    assert latents[0].shape == (1, 3, 64)
    assert not torch.allclose(latents[0], latents[1], atol=1e-5)


@torch.no_grad()
def test_the_decompressor_sees_the_symbols_and_only_the_text_before(model):
    ids = tokens(10)
    inputs = torch.cat([torch.full((1, 1), 1), ids], dim=1)
    symbols = model.embed_codes(torch.randint(0, 32, (1, 3, 3)))
    places, ones = spread_positions(3, 10)[None], torch.ones(1, 3, dtype=torch.long)

    def states(symbols, inputs):
        with model.using("decompress"):
            return model.restore_states(symbols, places, ones, inputs, torch.ones_like(inputs))

    before = states(symbols, inputs)
    changed = inputs.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 250 + 3
    after = states(symbols, changed)
    assert torch.allclose(before[:, :6], after[:, :6], atol=1e-5)
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-4)
    assert not torch.allclose(before, states(symbols * 1.5, inputs), atol=1e-4)


@given(st.integers(0, 300), st.integers(1, 600))
def test_spread_positions_never_fall_and_end_at_the_last_token(n_symbols, n_tokens):
    places = tiny_positions(n_symbols, n_tokens)
    assert len(places) == n_symbols
    assert places == sorted(places)
    if places:
        assert places[0] >= 1
        assert places[-1] == n_tokens


def tiny_positions(n_symbols: int, n_tokens: int) -> list[int]:

    return spread_positions(n_symbols, n_tokens).tolist()


def test_logits_are_limited_to_base_tokens_and_float32(model):
    scores = model.logits(torch.zeros(2, 3, 64))
    assert scores.shape == (2, 3, 259)
    assert scores.dtype == torch.float32


def test_sealing_again_changes_nothing_and_a_changed_writer_is_another_codec():
    model = tiny_z()
    codec = model.codec
    model.seal()
    assert model.codec == codec
    with torch.no_grad():
        model.codebook.rows[0, 0] += 1
    model.seal()
    assert model.codec != codec


def test_another_infer_adapter_is_the_same_codec():
    model = tiny_z()
    codec = model.codec
    with torch.no_grad():
        for parameter in model.parameters_of(("infer",)).values():
            parameter.add_(1.0)
    model.seal()
    assert model.codec == codec


def test_facts_of_the_base(model):
    assert (model.n_layers, model.hidden_size, model.base_vocab) == (4, 64, 259)
    assert model.kv_bytes_per_position == 2 * 4 * 2 * 16 * 2
    assert model.vocabulary.tag == model.codec[:4]
    assert model.context_length == 2048
