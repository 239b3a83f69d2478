"""Cross entropy in slices: equal to torch's, in value, gradient and likeliest token."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zcontext.training import cross_entropy as module
from zcontext.training.cross_entropy import cross_entropy


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
