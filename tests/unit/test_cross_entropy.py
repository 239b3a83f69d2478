"""Cross entropy in slices: equal to torch's, in value, gradient and likeliest token."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tiny import tiny_z
from zcontext.training import cross_entropy as module
from zcontext.training.cross_entropy import cross_entropy, divergences


@pytest.mark.parametrize("chunk", [1, 4, 4096])
def test_losses_and_gradients_are_those_of_torch(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 5, 16, generator=generator, requires_grad=True)
    twin = states.detach().clone().requires_grad_()
    weight = torch.randn(50, 16, generator=generator)
    targets = torch.randint(50, (3, 5), generator=generator)
    scale = torch.rand(3, 5, generator=generator)

    nats, best = cross_entropy(states, weight, targets)
    (nats * scale).sum().backward()
    scores = twin @ weight.T
    wanted = nn.functional.cross_entropy(
        scores.flatten(0, 1), targets.flatten(), reduction="none"
    ).view(3, 5)
    (wanted * scale).sum().backward()

    assert torch.allclose(nats, wanted, atol=1e-5)
    assert torch.equal(best, scores.argmax(-1))
    assert states.grad is not None
    assert torch.allclose(states.grad, twin.grad, atol=1e-5)


def test_large_scores_do_not_overflow():
    states = torch.full((1, 4), 1e4)
    nats, _ = cross_entropy(states, torch.eye(4) * 1e3, torch.tensor([2]))
    assert torch.allclose(nats, torch.tensor([4.0]).log())


def test_no_positions_cost_nothing():
    nats, best = cross_entropy(
        torch.zeros(2, 0, 8), torch.zeros(5, 8), torch.zeros(2, 0, dtype=torch.long)
    )
    assert nats.shape == best.shape == (2, 0)


@pytest.mark.parametrize("compared", [1, 4, 1024])
def test_divergences_and_gradients_are_those_of_torch(compared, monkeypatch):
    monkeypatch.setattr(module, "COMPARED", compared)
    z = tiny_z()
    states, teacher = torch.randn(2, 6, z.hidden_size, generator=torch.Generator().manual_seed(0))
    states.requires_grad_()
    twin = states.detach().clone().requires_grad_()

    nats = divergences(z, states, teacher)
    (nats * torch.arange(6.0)).sum().backward()
    wanted = nn.functional.kl_div(
        z.logits(twin).log_softmax(-1),
        z.logits(teacher).log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    (wanted * torch.arange(6.0)).sum().backward()

    assert torch.allclose(nats, wanted, atol=1e-5)
    assert torch.allclose(states.grad, twin.grad, atol=1e-5)


def test_states_do_not_diverge_from_themselves():
    z = tiny_z()
    states = torch.randn(3, z.hidden_size)
    assert torch.allclose(divergences(z, states, states), torch.zeros(3), atol=1e-6)
