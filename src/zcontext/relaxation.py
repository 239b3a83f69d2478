"""From a latent vector to one code of a table, with a gradient: the two quantisers.

`NearestCode` is vector quantisation (van den Oord et al. 2017); `GumbelCode` is the
straight-through Gumbel-Softmax (Jang et al. 2017) of arXiv 2603.25340. Both look at one stage's
table; the residual stack over stages is `codebook.py`'s. What this module does not know: models,
stages, text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def squared_distances(points: Tensor, table: Tensor) -> Tensor:
    """Squared Euclidean distance of every point to every row.

    Args:
        points: `[..., hidden]`.
        table: `[size, hidden]`.

    Returns:
        `[..., size]`, without the points' own squared norm (constant along the last axis).
    """
    return table.square().sum(-1) - 2.0 * (points @ table.T)


class Quantiser(Protocol):
    """Chooses one row of a table for every point.

    Attributes:
        copies_gradient: The choice itself has no gradient, so whoever sums the rows must copy the
            sum's gradient to the latent (the straight-through estimator of Bengio et al. 2013).
    """

    @property
    def copies_gradient(self) -> bool:
        """Whether the latent's gradient is a copy of the quantised one's."""
        ...

    def __call__(
        self, points: Tensor, table: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose.

        Args:
            points: `[..., hidden]`.
            table: `[size, hidden]`.
            generator: Noise source while training; None means no noise.

        Returns:
            The chosen row `[..., hidden]`, differentiable in what the quantiser learns from, and
            the code, int64 `[...]`.
        """
        ...


@dataclass(frozen=True, slots=True)
class NearestCode:
    """The nearest row. The row gets the reader's gradient; the point has to be given a copy."""

    @property
    def copies_gradient(self) -> bool:
        """True: an argmin has no gradient."""
        return True

    def __call__(
        self, points: Tensor, table: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose the nearest row.

        Args:
            points: `[..., hidden]`.
            table: `[size, hidden]`.
            generator: Unused: nearest-code quantisation draws nothing.

        Returns:
            Row `[..., hidden]` and code `[...]`.
        """
        del generator
        codes = squared_distances(points.detach(), table.detach()).argmin(-1)
        return torch.nn.functional.embedding(codes, table), codes


@dataclass(frozen=True, slots=True)
class GumbelCode:
    """Straight-through Gumbel-Softmax over negative distances.

    Attributes:
        temperature: Of the relaxation: high is smooth, low is close to one-hot.
        sharpness: Scale of the logits: distances over their standard deviation.
    """

    temperature: float = 0.8
    sharpness: float = 8.0

    @property
    def copies_gradient(self) -> bool:
        """False: the relaxation carries the gradient to the point."""
        return False

    def logits(self, points: Tensor, table: Tensor) -> Tensor:
        """Scores of every code, `[..., size]`: negative squared distances, scaled to one spread."""
        distance = squared_distances(points, table)
        spread = distance.detach().std(-1, keepdim=True).clamp_min(1e-6)
        return -self.sharpness * distance / spread

    def __call__(
        self, points: Tensor, table: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose by noisy argmax (plain argmax without a generator).

        Args:
            points: `[..., hidden]`.
            table: `[size, hidden]`.
            generator: Source of the Gumbel noise; None means no noise.

        Returns:
            Row `[..., hidden]` and code `[...]`.
        """
        logits = self.logits(points, table)
        if generator is not None:
            logits = logits + gumbel_noise(logits, generator)
        one_hot = straight_through(logits, temperature=self.temperature)
        return one_hot @ table, one_hot.detach().argmax(-1)


def gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of the shape, type and device of `like`.

    Args:
        like: Gives shape and device.
        generator: CPU generator; drawn there so that every device sees the same noise.

    Returns:
        Noise shaped as `like`.
    """
    uniform = torch.rand(like.shape, generator=generator, dtype=torch.float32)
    noise = -torch.log(-torch.log(uniform.clamp(1e-10, 1 - 1e-7)))
    return noise.to(device=like.device, dtype=like.dtype)


def straight_through(logits: Tensor, *, temperature: float) -> Tensor:
    """One-hot forward, softmax backward.

    Args:
        logits: `[..., size]`, noise included.
        temperature: Positive.

    Returns:
        One-hot `[..., size]` with the gradient of `softmax(logits / temperature)`.
    """
    soft = torch.softmax(logits / temperature, dim=-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())


@dataclass(frozen=True, slots=True)
class TemperatureSchedule:
    """Geometric from `start` to `end` over `n_steps`, constant after.

    Attributes:
        start: Temperature at step 0.
        end: Temperature at `n_steps` and later.
        n_steps: Length of the descent.
    """

    start: float = 0.8
    end: float = 0.2
    n_steps: int = 1000

    def at(self, step: int) -> float:
        """Temperature at a step."""
        done = min(1.0, max(0.0, step / max(1, self.n_steps)))
        return float(self.start * (self.end / self.start) ** done)
