"""The codebook: hidden states in, codes out, embeddings back.

It holds everything learned that belongs to symbols and not to an adapter: the residual stages of
codes, the slot's input vector, the pooling that starts a latent from its segment's own token
embeddings (the warm start), and the head that estimates surprisal at the writer's exit layer.
What it does not know: the base model, text, windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zcontext.config import CodecConfig
from zcontext.relaxation import NearestCode, Quantiser, squared_distances
from zcontext.segmentation import segment_of

N_PLACES = 16
"""Places inside a segment that pooling can weigh apart (first to last, evenly)."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """What quantising latents gives.

    Attributes:
        embeddings: What a reader is given, `[..., hidden]`.
        codes: int64 `[..., depth]`.
        distortion: Mean squared error over the latents' variance, one number (differentiable).
    """

    embeddings: Tensor
    codes: Tensor
    distortion: Tensor


def unit_rms(states: Tensor) -> Tensor:
    """States at root mean square 1 along the last axis.

    Args:
        states: `[..., hidden]`.

    Returns:
        float32 `[..., hidden]`.
    """
    states = states.float()
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)


class Codebook(nn.Module):
    """`depth` residual stages of `size` codes, and what turns a slot into a latent.

    Args:
        config: Shape of the codec.
        hidden_size: Width of the base model.
        token_embeddings: Table of the base, `[vocab, hidden]`; its mean is the point that pooling
            measures deviations from.
        seed: Of the initial values.
    """

    rows: Tensor
    offset: Tensor
    usage: Tensor
    mean_embedding: Tensor

    def __init__(
        self, config: CodecConfig, *, hidden_size: int, token_embeddings: Tensor, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = token_embeddings.detach().float().cpu()
        mean = table.mean(0)
        scale = float((table - mean).std())
        self.config = config
        self.register_buffer("mean_embedding", mean)
        # Random rows, each stage finer than the one before: equal rows would tie every choice.
        noise = torch.randn(config.depth, config.size, hidden_size, generator=generator)
        shrink = scale * 0.7 ** torch.arange(config.depth).view(-1, 1, 1)
        self.rows = nn.Parameter(noise * shrink)
        self.offset = nn.Parameter(mean.clone())
        self.slot = nn.Parameter(torch.randn(hidden_size, generator=generator) * scale)
        self.place_logits = nn.Parameter(torch.zeros(N_PLACES))
        self.gain = nn.Parameter(torch.ones(()))
        # States are large and alike beside embeddings. Unscaled, a few steps of Adam made the
        # correction 18 times the warm start, and the reader learned to ignore every symbol.
        self.correction_scale = scale / hidden_size**0.5
        self.to_latent = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.to_latent.weight)
        nn.init.zeros_(self.to_latent.bias)
        self.expectation = nn.Linear(hidden_size, hidden_size, bias=False)
        nn.init.zeros_(self.expectation.weight)
        self.surprise = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.surprise.weight)
        nn.init.constant_(self.surprise.bias, config.mean_surprisal)
        self.register_buffer("usage", torch.ones(config.depth, config.size), persistent=False)

    @torch.no_grad()
    def centre(self, token_embeddings: Tensor, counts: Tensor) -> None:
        """Measure deviations from the mean embedding of text instead of that of the vocabulary.

        Common tokens share a large component (70 % of their deviation's norm in SmolLM2), which
        otherwise makes half of a latent's variance and says only how long its segment is.

        Args:
            token_embeddings: Table of the base, `[vocab, hidden]`.
            counts: How often each token occurs in text, `[at most vocab]`.
        """
        share = (counts / counts.sum()).to(self.mean_embedding)
        table = token_embeddings.detach()[: len(share)].to(self.mean_embedding)
        self.mean_embedding.copy_(share @ table)

    # -- from tokens to latents ---------------------------------------------------------------

    def pool(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """One vector a segment: its token embeddings, summed at unit variance.

        Args:
            tokens: Token embeddings, `[batch, n, hidden]`.
            ends: Last token of every segment, `[batch, k]`; the last one may lie before n - 1
                (padding), tokens after it belong to no segment.

        Returns:
            `[batch, k, hidden]`.
        """
        k, n = ends.shape[1], tokens.shape[1]
        owner = segment_of(ends, n)
        starts = torch.cat([ends.new_zeros(len(ends), 1), ends[:, :-1] + 1], dim=1)
        length = (ends - starts + 1).clamp_min(0)
        inside = owner.clamp_max(k - 1)
        place = torch.arange(n, device=tokens.device) - starts.gather(1, inside)
        bucket = place * N_PLACES // length.gather(1, inside).clamp_min(1)
        weight = self.place_logits.exp()[bucket.clamp(0, N_PLACES - 1)]
        # A product and not a scattered sum: on a GPU that adds in another order each time, and a
        # latent near the border of two codes would tip.
        segments = torch.arange(k, device=tokens.device).unsqueeze(-1)
        share = weight.unsqueeze(1) * (owner.unsqueeze(1) == segments)
        share = share / share.sum(-1, keepdim=True).clamp_min(1e-6)
        pooled = (share * length.sqrt().unsqueeze(-1)) @ (tokens.float() - self.mean_embedding)
        summed: Tensor = self.mean_embedding + self.gain * pooled
        return summed

    def slot_inputs(self, pooled: Tensor) -> Tensor:
        """What the writer reads at its slots.

        Args:
            pooled: `[batch, k, hidden]`.

        Returns:
            `[batch, k, hidden]`.
        """
        return pooled + self.slot

    def latents(self, pooled: Tensor, hidden: Tensor) -> Tensor:
        """The warm start plus the writer's learned correction.

        Args:
            pooled: `[batch, k, hidden]`.
            hidden: The writer's states at the slots, `[batch, k, hidden]`.

        Returns:
            `[batch, k, hidden]`.
        """
        correction: Tensor = self.to_latent(unit_rms(hidden))
        latents: Tensor = pooled + self.correction_scale * correction
        return latents

    def surprisal(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Estimated surprisal of each token at the writer's exit layer.

        Two parts: how well the token fits what the state before it expected (one row of a tuned
        lens, so no pass over the vocabulary), and what the state on the token makes of it.

        Args:
            hidden: The writer's states on the tokens, `[batch, n, hidden]`.
            tokens: Token embeddings, `[batch, n, hidden]`.

        Returns:
            Bits, `[batch, n]`, not negative.
        """
        hidden, tokens = unit_rms(hidden), tokens.float()
        before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)
        deviation = tokens - self.mean_embedding
        fit = (self.expectation(before) * deviation).sum(-1) / hidden.shape[-1] ** 0.5
        return nn.functional.softplus(self.surprise(hidden).squeeze(-1) - fit)

    # -- quantising -----------------------------------------------------------------------------

    def quantise(
        self,
        latents: Tensor,
        *,
        depth: int | None = None,
        quantiser: Quantiser | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantised:
        """Write latents as codes, stage by stage, each stage coding what the ones before left.

        Args:
            latents: `[..., hidden]`.
            depth: Stages used; None means all. A prefix is a valid, coarser symbol.
            quantiser: Choice rule; None means the nearest code.
            generator: Noise for a stochastic quantiser while training.

        Returns:
            Embeddings, codes and distortion.
        """
        choose = quantiser or NearestCode()
        latents = latents.float()
        residual = latents - self.offset
        total = self.offset.expand_as(latents)
        codes = []
        for stage in range(depth or self.config.depth):
            row, code = choose(residual, self.rows[stage], generator=generator)
            total = total + row
            residual = residual - row.detach()
            codes.append(code)
        spread = (latents.detach() - latents.detach().mean(dim=-2, keepdim=True)).square().mean()
        error = (latents - total.detach()).square().mean()
        pull = (latents.detach() - total).square().mean()
        distortion = (error + pull) / spread.clamp_min(1e-8)
        if choose.copies_gradient:
            total = total + (latents - latents.detach())
        return Quantised(total, torch.stack(codes, dim=-1), distortion)

    def embed(self, codes: Tensor) -> Tensor:
        """What a reader is given for codes: the sum of their rows.

        Args:
            codes: int64 `[..., depth]`, any depth up to the codec's.

        Returns:
            `[..., hidden]`.
        """
        total = self.offset.expand(*codes.shape[:-1], -1)
        for stage in range(codes.shape[-1]):
            total = total + nn.functional.embedding(codes[..., stage], self.rows[stage])
        return total

    # -- keeping codes alive --------------------------------------------------------------------

    @torch.no_grad()
    def record_usage(self, codes: Tensor, *, decay: float = 0.98) -> None:
        """Update the running count of how often each code is chosen.

        Args:
            codes: int64 `[..., depth]`, any depth.
            decay: Weight of the past.
        """
        flat = codes.reshape(-1, codes.shape[-1])
        for stage in range(flat.shape[1]):
            count = torch.bincount(flat[:, stage], minlength=self.config.size)
            self.usage[stage].mul_(decay).add_(count.to(self.usage), alpha=1 - decay)

    @torch.no_grad()
    def restart_dead(
        self, latents: Tensor, *, generator: torch.Generator, threshold: float = 0.03
    ) -> int:
        """Put codes that are hardly used onto residuals of latents seen now.

        Args:
            latents: Recent latents, `[m, hidden]`.
            generator: CPU generator that picks the residuals.
            threshold: Share of the mean usage under which a code counts as dead.

        Returns:
            How many codes were restarted.
        """
        residual = latents.float() - self.offset
        restarted = 0
        for stage in range(self.config.depth):
            mean = self.usage[stage].mean()
            dead = (self.usage[stage] < threshold * mean).nonzero().squeeze(-1)
            pick = torch.randint(len(residual), (len(dead),), generator=generator).to(dead.device)
            self.rows[stage, dead] = residual[pick]
            self.usage[stage, dead] = mean
            restarted += len(dead)
            nearest = squared_distances(residual, self.rows[stage]).argmin(-1)
            residual = residual - self.rows[stage][nearest]
        return restarted

    @torch.no_grad()
    def fit(self, latents: Tensor, *, generator: torch.Generator, n_rounds: int = 8) -> list[float]:
        """Start the stages from latents: residual k-means (Lloyd 1982), one stage after another.

        Args:
            latents: `[m, hidden]`; a few thousand at least.
            generator: CPU generator of the starting points.
            n_rounds: Lloyd rounds a stage.

        Returns:
            Share of the variance left after each stage.
        """
        points = latents.float()
        self.offset.copy_(points.mean(0))
        residual = points - self.offset
        variance = residual.square().mean()
        left = []
        for stage in range(self.config.depth):
            pick = torch.randperm(len(residual), generator=generator)[: self.config.size]
            pick = pick.repeat(-(-self.config.size // len(pick)))[: self.config.size]
            table = residual[pick.to(residual.device)].clone()
            for _ in range(n_rounds):
                nearest = squared_distances(residual, table).argmin(-1)
                count = torch.bincount(nearest, minlength=len(table)).unsqueeze(-1)
                summed = torch.zeros_like(table).index_add_(0, nearest, residual)
                table = torch.where(count > 0, summed / count.clamp_min(1), table)
            self.rows[stage] = table
            residual = residual - table[squared_distances(residual, table).argmin(-1)]
            left.append(float(residual.square().mean() / variance))
        self.usage.fill_(1.0)
        return left
