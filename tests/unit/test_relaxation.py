"""Law E: one-hot forward, the relaxation's gradient backward, and no code beats the rate bound."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tiny import tiny_base
from zcontext.config import CodecConfig
from zcontext.model import ZLanguageModel
from zcontext.passes import spread_positions
from zcontext.relaxation import (
    GumbelCode,
    NearestCode,
    TemperatureSchedule,
    gumbel_noise,
    squared_distances,
    straight_through,
)
from zcontext.segmentation import place_evenly

seeds = st.integers(0, 2**31)


@given(seeds, st.integers(2, 40), st.floats(0.05, 5))
def test_the_straight_through_forward_is_one_hot(seed, size, temperature):
    logits = torch.randn(7, size, generator=torch.Generator().manual_seed(seed))
    forward = straight_through(logits, temperature=temperature)
    assert torch.equal(forward.argmax(-1), logits.argmax(-1))
    assert torch.allclose(
        forward, nn.functional.one_hot(logits.argmax(-1), size).float(), atol=1e-6
    )


@given(seeds, st.floats(0.1, 3))
def test_the_gradient_equals_that_of_torch_at_equal_noise(seed, temperature):
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = torch.randn(5, 11, generator=torch.Generator().manual_seed(seed + 1)).double()
    torch.manual_seed(seed)
    theirs = logits.clone().requires_grad_()
    hard = nn.functional.gumbel_softmax(theirs, tau=temperature, hard=True)
    (hard * weight).sum().backward()
    torch.manual_seed(seed)
    # The noise as torch draws it: minus the logarithm of exponential noise.
    noise = -torch.empty_like(logits).exponential_().log()
    ours = logits.clone().requires_grad_()
    forward = straight_through(ours + noise, temperature=temperature)
    (forward * weight).sum().backward()
    assert torch.allclose(forward, hard)
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-12)


def test_gumbel_noise_follows_its_distribution_and_its_generator():
    noise = gumbel_noise(torch.zeros(200_000), torch.Generator().manual_seed(3))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.03)
    again = gumbel_noise(torch.zeros(200_000), torch.Generator().manual_seed(3))
    assert torch.equal(noise, again)


@given(seeds)
def test_the_nearest_code_is_the_nearest_by_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)
    points, table = torch.randn(9, 6, generator=generator), torch.randn(13, 6, generator=generator)
    row, code = NearestCode()(points, table)
    assert torch.equal(code, torch.cdist(points, table).argmin(-1))
    assert torch.equal(row, table[code])
    distances = squared_distances(points, table) + points.square().sum(-1, keepdim=True)
    assert torch.allclose(distances, torch.cdist(points, table).square(), atol=1e-4)


def test_gumbel_without_noise_chooses_the_nearest_code():
    generator = torch.Generator().manual_seed(0)
    points, table = torch.randn(9, 6, generator=generator), torch.randn(13, 6, generator=generator)
    row, code = GumbelCode()(points, table)
    assert torch.equal(code, NearestCode()(points, table)[1])
    assert torch.allclose(row, table[code], atol=1e-5)


def test_gumbel_gives_the_point_a_gradient_and_the_nearest_code_does_not():
    generator = torch.Generator().manual_seed(0)
    points, table = torch.randn(4, 6, generator=generator), torch.randn(8, 6, generator=generator)
    wanted = points.clone().requires_grad_()
    GumbelCode()(wanted, table, generator=generator)[0].sum().backward()
    assert wanted.grad is not None
    assert float(wanted.grad.abs().sum()) > 0
    table.requires_grad_()
    row, _ = NearestCode()(points.clone().requires_grad_(), table)
    row.sum().backward()
    assert table.grad is not None


def test_the_temperature_falls_geometrically_from_start_to_end():
    schedule = TemperatureSchedule(start=0.8, end=0.2, n_steps=100)
    assert schedule.at(-5) == schedule.at(0) == pytest.approx(0.8)
    assert schedule.at(50) == pytest.approx(0.4)
    assert schedule.at(100) == schedule.at(10_000) == pytest.approx(0.2)


ALPHABET = 16
RATIO = 2
N = 16


def noise_batch(generator: torch.Generator, size: int) -> torch.Tensor:
    """Texts of which nothing can be predicted: 4 bits a token."""
    return torch.randint(40, 40 + ALPHABET, (size, N), generator=generator)


def nats(z: ZLanguageModel, ids: torch.Tensor, *, leak: bool) -> torch.Tensor:
    """Teacher-forced cost of each token given its window's symbols."""
    ends = place_evenly(N, N // RATIO).expand(len(ids), -1)
    z.adapters.activate("compress")
    latents, bits = z.write_in_one_pass(ids, torch.ones_like(ids), ends)
    symbols = z.quantise(latents, ids, ends, bits).embeddings
    shown = ids if leak else torch.cat([torch.full_like(ids[:, :1], 1), ids[:, :-1]], dim=1)
    k = symbols.shape[1]
    z.adapters.activate("decompress")
    states = z.restore_states(
        symbols,
        spread_positions(k, N).expand(len(ids), -1),
        torch.ones(len(ids), k, dtype=torch.long),
        shown,
        torch.ones_like(shown),
    )
    scores = z.logits(states).flatten(0, 1)
    return nn.functional.cross_entropy(scores, ids.flatten(), reduction="none")


def bits_on_noise(*, leak: bool) -> float:
    """Train a codec on noise, then let it compress noise it has not seen."""
    torch.manual_seed(0)
    config = CodecConfig(depth=1, size=4, writer_layers=2, lora_rank=16, lora_alpha=16)
    z = ZLanguageModel.create(tiny_base(n_layers=2), config)
    trained = [*z.parameters_of(("compress", "decompress")).values(), *z.codebook.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    # The embedding learns too, so that the reader can say the alphabet at all.
    trained.append(z.base.model.get_input_embeddings().weight.requires_grad_(True))
    optimiser = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(60):
        optimiser.zero_grad()
        nats(z, noise_batch(generator, 24), leak=leak).mean().backward()
        optimiser.step()
    with torch.no_grad():
        fresh = nats(z, noise_batch(generator, 128), leak=leak)
    return float(fresh.mean()) / math.log(2)


def test_no_codec_says_noise_in_fewer_bits_than_the_rate_bound_allows():
    bound = 1 * math.log2(4) / RATIO
    assert bits_on_noise(leak=False) >= math.log2(ALPHABET) - bound


def test_a_leak_breaks_the_rate_bound_so_the_bound_is_a_guard():
    bound = 1 * math.log2(4) / RATIO
    assert bits_on_noise(leak=True) < math.log2(ALPHABET) - bound
