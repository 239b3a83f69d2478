"""Cross entropy and divergence over a vocabulary without the scores of a whole batch at once.

Scores of 25,000 positions over 49,152 tokens are 5 GB, and their gradient as much again. The head
is frozen, so a slice of positions can be scored, its loss and its gradient in the states taken,
and its scores dropped. What this module does not know: models, adapters, where states come from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zcontext.model import ZLanguageModel

CHUNK = 4096
"""Positions scored at a time."""
COMPARED = CHUNK // 4
"""Positions at a time of which the whole distribution is compared with another."""


class _FoundOnTheWay(torch.autograd.Function):
    """Figures of states, the first of three inputs, whose gradient the forward pass has saved."""

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.unsqueeze(-1).to(gradient.dtype), None, None


class _FrozenHead(_FoundOnTheWay):
    """Losses of states under a head that is not trained; the gradient is found on the way."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        losses, best, gradients = [], [], []
        for part, target in zip(
            torch.split(states, CHUNK), torch.split(targets, CHUNK), strict=True
        ):
            scores = (part.to(weight.dtype) @ weight.T).float()
            highest, likeliest = scores.max(-1, keepdim=True)
            best.append(likeliest.squeeze(-1))
            target = target.unsqueeze(-1)
            right = scores.gather(-1, target) - highest
            total = scores.sub_(highest).exp_().sum(-1, keepdim=True)
            losses.append((total.log() - right).squeeze(-1))
            if wanted:
                scores.div_(total)
                scores.scatter_add_(-1, target, torch.full_like(right, -1.0))
                gradients.append((scores.to(weight.dtype) @ weight).to(states.dtype))
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        found = torch.cat(best)
        ctx.mark_non_differentiable(found)
        return torch.cat(losses), found


class _FrozenHeadDivergence(_FoundOnTheWay):
    """What states say less than a teacher's under one head that is not trained."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        nats, gradients = [], []
        for part, taught in zip(
            torch.split(states, COMPARED), torch.split(teacher, COMPARED), strict=True
        ):
            said = (part.to(weight.dtype) @ weight.T).float().log_softmax(-1)
            meant = (taught.to(weight.dtype) @ weight.T).float().log_softmax(-1)
            likely = meant.exp()
            nats.append(meant.sub_(said).mul_(likely).sum(-1))
            if ctx.needs_input_grad[0]:
                gradient = said.exp_().sub_(likely).to(weight.dtype) @ weight
                gradients.append(gradient.to(states.dtype))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(nats)


def cross_entropy(states: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of tokens under a frozen linear head.

    Args:
        states: `[..., hidden]`.
        weight: Rows of the head, `[vocab, hidden]`; gets no gradient.
        targets: int64 `[...]`, the right tokens.

    Returns:
        Nats `[...]`, float32, and the likeliest token, int64 `[...]`.
    """
    flat = states.reshape(-1, states.shape[-1])
    if not len(flat):
        return flat.new_zeros(targets.shape, dtype=torch.float32), targets.clone()
    nats, best = _FrozenHead.apply(flat, weight.detach(), targets.reshape(-1))  # type: ignore[no-untyped-call]
    return nats.view(targets.shape), best.view(targets.shape)


def token_losses(z: ZLanguageModel, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of base tokens after states.

    Args:
        z: The model, whose head is frozen.
        states: `[..., hidden]`.
        targets: int64 `[...]`.

    Returns:
        Nats `[...]` and the likeliest token `[...]`.
    """
    return cross_entropy(states, _head(z), targets)


def divergences(z: ZLanguageModel, states: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of what states predict from what a teacher's states do.

    Args:
        z: The model, whose head is frozen and shared.
        states: `[n, hidden]`, n of 1 or more.
        teacher: Of the same shape; gets no gradient.

    Returns:
        Nats `[n]`, float32.
    """
    nats: Tensor = _FrozenHeadDivergence.apply(states, teacher.detach(), _head(z).detach())  # type: ignore[no-untyped-call]
    return nats


def _head(z: ZLanguageModel) -> Tensor:
    """Rows of the head for the tokens of the base, `[vocab, hidden]`."""
    weight: Tensor = z.base.model.get_output_embeddings().weight[: z.base_vocab]
    return weight
