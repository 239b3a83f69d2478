"""How a symbol is spelt: which codes, or END, with which probability and which gradient.

In a codec of learned rows its distribution is a product over its stages. The first chooses among
all codes of its table and END, each later one among all codes, given what the ones before it left
unsaid; so at depth 1 it is one softmax over `size` codes and END, that of arXiv 2603.25340. In a
codec of names a segment's phrases are looked up, and the one choice is between them and END. Base
tokens have no logits here. What this module does not know: models, where states come from, where
segments end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from zcontext.codebook import Codebook
from zcontext.composer import Composer
from zcontext.lexicon import SILENT
from zcontext.naming import Wording
from zcontext.relaxation import gumbel_noise

Noise = Sequence[Tensor]
"""Of each stage that draws, `[..., size]`; of the first `[..., size + 1]`, END last. Of names one
draws, between all of them together and END: `[..., 2]`."""


def draw_noise(shape: Sequence[int], *, depth: int, size: int, seeds: torch.Generator) -> Noise:
    """Standard Gumbel noise for some symbols.

    Args:
        shape: Leading axes.
        depth: Stages.
        size: Codes a stage.
        seeds: CPU generator.

    Returns:
        Noise of each stage, on the CPU.
    """
    widths = [size + 1] + [size] * (depth - 1)
    return [gumbel_noise(torch.empty(*shape, width), seeds) for width in widths]


def with_end(scores: Tensor, odds: Tensor) -> Tensor:
    """Log-probabilities over codes and END.

    END is given by its odds against all codes together, not by a score of its own: with thousands
    of codes of like scores, one score could not hold its own against them.

    Args:
        scores: Logits of the codes, `[..., size]`.
        odds: Log-odds of END, `[...]`.

    Returns:
        `[..., size + 1]`, END last; its softmax is itself.
    """
    log_odds = odds.unsqueeze(-1).to(scores)
    said = nn.functional.logsigmoid(-log_odds) + scores.log_softmax(-1)
    return torch.cat([said, nn.functional.logsigmoid(log_odds)], dim=-1)


def nats_of_end(odds: Tensor) -> Tensor:
    """Nats of END and of not ending, `[..., 2]`."""
    return nn.functional.softplus(torch.stack([-odds, odds], dim=-1))


@dataclass(frozen=True, slots=True)
class Relaxed:
    """What relaxing drawn codes gives.

    Attributes:
        rows: Of the drawn codes, in the order of choice, with a gradient, `[..., depth, hidden]`.
        unlike: Mean squared difference between drawn and expected row, `[...]`.
        shares: Of each stage that draws, the probability of every code, `[..., size]`.
    """

    rows: Tensor
    unlike: Tensor
    shares: tuple[Tensor, ...]


class Spells(Protocol):
    """Chooses the codes of symbols, or END."""

    def noise(self, shape: Sequence[int], seeds: torch.Generator) -> Noise:
        """Noise for symbols.

        Args:
            shape: Leading axes.
            seeds: CPU generator.

        Returns:
            Of each stage that draws, on the CPU.
        """
        ...

    def greedy(
        self, latents: Tensor, odds: Tensor, *, wording: Wording | None = None
    ) -> tuple[Tensor, Tensor]:
        """The likeliest: END where it is likelier than all codes together.

        Args:
            latents: `[..., hidden]`.
            odds: Log-odds of END, `[...]`.
            wording: The text, latents `[batch, k, hidden]` then being its segments'.

        Returns:
            Codes in the order of choice, int64 `[..., depth]`, and whether END was chosen, `[...]`.
        """
        ...

    def draw(
        self, latents: Tensor, odds: Tensor, noise: Noise, *, wording: Wording | None = None
    ) -> tuple[Tensor, Tensor]:
        """A sample: the highest of logits and Gumbel noise.

        Args:
            latents: `[..., hidden]`.
            odds: Log-odds of END, `[...]`.
            noise: As `noise` gives it.
            wording: As for `greedy`.

        Returns:
            As `greedy`; what END is drawn instead of is drawn nevertheless.
        """
        ...

    def nats(self, latents: Tensor, odds: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """What given codes cost, and what END costs or its absence.

        Args:
            latents: `[..., hidden]`.
            odds: Log-odds of END, `[...]`.
            codes: In the order of choice, int64 `[..., depth]`.

        Returns:
            Nats of the codes, each stage given the ones before, `[..., depth]`; nats of END and of
            not ending, `[..., 2]`.
        """
        ...

    def relax(
        self, latents: Tensor, odds: Tensor, codes: Tensor, *, noise: Noise, temperature: float
    ) -> Relaxed:
        """Codes that were drawn, with a gradient for what drew them.

        Straight-through Gumbel-Softmax (Jang et al. 2017): the forward value is what was drawn, the
        backward one that of what is expected at a temperature, under the noise of the draw.

        Args:
            latents: `[..., hidden]`.
            odds: Log-odds of END, `[...]`.
            codes: As they were drawn, int64 `[..., depth]`.
            noise: As they were drawn with.
            temperature: Of the softmax.

        Returns:
            Rows and terms of the objective.
        """
        ...


class Speller:
    """Stages of one codec of learned rows under one composer.

    Args:
        composer: Gives scores.
        codebook: Gives rows; it is not learned through, and does not change meanwhile.
        depth: Stages used.
    """

    def __init__(self, composer: Composer, codebook: Codebook, depth: int) -> None:
        self.composer, self.codebook, self.depth = composer, codebook, depth
        tables = [codebook.table(stage).detach() for stage in range(depth)]
        # Symbols come one by one here: found anew for each, the norms took longer than the model.
        shared = codebook.config.shared
        norms = [table.square().sum(-1) for table in (tables[:1] if shared else tables)]
        self._tables, self._norms = tables, norms * depth if shared else norms

    def _row(self, stage: int, codes: Tensor) -> Tensor:
        rows = nn.functional.embedding(codes, self._tables[stage])
        return rows * (codes != SILENT).unsqueeze(-1) if self.codebook.config.shared else rows

    def _distances(self, left: Tensor, stage: int) -> Tensor:
        """As `relaxation.squared_distances` has them."""
        with torch.autocast(left.device.type, enabled=False):
            return self._norms[stage] - 2.0 * (left @ self._tables[stage].T)

    def _scores(self, left: Tensor, stage: int) -> Tensor:
        return self.composer.scores(self._distances(left, stage), stage=stage)

    def _stages(self, latents: Tensor, codes: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of each stage its number, its scores and the rows of the codes that are given."""
        left = latents.float() - self.codebook.mean_embedding
        for stage in range(self.depth):
            row = self._row(stage, codes[..., stage])
            yield stage, self._scores(left, stage), row
            left = left - row

    def noise(self, shape: Sequence[int], seeds: torch.Generator) -> Noise:
        """See `Spells`."""
        return draw_noise(shape, depth=self.depth, size=self.codebook.config.size, seeds=seeds)

    @torch.no_grad()
    def greedy(
        self, latents: Tensor, odds: Tensor, *, wording: Wording | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Spells`; stage by stage, whatever the text."""
        left = latents.float() - self.codebook.mean_embedding
        codes = []
        for stage in range(self.depth):
            code = self._distances(left, stage).argmin(-1)
            codes.append(code)
            if self.codebook.config.shared and bool((code == SILENT).all()):
                codes += [code] * (self.depth - stage - 1)  # what is left stays as it is
                break
            left = left - self._row(stage, code)
        return torch.stack(codes, dim=-1), odds > 0

    @torch.no_grad()
    def draw(
        self, latents: Tensor, odds: Tensor, noise: Noise, *, wording: Wording | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Spells`; stage by stage, whatever the text."""
        left = latents.float() - self.codebook.mean_embedding
        codes, ended = [], torch.zeros_like(odds, dtype=torch.bool)
        for stage in range(self.depth):
            scores = self._scores(left, stage)
            size = scores.shape[-1]
            if stage == 0:
                scores = with_end(scores, odds)
            noisy = scores + noise[stage].to(scores)
            code = noisy[..., :size].argmax(-1)
            if stage == 0:
                ended = noisy[..., size] > noisy[..., :size].amax(-1)
            codes.append(code)
            left = left - self._row(stage, code)
        return torch.stack(codes, dim=-1), ended

    def nats(self, latents: Tensor, odds: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See `Spells`."""
        told = []
        for stage, scores, _ in self._stages(latents, codes):
            chosen = codes[..., stage].unsqueeze(-1)
            told.append(-scores.log_softmax(-1).gather(-1, chosen).squeeze(-1))
        return torch.stack(told, dim=-1), nats_of_end(odds)

    def relax(
        self, latents: Tensor, odds: Tensor, codes: Tensor, *, noise: Noise, temperature: float
    ) -> Relaxed:
        """See `Spells`."""
        rows, unlike, used = [], [], []
        for stage, scores, row in self._stages(latents, codes):
            size = scores.shape[-1]
            noisy = (with_end(scores, odds) if stage == 0 else scores) + noise[stage].to(scores)
            shares = torch.softmax(noisy / temperature, dim=-1)[..., :size]
            soft = shares @ self._tables[stage]
            rows.append(row + (soft - soft.detach()))
            unlike.append((soft - row).square().mean(-1))
            used.append(scores.softmax(-1))
        return Relaxed(torch.stack(rows, dim=-2), torch.stack(unlike, dim=-1).mean(-1), tuple(used))


class Namer:
    """Names of one codec: the phrases of a segment, as the one-pass writer names them, or END.

    Nothing of the text is chosen here, so nothing of it is drawn. What a segment says changes with
    where it ends; its latent, the sum of its tokens, passes the gradient on.

    Args:
        codebook: Names phrases; it is not learned through.
        depth: Names of a symbol at most.
    """

    def __init__(self, codebook: Codebook, depth: int) -> None:
        self.codebook, self.depth = codebook, depth

    def noise(self, shape: Sequence[int], seeds: torch.Generator) -> Noise:
        """See `Spells`."""
        return draw_noise(shape, depth=1, size=1, seeds=seeds)

    @torch.no_grad()
    def greedy(
        self, latents: Tensor, odds: Tensor, *, wording: Wording | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Spells`; codes stand in the order of the text."""
        named = self.codebook.quantise(latents, depth=self.depth, wording=wording)
        return named.codes, odds > 0

    @torch.no_grad()
    def draw(
        self, latents: Tensor, odds: Tensor, noise: Noise, *, wording: Wording | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Spells`; END alone is drawn."""
        codes, _ = self.greedy(latents, odds, wording=wording)
        return codes, self._noisy(odds, noise).argmax(-1) == 1

    def nats(self, latents: Tensor, odds: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See `Spells`; codes that are looked up cost nothing."""
        return torch.zeros_like(codes, dtype=odds.dtype), nats_of_end(odds)

    def relax(
        self, latents: Tensor, odds: Tensor, codes: Tensor, *, noise: Noise, temperature: float
    ) -> Relaxed:
        """See `Spells`; every row carries its share of the latent's gradient (`Codebook.quantise`).

        There are no probabilities of codes, and what is named is what is expected.
        """
        said = torch.softmax(self._noisy(odds, noise) / temperature, dim=-1)[..., :1]
        moved = (latents - latents.detach()) / self.depth
        rows = self.codebook.rows_of(codes) * (1 + said - said.detach()).unsqueeze(-1)
        return Relaxed(rows + moved.unsqueeze(-2), torch.zeros_like(odds), ())

    def _noisy(self, odds: Tensor, noise: Noise) -> Tensor:
        """All codes together and END, `[..., 2]`."""
        return with_end(torch.zeros_like(odds).unsqueeze(-1), odds) + noise[0].to(odds)


def speller_of(composer: Composer, codebook: Codebook, depth: int) -> Spells:
    """What spells the symbols of a codec.

    Args:
        composer: Gives scores.
        codebook: Of the codec.
        depth: Codes per symbol.

    Returns:
        What spells them.
    """
    if codebook.lexicon is not None:
        return Namer(codebook, depth)
    return Speller(composer, codebook, depth)


def hearing_order(codebook: Codebook, codes: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
    """The order in which a reader hears codes that stand in the order of choice.

    Args:
        codebook: Of the codec.
        codes: int64 `[batch, k, depth]`.
        tokens: Of the text, `[batch, n, hidden]`.
        ends: Last token of every segment, `[batch, k]`.

    Returns:
        int64 `[batch, k, depth]`; names stand in the order of the text already.
    """
    if codebook.config.shared and codebook.lexicon is None:
        return codebook.order(codes, tokens, ends)
    return torch.arange(codes.shape[-1], device=codes.device).expand_as(codes)


def crowding(shares: Sequence[Tensor], real: Tensor, *, shared: bool) -> Tensor:
    """How far the use of codes is from even: KL from the mean choice to the uniform one, in nats.

    Its gradient goes into every probability; counts of drawn codes would have none.

    Args:
        shares: Of each stage that draws, the probability of every code, `[..., size]`.
        real: True on symbols that count, `[...]`.
        shared: Whether the stages choose from one table, and are counted together.

    Returns:
        A scalar, 0 when all codes are used alike, or none is drawn.
    """
    if not shares:
        return torch.zeros((), device=real.device)
    weight = real.to(shares[0]).unsqueeze(-1)
    total = weight.sum().clamp_min(1)
    means = [(share * weight).flatten(0, -2).sum(0) / total for share in shares]
    tables = [torch.stack(means).mean(0)] if shared else means
    each = [(mean * (mean.clamp_min(1e-12) * len(mean)).log()).sum() for mean in tables]
    return torch.stack(each).mean()
