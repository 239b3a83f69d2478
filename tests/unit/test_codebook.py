"""The codebook: pooling, residual stages, their gradients, and keeping codes alive."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zcontext.codebook import Codebook
from zcontext.config import CodecConfig
from zcontext.lexicon import NO_TOKEN, SILENT
from zcontext.naming import Wording
from zcontext.phrases import Phrase
from zcontext.pooling import N_PLACES
from zcontext.relaxation import GumbelCode
from zcontext.upkeep import record_usage, restart_dead, start_from_latents, start_from_tokens

HIDDEN = 12


def book(*, depth: int = 3, size: int = 16, seed: int = 0, shared: bool = False) -> Codebook:
    generator = torch.Generator().manual_seed(seed + 100)
    made = Codebook(
        CodecConfig(depth=depth, size=size, shared=shared),
        hidden_size=HIDDEN,
        token_embeddings=torch.randn(50, HIDDEN, generator=generator),
        seed=seed,
    )
    with torch.no_grad():
        made.place_logits.add_(torch.randn(N_PLACES, generator=generator))
    return made


def unread(tokens: torch.Tensor, ends: torch.Tensor) -> Wording:
    """A text of which only embeddings are known."""
    return Wording(torch.zeros(tokens.shape[:2]).long(), tokens, ends, torch.ones(tokens.shape[:2]))


def naming_book(
    *, depth: int, size: int, n_tokens: int = 40, phrases: Sequence[Phrase] = ()
) -> tuple[Codebook, torch.Tensor]:
    """A codebook whose codes from 1 on name the tokens from 0 on and then some phrases.

    With it, the table of tokens.
    """
    generator = torch.Generator().manual_seed(11)
    table = torch.randn(n_tokens, 64, generator=generator)
    config = CodecConfig(depth=depth, size=size, shared=True, named=True)
    made = Codebook(config, hidden_size=64, token_embeddings=table)
    start_from_tokens(made, table, torch.arange(n_tokens, 0, -1).float(), phrases)
    return made, table


def slow_pool(codebook: Codebook, tokens: torch.Tensor, ends: list[int]) -> torch.Tensor:
    """The obviously right twin: one segment after another, one token after another."""
    pooled, start = [], 0
    for end in ends:
        length = end - start + 1
        weights = [
            float(codebook.place_logits[min(N_PLACES - 1, place * N_PLACES // length)].exp())
            for place in range(length)
        ]
        total = torch.zeros(HIDDEN)
        for place, weight in enumerate(weights):
            share = weight / sum(weights)
            total += share * length * (tokens[start + place] - codebook.mean_embedding)
        pooled.append(codebook.mean_embedding + total)
        start = end + 1
    return torch.stack(pooled)


@given(st.integers(0, 2**31), st.integers(1, 40), st.data())
def test_pooling_equals_the_slow_twin_and_ignores_tokens_after_the_last_end(seed, n, data):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(n, HIDDEN, generator=generator)
    k = data.draw(st.integers(1, n))
    ends = torch.randperm(n, generator=generator)[:k].sort().values
    made = book()
    with torch.no_grad():
        fast = made.pool(tokens.unsqueeze(0), ends.unsqueeze(0))[0]
        assert torch.allclose(fast, slow_pool(made, tokens, ends.tolist()), atol=1e-4)


def test_padded_slots_own_no_token_and_leave_the_real_ones_alone():
    made, tokens = book(), torch.randn(1, 9, HIDDEN, generator=torch.Generator().manual_seed(1))
    real = torch.tensor([[2, 5, 8]])
    padded = torch.tensor([[2, 5, 8, 8, 8]])
    with torch.no_grad():
        short, long = made.pool(tokens, real), made.pool(tokens, padded)
    assert torch.allclose(short, long[:, :3], atol=1e-6)
    assert torch.allclose(long[:, 3:], made.mean_embedding.expand(1, 2, -1))


@given(st.integers(0, 2**31), st.integers(1, 3))
def test_embedding_the_codes_gives_what_quantising_gave(seed, depth):
    made = book()
    latents = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        written = made.quantise(latents, depth=depth)
        assert written.codes.shape == (2, 5, depth)
        assert torch.allclose(made.embed(written.codes), written.embeddings, atol=1e-5)


def test_a_prefix_of_the_stages_is_the_coarser_symbol():
    made = book()
    latents = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(2))
    deep, shallow = made.quantise(latents).codes, made.quantise(latents, depth=1).codes
    assert torch.equal(deep[..., :1], shallow)


def test_the_latent_gets_a_copy_of_the_gradient_and_the_rows_get_theirs():
    made = book()
    latents = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(2)).requires_grad_()
    written = made.quantise(latents)
    weight = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(3))
    (written.embeddings * weight).sum().backward()
    assert latents.grad is not None
    assert torch.allclose(latents.grad, weight * made.loudness.detach().mean(0))
    assert made.rows.grad is not None
    assert float(made.rows.grad.abs().sum()) > 0


def test_the_gumbel_quantiser_has_a_gradient_of_its_own():
    made = book()
    latents = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(2)).requires_grad_()
    noise = torch.Generator().manual_seed(4)
    made.quantise(latents, quantiser=GumbelCode(), generator=noise).embeddings.sum().backward()
    assert latents.grad is not None
    assert not torch.allclose(latents.grad, torch.ones_like(latents))


def test_fitted_stages_leave_less_and_less_of_the_variance():
    made = book(size=32)
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(20, HIDDEN, generator=generator) * 3
    latents = centres[torch.randint(20, (600,), generator=generator)]
    latents = latents + 0.3 * torch.randn(600, HIDDEN, generator=generator)
    left = start_from_latents(made, latents, generator=generator)
    assert left == sorted(left, reverse=True)
    assert left[0] < 0.2
    assert float(made.quantise(latents).distortion.detach()) < 0.2


def test_the_same_generator_fits_the_same_codebook():
    latents = torch.randn(200, HIDDEN, generator=torch.Generator().manual_seed(6))
    one, other = book(), book()
    start_from_latents(one, latents, generator=torch.Generator().manual_seed(7))
    start_from_latents(other, latents, generator=torch.Generator().manual_seed(7))
    assert torch.equal(one.rows, other.rows)


def test_dead_codes_are_restarted_and_live_ones_stay():
    made = book(depth=1)
    before = made.rows.detach().clone()
    for _ in range(400):
        record_usage(made, torch.zeros(64, 1, dtype=torch.long))
    latents = torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(8))
    n_restarted = restart_dead(made, latents, generator=torch.Generator().manual_seed(9))
    assert n_restarted == 15
    assert torch.equal(made.rows[0, 0], before[0, 0])
    assert restart_dead(made, latents, generator=torch.Generator().manual_seed(9)) == 0


def test_rows_start_all_different_so_that_no_choice_is_tied():
    rows = book().rows.detach().flatten(0, 1)
    assert float(torch.pdist(rows).min()) > 0


def test_surprisal_is_never_negative_and_starts_at_the_calibrated_mean():
    made = book()
    hidden = torch.randn(2, 9, HIDDEN, generator=torch.Generator().manual_seed(3))
    bits = made.surprisal(hidden, hidden)
    assert torch.allclose(bits, torch.full_like(bits, 5.0), atol=0.05)
    wild = copy.deepcopy(made)
    torch.nn.init.normal_(wild.expectation.weight, std=9.0)
    assert float(wild.surprisal(hidden, hidden).detach().min()) >= 0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_codes_stay_below_the_size(depth):
    codes = book().quantise(torch.randn(30, HIDDEN) * 50, depth=depth).codes
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 16


# --- one table for all stages --------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(1, 3))
def test_a_shared_table_embeds_what_quantising_gave(seed, depth):
    made = book(shared=True)
    latents = torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        written = made.quantise(latents, depth=depth)
        assert written.codes.shape == (2, 5, depth)
        assert torch.allclose(made.embed(written.codes), written.embeddings, atol=1e-5)
        assert torch.equal(written.codes[..., :1], made.quantise(latents, depth=1).codes)


def test_silence_ends_a_symbol_and_adds_nothing():
    made = book(depth=4, shared=True)
    codes = made.quantise(torch.randn(60, HIDDEN) * 0.5 + made.offset.detach()).codes
    silent = codes == SILENT
    assert bool(silent.any())
    assert torch.equal(silent, silent.cummax(-1).values.bool())  # once silent, silent
    assert torch.allclose(made.embed(torch.zeros(1, 4, dtype=torch.long))[0], made.offset)


@pytest.mark.parametrize("quantiser", [None, GumbelCode()], ids=["vq", "gumbel"])
def test_the_silent_row_is_never_trained(quantiser):
    made = book(shared=True)
    noise = torch.Generator().manual_seed(4)
    written = made.quantise(torch.randn(40, HIDDEN), quantiser=quantiser, generator=noise)
    (written.embeddings.square().sum() + written.distortion).backward()
    assert made.rows.grad is not None
    assert float(made.rows.grad.abs().sum()) > 0
    assert float(made.rows[0, SILENT].detach().abs().max()) == 0
    if quantiser is None:
        assert float(made.rows.grad[0, SILENT].abs().max()) == 0


def test_a_table_started_from_tokens_says_sums_of_common_tokens_exactly():
    generator = torch.Generator().manual_seed(11)
    table = torch.randn(40, 64, generator=generator)
    made = Codebook(
        CodecConfig(depth=4, size=32, shared=True), hidden_size=64, token_embeddings=table
    )
    counts = torch.arange(40, 0, -1).float()
    share = start_from_tokens(made, table, counts)
    assert share == pytest.approx(float(counts[:31].sum() / counts.sum()))
    ids, ends = torch.tensor([[21, 3, 8, 30, 5]]), torch.tensor([[2, 4]])
    with torch.no_grad():
        pooled = made.pool(table[ids], ends)
        written = made.quantise(pooled, wording=Wording(ids, table[ids], ends, torch.ones(1, 5)))
        assert float(written.distortion) < 1e-6
    # Token t has code t + 1, and codes stand as the text says them.
    assert written.codes[0].tolist() == [[22, 4, 9, SILENT], [31, 6, SILENT, SILENT]]


@given(st.integers(0, 2**31))
def test_the_order_of_the_text_changes_no_code_but_its_place(seed):
    generator = torch.Generator().manual_seed(seed)
    made, tokens = book(shared=True), torch.randn(2, 9, HIDDEN, generator=generator)
    ends = torch.tensor([[1, 4, 8], [0, 6, 8]])
    with torch.no_grad():
        latents = made.pool(tokens, ends)
        loudest_first = made.quantise(latents)
        in_order = made.quantise(latents, wording=unread(tokens, ends))
        assert torch.equal(loudest_first.codes.sort(-1).values, in_order.codes.sort(-1).values)
        assert torch.allclose(made.embed(in_order.codes), in_order.embeddings, atol=1e-5)
        silent = in_order.codes == SILENT
        assert torch.equal(silent, silent.cummax(-1).values.bool())


def test_a_segment_of_no_more_tokens_than_codes_is_named_token_by_token():
    made, table = naming_book(depth=4, size=41)
    ids, ends = torch.tensor([[21, 3, 3, 30, 5, 21]]), torch.tensor([[3, 5]])
    surprisal = torch.tensor([[1.0, 0.0, 9.0, 2.0, 5.0, 5.0]])
    told = Wording(ids, table[ids], ends, surprisal)
    with torch.no_grad():
        written = made.quantise(made.pool(table[ids], ends), wording=told)
    assert written.codes[0].tolist() == [[22, 4, 4, 31], [6, 22, SILENT, SILENT]]
    assert float(written.distortion) < 1e-6
    # Fewer codes name what is hardest to guess, in the order of the text.
    with torch.no_grad():
        shallow = made.quantise(made.pool(table[ids], ends), wording=told, depth=2)
    assert shallow.codes[0].tolist() == [[4, 31], [6, 22]]


def test_a_token_without_a_code_is_spelled_in_the_stages_that_are_left():
    made, table = naming_book(depth=4, size=31)
    assert (30,) not in made.lexicon.codes
    rare = 35
    ids, ends = torch.tensor([[7, rare, 8]]), torch.tensor([[2]])
    told = Wording(ids, table[ids], ends, torch.ones(1, 3))
    with torch.no_grad():
        near = made.table(0)[20] + 0.1 * table[rare]
        table[rare] = near + made.mean_embedding  # nearly token 19, whose code is 20
        told = Wording(ids, table[ids], ends, torch.ones(1, 3))
        written = made.quantise(made.pool(table[ids], ends), wording=told)
    assert written.codes[0, 0, :3].tolist() == [8, 20, 9]


def test_gumbel_codes_of_a_naming_table_stand_in_the_order_of_the_text():
    made, table = naming_book(depth=4, size=41)
    ids, ends = torch.tensor([[21, 3, 30]]), torch.tensor([[2]])
    told = Wording(ids, table[ids], ends, torch.ones(1, 3))
    written = made.quantise(made.pool(table[ids], ends), quantiser=GumbelCode(), wording=told)
    assert written.codes[0, 0, :3].tolist() == [22, 4, 31]


def test_rows_of_names_follow_the_mean_of_text():
    made, table = naming_book(depth=2, size=11, n_tokens=8, phrases=[(3, 1), (1, 1, 2)])
    assert made.lexicon.named[:, 0].tolist() == [NO_TOKEN, *range(8), 3, 1]
    assert made.lexicon.named[9].tolist() == [3, 1, NO_TOKEN, NO_TOKEN]
    assert "rows" not in dict(made.named_parameters())
    made.mean_embedding.zero_()
    rows = made.table(0)
    assert torch.equal(rows[1:9], table)
    torch.testing.assert_close(rows[9], table[3] + table[1])
    torch.testing.assert_close(rows[10], 2 * table[1] + table[2])
    assert made.lexicon.codes == {**{(t,): t + 1 for t in range(8)}, (3, 1): 9, (1, 1, 2): 10}
    made.lexicon.name([(5,)])
    assert made.lexicon.codes == {(5,): 1}


def test_a_phrase_is_one_code_and_comes_back_as_its_tokens():
    made, table = naming_book(depth=3, size=43, n_tokens=40, phrases=[(7, 8), (8, 9, 7)])
    ids, ends = torch.tensor([[7, 8, 9, 7, 30, 7, 8]]), torch.tensor([[4, 6]])
    assert made.cut(ids).tolist() == [[True, True, False, False, True, True, False]]
    assert made.cut(ids, [{2}]).tolist()[0][:4] == [True, False, True, True]
    told = Wording(ids, table[ids], ends, torch.ones(1, 7))
    with torch.no_grad():
        written = made.quantise(made.pool(table[ids], ends), wording=told)
    assert written.codes[0].tolist() == [[8, 42, 31], [41, SILENT, SILENT]]
    assert float(written.distortion) < 1e-6
    assert made.lexicon.tokens_of(written.codes[0].tolist()) == ids[0].tolist()
    rows, tokens = made.words_of(written.codes[0])
    assert tokens.tolist() == [[7, 8, 9, 7, 30, *[NO_TOKEN] * 7], [7, 8, *[NO_TOKEN] * 10]]
    torch.testing.assert_close(rows[0, 2], table[9] - made.mean_embedding)
    assert not rows[1, 2:].any()
    # A phrase that a segment's end cuts through is said token by token.
    with torch.no_grad():
        cut = made.quantise(
            made.pool(table[ids], torch.tensor([[0, 6]])),
            wording=Wording(ids, table[ids], torch.tensor([[0, 6]]), torch.ones(1, 7)),
        )
    assert cut.codes[0, 1].tolist() == [42, 31, 41]


def test_dead_codes_of_a_shared_table_are_restarted_but_silence_stays():
    made = book(shared=True)
    for _ in range(400):
        record_usage(made, torch.full((64, 3), 5))
    latents = torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(8)) * 4
    n_restarted = restart_dead(made, latents, generator=torch.Generator().manual_seed(9))
    assert n_restarted == 14
    assert float(made.rows[0, SILENT].detach().abs().max()) == 0


def test_autocast_changes_no_code():
    made = book(shared=True)
    generator = torch.Generator().manual_seed(12)
    tokens, ends = torch.randn(1, 30, HIDDEN, generator=generator), torch.tensor([[4, 11, 19, 29]])

    def write() -> torch.Tensor:
        pooled = made.pool(tokens, ends)
        latents = made.latents(pooled, tokens[:, :4])
        return made.quantise(latents, wording=unread(tokens, ends)).embeddings.detach()

    plain = write()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(write(), plain)
