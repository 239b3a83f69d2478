"""The codebook: hidden states in, codes out, embeddings back.

It holds everything learned that belongs to symbols and not to an adapter: the stages of codes (with
a table each, or one for all, of learned rows or of names), the slot's input vector, the
pooling that starts a latent from its segment's tokens, and the head that estimates surprisal at the
writer's exit layer. What it does not know: the base model, text, windows.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zcontext.config import CodecConfig
from zcontext.lexicon import NO_TOKEN, SILENT, Lexicon
from zcontext.naming import Wording, name_phrases
from zcontext.pooling import N_PLACES, weights_in_text
from zcontext.precision import in_full_precision, unit_rms
from zcontext.relaxation import NearestCode, Quantiser
from zcontext.segmentation import segment_of

START_LOUDNESS = 1.8
"""How much louder than text a symbol's first code starts: readers trained from 1 wanted 1.5."""

FALLING = 0.9
"""Loudness of a code over that of the one before it. Codes stand in the order of the text, and the
loudest is the first that a reader should say."""


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
        # units of token embeddings, however loud the reader wants them. Equal rows would tie.
        n_tables = 1 if config.shared else config.depth
        noise = torch.randn(n_tables, config.size, hidden_size, generator=generator)
        shrink = scale * 0.7 ** torch.arange(n_tables).view(-1, 1, 1)
        if config.named:
            self.lexicon: Lexicon | None = Lexicon(config.size, token_embeddings)
        else:
            self.lexicon = None
            self.rows = nn.Parameter(noise * shrink)
            if config.shared:
                self.rows.data[0, SILENT] = 0.0
        self.offset = nn.Parameter(mean.clone())
        self.slot = nn.Parameter(torch.randn(hidden_size, generator=generator) * scale)
        self.place_logits = nn.Parameter(torch.zeros(N_PLACES))
        falling = FALLING if config.shared else 1.0
        loudness = START_LOUDNESS * falling ** torch.arange(config.depth).float()
        self.loudness = nn.Parameter(loudness.unsqueeze(-1).repeat(1, hidden_size))
        # States are large and alike. Unscaled, a few steps of Adam made the correction 18 times
        # the warm start, and the reader learned to ignore every symbol.
        self.correction_scale = scale / hidden_size**0.5
        self.to_latent = nn.Linear(hidden_size, hidden_size)
        self.expectation = nn.Linear(hidden_size, hidden_size, bias=False)
        self.surprise = nn.Linear(hidden_size, 1)
        for layer in (self.to_latent, self.expectation, self.surprise):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.to_latent.bias)
        nn.init.constant_(self.surprise.bias, config.mean_surprisal)
        self.register_buffer("usage", torch.ones(n_tables, config.size), persistent=False)

    # -- names ------------------------------------------------------------------------------------

    def words_of(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that symbols name, each with its own row.

        Args:
            codes: int64 `[k, depth]`.

        Returns:
            Rows in the order of the text, `[k, most, hidden]`, zero behind the last one; and the
            tokens, int64 `[k, most]`, `NO_TOKEN` behind the last one. Codes that are no names have
            a row and no token.
        """
        if self.lexicon is None:
            return self.rows_of(codes), torch.full_like(codes, NO_TOKEN)
        return self.lexicon.words_of(codes, self.mean_embedding)

    def cut(self, ids: Tensor, breaks: Sequence[Set[int]] | None = None) -> Tensor | None:
        """Where the phrases of some texts start.

        Args:
            ids: Tokens, int64 `[batch, n]`.
            breaks: Of each text, places that no phrase reaches across.

        Returns:
            bool `[batch, n]`, on the CPU; None where codes are no names.
        """
        return None if self.lexicon is None else self.lexicon.cut(ids, breaks)

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
        weights = weights_in_text(self.place_logits, ends, tokens.shape[1])
        summed: Tensor = self.mean_embedding + weights @ (tokens.float() - self.mean_embedding)
        return summed

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
        wording: Wording | None = None,
    ) -> Quantised:
        """Write latents as codes, stage by stage, each stage coding what the ones before left.

        Codes of a shared table stand in the order in which the text says them, which their
        loudness tells the reader. Where codes name tokens, tokens are named first, and the stages
        that are left code the rest.

        Args:
            latents: `[..., hidden]`.
            depth: Stages used; None means all.
            quantiser: Choice rule; None means the nearest code.
            generator: Noise for a stochastic quantiser while training.
            wording: The text, latents `[batch, k, hidden]` then being its segments'. Without it
                codes stand in the order of choice, and none is named first.

        Returns:
            Embeddings, codes and distortion.
        """
        choose, depth, rows = quantiser or NearestCode(), depth or self.config.depth, None
        wanted = latents.float() - self.mean_embedding
        if not choose.copies_gradient:
            rows, codes = self._relaxed(wanted, depth, choose, generator)
        elif self.lexicon is not None and wording is not None:
            codes = self._named_first(self.lexicon, wanted.detach(), depth, choose, wording)
            wording = None  # in its order already
        else:
            codes = self._choose(wanted.detach(), depth, choose)
        if self.config.shared and wording is not None:
            order = self.order(codes, wording.tokens, wording.ends)
            codes = codes.gather(-1, order)
            if rows is not None:
                rows = rows.gather(-2, order.unsqueeze(-1).expand_as(rows))
        rows = self.rows_of(codes) if rows is None else rows
        said, fixed = rows.sum(-2), wanted.detach()
        spread = (fixed - fixed.mean(dim=-2, keepdim=True)).square().mean()
        error = (wanted - said.detach()).square().mean()
        pull = (fixed - said).square().mean()
        distortion = (error + pull) / spread.clamp_min(1e-8)
        embeddings = self.heard(rows)
        if choose.copies_gradient:
            embeddings = embeddings + self.loudness.mean(0) * (wanted - fixed)
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

    @torch.no_grad()
    def _named_first(
        self, lexicon: Lexicon, wanted: Tensor, depth: int, choose: Quantiser, wording: Wording
    ) -> Tensor:
        """Codes `[batch, k, depth]` of latents whose text is known, in its order."""
        n = wording.ids.shape[1]
        names, starts = lexicon.named_at(wording.ids, wording.ends)
        found = name_phrases(names, starts, wording.ends, wording.surprisal, depth=depth)
        if lexicon.complete:
            return found.codes  # what is not said had no code left
        deviations = wording.tokens.float() - self.mean_embedding
        unsaid = weights_in_text(self.place_logits, wording.ends, n) * ~found.chosen.unsqueeze(1)
        left = wanted - unsaid @ deviations - self.rows_of(found.codes).sum(-2)
        free = found.codes == SILENT
        worth = left.square().sum(-1) >= lexicon.shortest(self.mean_embedding) / 4
        more = self._pursued(left, free.any(-1) & worth, depth, choose)
        codes = torch.where(free, more.gather(-1, (free.cumsum(-1) - 1).clamp_min(0)), found.codes)
        places = self._places(codes, wording.tokens, wording.ends)
        places = torch.where(free, places, found.places).masked_fill(codes == SILENT, n)
        return codes.gather(-1, places.argsort(dim=-1, stable=True))

    def _pursued(self, left: Tensor, worth: Tensor, depth: int, choose: Quantiser) -> Tensor:
        """Codes `[batch, k, depth]` for what is left, where it is worth a look at the table.

        Silence is nearest to what is shorter than half of the shortest row. Row by row, for a pass
        must not tell what else is in it.
        """
        codes = torch.full((*left.shape[:-1], depth), SILENT, device=left.device)
        for row, places in enumerate(worth):
            if bool(places.any()):
                codes[row, places] = self._choose(left[row, places], depth, choose)
        return codes

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
        places = self._places(codes, tokens, ends).masked_fill(codes == SILENT, tokens.shape[1])
        return places.argsort(dim=-1, stable=True)

    def _places(self, codes: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
        """The token of its segment that each code is nearest to, `[batch, k, depth]`."""
        deviation = tokens.float() - self.mean_embedding
        near = 2 * torch.einsum("bkdh,bnh->bkdn", self.rows_of(codes), deviation)
        near = near - deviation.square().sum(-1)[:, None, None, :]
        segments = torch.arange(ends.shape[1], device=ends.device).view(1, -1, 1)
        outside = segment_of(ends, tokens.shape[1]).unsqueeze(1) != segments
        return near.masked_fill(outside.unsqueeze(2), -torch.inf).argmax(-1)

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
        return self.offset + (rows * self.loudness[: rows.shape[-2]]).sum(-2)

    def rows_of(self, codes: Tensor) -> Tensor:
        """Rows of codes, `[..., depth, hidden]`; nothing for silence."""
        if self.lexicon is not None:
            return self.lexicon.rows_of(codes, self.mean_embedding)
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
        if self.lexicon is not None:
            return self.lexicon.table(self.mean_embedding)
        return self.rows[0 if self.config.shared else stage]
