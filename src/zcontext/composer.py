"""The composer: what the autoregressive writer learns beside its adapter.

The one-pass writer is told where segments end and writes all symbols at once. The autoregressive
one goes through a window symbol by symbol, and needs more than it: what stands before the first
symbol, what it was asked for, how far the next symbol is to reach (its pace), and when to end.
What it does not know: the base model, text, how choices are drawn (`spelling.py`), where a pace
leads (`pointing.py`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zcontext.codebook import Codebook
from zcontext.config import CodecConfig
from zcontext.precision import in_full_precision, unit_rms

N_WAVES = 6
MAX_PACE = 4.0
"""How much more, or less, than what it was asked for one symbol can be made to stand for."""

START_SHARPNESS = 8.0
END_AT_FIRST = -4.0
"""Log-odds of END before anything is learned."""

END_REACH = 4.0
"""How much faster END is learned than pace: it has to be certain at the end, and only there."""


def _even(hidden: Tensor) -> Tensor:
    """States at length 1, for a single output: a step of Adam moves all 576 weights of it alike.

    At root mean square 1, forty steps of 4e-4 took the pace 30 % off what it started right at.
    """
    even: Tensor = unit_rms(hidden) / hidden.shape[-1] ** 0.5
    return even


def waves(values: Tensor) -> Tensor:
    """Sinusoids of numbers from 0 to about 10, at wavelengths 1, 2, 4 to 32.

    The signal of length of Takase and Okazaki (2019), on logarithms instead of counts.

    Args:
        values: `[...]`.

    Returns:
        float32 `[..., 2 * N_WAVES]`.
    """
    rates = 2 * math.pi / 2.0 ** torch.arange(N_WAVES, device=values.device)
    angles = values.float().unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Composer(nn.Module):
    """Start, slot, signal of length, pace, END and the way from states to latents.

    Fresh, it goes at the pace that it is asked for, never ends early, and writes what the one-pass
    writer would write: see `begin_from`.

    Args:
        config: Shape of the codec.
        hidden_size: Width of the base model.
    """

    digest: str = ""
    """Names what is learned here and in the adapter, once it has been sealed."""

    def __init__(self, config: CodecConfig, *, hidden_size: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(hidden_size))
        self.slot = nn.Parameter(torch.zeros(hidden_size))
        self.asked = nn.Linear(2 * N_WAVES, hidden_size, bias=False)
        self.left = nn.Linear(2 * N_WAVES, hidden_size, bias=False)
        self.to_latent = nn.Linear(hidden_size, hidden_size)
        self.to_pace = nn.Linear(hidden_size, 1)
        self.to_end = nn.Linear(hidden_size, 1)
        for layer in (self.asked, self.left, self.to_latent, self.to_pace, self.to_end):
            nn.init.zeros_(layer.weight)
        for layer in (self.to_latent, self.to_pace):
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.to_end.bias, END_AT_FIRST)
        self.log_sharpness = nn.Parameter(torch.full((config.depth,), math.log(START_SHARPNESS)))

    @torch.no_grad()
    def begin_from(self, codebook: Codebook) -> None:
        """Take over what the one-pass writer has learned.

        Args:
            codebook: Of the codec.
        """
        self.start.copy_(codebook.offset)
        self.slot.copy_(codebook.slot)
        self.to_latent.load_state_dict(codebook.to_latent.state_dict())

    # -- inputs -----------------------------------------------------------------------------------

    @in_full_precision
    def start_inputs(self, ratios: Tensor) -> Tensor:
        """What stands before the first symbol, and says what is asked for.

        Args:
            ratios: Source tokens a symbol, `[batch]`.

        Returns:
            `[batch, 1, hidden]`.
        """
        signal: Tensor = self.start + self.asked(waves(ratios.log2()))
        return signal.unsqueeze(1)

    @in_full_precision
    def slot_inputs(self, pooled: Tensor, n_left: Tensor) -> Tensor:
        """What the writer reads where a symbol is due.

        Args:
            pooled: Of the segment that it is to stand for, `[batch, k, hidden]`.
            n_left: Symbols that the rest would take at the pace asked for, `[batch, k]`.

        Returns:
            `[batch, k, hidden]`.
        """
        signal: Tensor = self.left(waves((1 + n_left).log2()))
        return pooled.float() + self.slot + signal

    # -- outputs ----------------------------------------------------------------------------------

    @in_full_precision
    def latents(self, hidden: Tensor, pooled: Tensor, *, scale: float) -> Tensor:
        """The segment's own tokens plus what the writer corrects.

        Args:
            hidden: States at the slots, `[batch, k, hidden]`.
            pooled: `[batch, k, hidden]`.
            scale: Of the correction; the codebook's.

        Returns:
            `[batch, k, hidden]`.
        """
        correction: Tensor = self.to_latent(unit_rms(hidden))
        return pooled.float() + scale * correction

    @in_full_precision
    def pace(self, hidden: Tensor) -> Tensor:
        """Bits that the next symbol is to stand for, over those asked for.

        Args:
            hidden: States at the start and at slots, `[batch, k, hidden]`.

        Returns:
            `[batch, k]`, between 1 / MAX_PACE and MAX_PACE.
        """
        drawn: Tensor = self.to_pace(_even(hidden)).squeeze(-1)
        return (math.log(MAX_PACE) * torch.tanh(drawn)).exp()

    @in_full_precision
    def end_odds(self, hidden: Tensor) -> Tensor:
        """Log-odds that no symbol follows.

        Args:
            hidden: States at slots, `[batch, k, hidden]`.

        Returns:
            `[batch, k]`.
        """
        odds: Tensor = self.to_end(END_REACH * _even(hidden)).squeeze(-1)
        return odds

    @in_full_precision
    def scores(self, distances: Tensor, *, stage: int) -> Tensor:
        """Logits of a stage's codes: how near each is to what is left to be said.

        Args:
            distances: Squared, to every code, `[..., size]`.
            stage: 0 to depth - 1.

        Returns:
            `[..., size]`; the nearest code has the highest.
        """
        spread = distances.detach().std(-1, keepdim=True).clamp_min(1e-6)
        return -self.log_sharpness[stage].exp() * distances / spread
