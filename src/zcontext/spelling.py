"""How a latent is spelt: which codes, or END, with which probability and which gradient.

The distribution of a symbol is a product over its stages. The first chooses among all codes of its
table and END, each later one among all codes, given what the ones before it left unsaid; so at
depth 1 it is one softmax over `size` codes and END, that of arXiv 2603.25340. Base tokens have no
logits here. What this module does not know: models, text, where states come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zcontext.codebook import Codebook
from zcontext.composer import Composer
from zcontext.lexicon import SILENT
from zcontext.relaxation import gumbel_noise

Noise = Sequence[Tensor]
"""Of each stage, `[..., size]`; of the first `[..., size + 1]`, END last."""


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


class Speller:
    """Stages of one codec under one composer.

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

    @torch.no_grad()
    def greedy(self, latents: Tensor, odds: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest: END where it is likelier than all codes together, else stage by stage.

        Args:
            latents: `[..., hidden]`.
            odds: Log-odds of END, `[...]`.

        Returns:
            Codes in the order of choice, int64 `[..., depth]`, and whether END was chosen, `[...]`.
        """
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
    def draw(self, latents: Tensor, odds: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """A sample: the highest of logits and Gumbel noise, stage by stage.

        Args:
            latents: `[..., hidden]`.
            odds: Log-odds of END, `[...]`.
            noise: Of each stage.

        Returns:
            As `greedy`; what END is drawn instead of is drawn nevertheless.
        """
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
        """What given codes cost, and what END costs or its absence.

        Args:
            latents: `[..., hidden]`.
            odds: Log-odds of END, `[...]`.
            codes: In the order of choice, int64 `[..., depth]`.

        Returns:
            Nats of the codes, each stage given the ones before, `[..., depth]`; nats of END and of
            not ending, `[..., 2]`.
        """
        told = []
        for stage, scores, _ in self._stages(latents, codes):
            chosen = codes[..., stage].unsqueeze(-1)
            told.append(-scores.log_softmax(-1).gather(-1, chosen).squeeze(-1))
        ending = torch.stack([-odds, odds], dim=-1)
        return torch.stack(told, dim=-1), nn.functional.softplus(ending)

    def relax(
        self, latents: Tensor, odds: Tensor, codes: Tensor, *, noise: Noise, temperature: float
    ) -> Relaxed:
        """Codes that were drawn, with the gradient of the softmax that they were drawn from.

        Straight-through Gumbel-Softmax (Jang et al. 2017): the forward value is the drawn row, the
        backward one that of the expected row at a temperature, under the noise of the draw.

        Args:
            latents: `[..., hidden]`.
            odds: Log-odds of END, `[...]`.
            codes: As they were drawn, int64 `[..., depth]`.
            noise: As they were drawn with.
            temperature: Of the softmax.

        Returns:
            Rows and terms of the objective.
        """
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


@dataclass(frozen=True, slots=True)
class Relaxed:
    """What relaxing drawn codes gives.

    Attributes:
        rows: Of the drawn codes, in the order of choice, with a gradient, `[..., depth, hidden]`.
        unlike: Mean squared difference between drawn and expected row, `[...]`.
        shares: Of each stage, the probability of every code, `[..., size]`.
    """

    rows: Tensor
    unlike: Tensor
    shares: tuple[Tensor, ...]


def crowding(shares: Sequence[Tensor], real: Tensor, *, shared: bool) -> Tensor:
    """How far the use of codes is from even: KL from the mean choice to the uniform one, in nats.

    Its gradient goes into every probability; counts of drawn codes would have none.

    Args:
        shares: Of each stage, the probability of every code, `[..., size]`.
        real: True on symbols that count, `[...]`.
        shared: Whether the stages choose from one table, and are counted together.

    Returns:
        A scalar, 0 when all codes are used alike.
    """
    weight = real.to(shares[0]).unsqueeze(-1)
    total = weight.sum().clamp_min(1)
    means = [(share * weight).flatten(0, -2).sum(0) / total for share in shares]
    tables = [torch.stack(means).mean(0)] if shared else means
    each = [(mean * (mean.clamp_min(1e-12) * len(mean)).log()).sum() for mean in tables]
    return torch.stack(each).mean()
