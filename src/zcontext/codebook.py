"""The codebook: hidden states in, codes out, embeddings back.

It holds everything learned that belongs to symbols and not to an adapter: the residual stages of
codes (with a table each, or one for all), the slot's input vector, the pooling that starts a
latent from its segment's own token embeddings (the warm start), and the head that estimates
surprisal at the writer's exit layer.
What it does not know: the base model, text, windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from zcontext.config import CodecConfig
from zcontext.relaxation import NearestCode, Quantiser
from zcontext.segmentation import segment_of

N_PLACES = 16
"""Places inside a segment that pooling can weigh apart (first to last, evenly)."""

START_LOUDNESS = 1.8
"""How much louder than text a symbol's first code starts: readers trained from 1 wanted 1.5."""

FALLING = 0.9
"""Loudness of a code over that of the one before it. Codes stand in the order of the text, and the
loudest is the first that a reader should say."""

SILENT = 0
"""The code of a shared table that adds nothing: the symbol is said already."""


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


M = TypeVar("M", bound=nn.Module)
P = ParamSpec("P")
T = TypeVar("T")


def in_full_precision(
    method: Callable[Concatenate[M, Tensor, P], T],
) -> Callable[Concatenate[M, Tensor, P], T]:
    """Keep autocast out: 8 bits of mantissa choose other codes than inference does."""

    @wraps(method)
    def kept(self: M, first: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with torch.autocast(first.device.type, enabled=False):
            return method(self, first, *args, **kwargs)

    return kept


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
        # What a reader hears is offset + sum of loudness * row: codes are compared with latents in
        # the units of token embeddings, whatever loudness the reader comes to want.
        # Random rows, each stage finer than the one before: equal rows would tie every choice.
        n_tables = 1 if config.shared else config.depth
        noise = torch.randn(n_tables, config.size, hidden_size, generator=generator)
        shrink = scale * 0.7 ** torch.arange(n_tables).view(-1, 1, 1)
        self.rows = nn.Parameter(noise * shrink)
        if config.shared:
            self.rows.data[0, SILENT] = 0.0
        self.offset = nn.Parameter(mean.clone())
        self.slot = nn.Parameter(torch.randn(hidden_size, generator=generator) * scale)
        self.place_logits = nn.Parameter(torch.zeros(N_PLACES))
        falling = FALLING if config.shared else 1.0
        loudness = START_LOUDNESS * falling ** torch.arange(config.depth).float()
        self.loudness = nn.Parameter(loudness.unsqueeze(-1).repeat(1, hidden_size))
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
        self.register_buffer("usage", torch.ones(n_tables, config.size), persistent=False)

    # -- from tokens to latents ---------------------------------------------------------------

    @in_full_precision
    def pool(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """One vector a segment: the sum of what sets its tokens apart from the mean of text.

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
        pooled = (share * length.unsqueeze(-1)) @ (tokens.float() - self.mean_embedding)
        summed: Tensor = self.mean_embedding + pooled
        return summed

    def place_weights(self, lengths: Tensor) -> Tensor:
        """What `pool` multiplies each token of a segment by.

        Args:
            lengths: Tokens of each segment, int64 `[k]`, at least 1.

        Returns:
            `[k, longest]`, 0 behind a segment's end.
        """
        place = torch.arange(int(lengths.max()), device=lengths.device)
        bucket = (place * N_PLACES // lengths.unsqueeze(-1)).clamp_max(N_PLACES - 1)
        inside = place < lengths.unsqueeze(-1)
        weight = self.place_logits.exp()[bucket] * inside
        return weight / weight.sum(-1, keepdim=True) * lengths.unsqueeze(-1)

    def slot_inputs(self, pooled: Tensor) -> Tensor:
        """What the writer reads at its slots.

        Args:
            pooled: `[batch, k, hidden]`.

        Returns:
            `[batch, k, hidden]`.
        """
        return pooled + self.slot

    @in_full_precision
    def latents(self, pooled: Tensor, hidden: Tensor) -> Tensor:
        """The warm start plus the writer's learned correction.

        Args:
            pooled: `[batch, k, hidden]`.
            hidden: The writer's states at the slots, `[batch, k, hidden]`.

        Returns:
            `[batch, k, hidden]`.
        """
        correction: Tensor = self.to_latent(unit_rms(hidden))
        latents: Tensor = pooled.float() + self.correction_scale * correction
        return latents

    @in_full_precision
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

    @in_full_precision
    def quantise(
        self,
        latents: Tensor,
        *,
        depth: int | None = None,
        quantiser: Quantiser | None = None,
        generator: torch.Generator | None = None,
        tokens: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Quantised:
        """Write latents as codes, stage by stage, each stage coding what the ones before left.

        Args:
            latents: `[..., hidden]`.
            depth: Stages used; None means all.
            quantiser: Choice rule; None means the nearest code.
            generator: Noise for a stochastic quantiser while training.
            tokens: Embeddings of the text, `[batch, n, hidden]`, and with them
            ends: last token of every segment, `[batch, k]`: codes of a shared table are then put
                in the order in which the text says them, which their loudness tells the reader.

        Returns:
            Embeddings, codes and distortion.
        """
        choose = quantiser or NearestCode()
        wanted = latents.float() - self.mean_embedding
        depth = depth or self.config.depth
        if choose.copies_gradient:
            codes, rows = self._choose(wanted.detach(), depth, choose), None
        else:
            rows, codes = self._relaxed(wanted, depth, choose, generator)
        if self.config.shared and tokens is not None and ends is not None:
            order = self.order(codes, tokens, ends)
            codes = codes.gather(-1, order)
            if rows is not None:
                rows = rows.gather(-2, order.unsqueeze(-1).expand_as(rows))
        rows = self.rows_of(codes) if rows is None else rows
        said = rows.sum(-2)
        spread = (wanted.detach() - wanted.detach().mean(dim=-2, keepdim=True)).square().mean()
        error = (wanted - said.detach()).square().mean()
        pull = (wanted.detach() - said).square().mean()
        distortion = (error + pull) / spread.clamp_min(1e-8)
        embeddings = self.heard(rows)
        if choose.copies_gradient:
            embeddings = embeddings + self.loudness.mean(0) * (wanted - wanted.detach())
        return Quantised(embeddings, codes, distortion)

    def unquantised(self, latents: Tensor) -> Tensor:
        """What a reader would be given if latents needed no codes: training starts with it.

        Args:
            latents: `[..., hidden]`.

        Returns:
            `[..., hidden]`.
        """
        return self.offset + self.loudness.mean(0) * (latents.float() - self.mean_embedding)

    @torch.no_grad()
    def nearest(self, latents: Tensor, *, depth: int) -> Tensor:
        """Nearest codes, stage by stage, in the order of choice: each says most of what is left.

        Args:
            latents: `[..., hidden]`.
            depth: Stages used.

        Returns:
            int64 `[..., depth]`.
        """
        return self._choose(latents.float() - self.mean_embedding, depth, NearestCode())

    @torch.no_grad()
    def said(self, latents: Tensor) -> Tensor:
        """The part of latents that their nearest codes say, from the mean of text.

        Args:
            latents: `[..., hidden]`.

        Returns:
            Sum of rows, `[..., hidden]`.
        """
        codes = self._choose(latents - self.mean_embedding, self.config.depth, NearestCode())
        return self.rows_of(codes).sum(-2)

    @torch.no_grad()
    def _choose(self, residual: Tensor, depth: int, choose: Quantiser) -> Tensor:
        """Codes `[..., depth]` of residuals, without a gradient."""
        left, codes = residual.clone(), []
        for stage in range(depth):
            row, code = choose(left, self.table(stage))
            codes.append(code)
            if self.config.shared:
                heard = code != SILENT
                if not bool(heard.any()):  # the residual stays, so every later stage is silent
                    codes += [code] * (depth - stage - 1)
                    break
                row = row * heard.unsqueeze(-1)
            left -= row
        return torch.stack(codes, dim=-1)

    def _relaxed(
        self, residual: Tensor, depth: int, choose: Quantiser, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Rows `[..., depth, hidden]` and codes of a choice that carries its own gradient."""
        rows, codes = [], []
        for stage in range(depth):
            row, code = choose(residual, self.table(stage), generator=generator)
            if self.config.shared:
                row = row * (code != SILENT).unsqueeze(-1)
            residual = residual - row.detach()
            rows.append(row)
            codes.append(code)
        return torch.stack(rows, dim=-2), torch.stack(codes, dim=-1)

    @torch.no_grad()
    def order(self, codes: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
        """Order of codes by the token of the segment that each is nearest to, silence last."""
        deviation = tokens.float() - self.mean_embedding
        n = deviation.shape[1]
        rows = self.rows_of(codes)
        near = 2 * torch.einsum("bkdh,bnh->bkdn", rows, deviation)
        near = near - deviation.square().sum(-1)[:, None, None, :]
        segments = torch.arange(ends.shape[1], device=ends.device).view(1, -1, 1)
        outside = segment_of(ends, n).unsqueeze(1) != segments
        place = near.masked_fill(outside.unsqueeze(2), -torch.inf).argmax(-1)
        return torch.argsort(place.masked_fill(codes == SILENT, n), dim=-1, stable=True)

    def embed(self, codes: Tensor) -> Tensor:
        """What a reader is given for codes: the sum of their rows, each at its stage's loudness.

        Args:
            codes: int64 `[..., depth]`, any depth up to the codec's.

        Returns:
            `[..., hidden]`.
        """
        return self.heard(self.rows_of(codes))

    def heard(self, rows: Tensor) -> Tensor:
        """Sum of rows `[..., depth, hidden]` as a reader hears it, `[..., hidden]`."""
        summed: Tensor = self.offset + (rows * self.loudness[: rows.shape[-2]]).sum(-2)
        return summed

    def rows_of(self, codes: Tensor) -> Tensor:
        """Rows of codes, `[..., depth, hidden]`; nothing for silence."""
        # One lookup for all stages: each would make a gradient as large as the table.
        flat = codes
        if not self.config.shared:
            stages = torch.arange(codes.shape[-1], device=codes.device)
            flat = codes + stages * self.config.size
        rows = nn.functional.embedding(flat, self.rows.flatten(0, 1))
        if self.config.shared:
            rows = rows * (codes != SILENT).unsqueeze(-1)
        return rows

    def table(self, stage: int) -> Tensor:
        """The rows that a stage chooses from.

        Args:
            stage: 0 to depth - 1.

        Returns:
            `[size, hidden]`.
        """
        return self.rows[0 if self.config.shared else stage]
