"""The autoencode stage: what a batch of windows costs.

The writer turns windows into latents, the quantiser (once it is on) into codes, the decompressor
must say the text again. What this module does not know: optimisers, steps beyond a number, files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from zcontext.config import QuantiserName, check
from zcontext.model import ZLanguageModel
from zcontext.naming import place_symbols
from zcontext.relaxation import GumbelCode, NearestCode, Quantiser, TemperatureSchedule
from zcontext.surprisal import base_surprisal
from zcontext.training.data import WindowBatch
from zcontext.training.restore_loss import restore_loss, spoil

BITS = 1.0 / math.log(2.0)


@dataclass(frozen=True, slots=True)
class AutoencodeConfig:
    """Settings of the stage.

    Attributes:
        discrete_from: Step from which symbols are quantised; continuous before. The codebook is
            started at that very step, so -1 goes on with the codebook of a bundle.
        fit_latents: Latents that the codebook is started from then.
        restart_every: Steps between restarts of dead codes; 0 means never (a short run sees too
            little text to tell a dead code from a rare one).
        distortion_weight: Weight of the quantisation error.
        surprisal_weight: Weight of the surprisal head's error.
        max_token_drop: Upper end of the share of the reader's input tokens that is hidden or
            replaced; drawn per batch, so that the reader cannot lean on its own prefix.
        spread_share: Share of batches whose reader is not told where segments end.
        quantiser: "vq" or "gumbel".
        temperature_steps: Length of the Gumbel temperature's descent.

    Raises:
        ConfigError: There is no such quantiser.
    """  # noqa: DOC502 - raised by the check

    discrete_from: int = 500
    fit_latents: int = 20_000
    restart_every: int = 50
    distortion_weight: float = 0.25
    surprisal_weight: float = 0.02
    max_token_drop: float = 0.5
    spread_share: float = 0.15
    quantiser: QuantiserName = "vq"
    temperature_steps: int = 2000

    def __post_init__(self) -> None:
        names = get_args(QuantiserName)
        check(self, "quantiser", self.quantiser in names, f"one of {', '.join(names)}")


@dataclass(frozen=True, slots=True)
class Slots:
    """Where symbols of a batch are written.

    Attributes:
        ends: Last token of each slot's segment, `[batch, k]`.
        prior_ends: The same of the windows in front, `[batch * windows, k]`, or None.
        surprisal: Bits per token of the plain base, `[batch, n]`.
    """

    ends: Tensor
    prior_ends: Tensor | None
    surprisal: Tensor


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one batch gives.

    Attributes:
        loss: To be minimised, a scalar.
        metrics: Named numbers for the log; still tensors, so that nothing waits for the device.
        latents: Detached latents `[m, hidden]`, for restarting codes.
        codes: int64 `[m, depth]`, or None while symbols are continuous.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    latents: Tensor
    codes: Tensor | None


class Autoencode(nn.Module):
    """Compress a window, say it again.

    Args:
        model: The model that learns.
        config: Settings of the stage.
    """

    def __init__(self, model: ZLanguageModel, config: AutoencodeConfig) -> None:
        super().__init__()
        self.z = model
        self.config = config
        # Registered so that data-parallel wrappers see what is trained.
        self.base = model.base.model
        self.codebook = model.codebook

    def quantiser_at(self, step: int) -> Quantiser:
        """The choice rule at a step."""
        if self.config.quantiser == "gumbel":
            schedule = TemperatureSchedule(n_steps=self.config.temperature_steps)
            return GumbelCode(temperature=schedule.at(step - self.config.discrete_from))
        return NearestCode()

    def forward(self, batch: WindowBatch, step: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch.

        Args:
            batch: Windows.
            step: Optimiser step, for the switch to discrete symbols.
            generator: CPU generator of everything drawn here.

        Returns:
            Loss and figures.
        """
        z = self.z
        slots = self.slots(batch)
        ids, ends = batch.ids.to(z.device), slots.ends.to(z.device)
        memory = self._memory(batch, slots, step)
        z.adapters.activate("compress")
        latents, estimate = z.write_in_one_pass(ids, torch.ones_like(ids), ends, memory=memory)
        discrete = step >= self.config.discrete_from
        distortion = latents.new_zeros(())
        symbols, codes = z.codebook.unquantised(latents), None
        if discrete:
            noise = generator if self.config.quantiser == "gumbel" else None
            written = z.quantise(
                latents,
                ids,
                ends,
                estimate.detach(),
                depth=batch.depth,
                quantiser=self.quantiser_at(step),
                generator=noise,
            )
            symbols, codes, distortion = written.embeddings, written.codes, written.distortion
        inputs, blank = spoil(ids, z.start_token, self.config.max_token_drop, generator)
        known = bool(torch.rand((), generator=generator) >= self.config.spread_share)
        nll, hits = restore_loss(
            z,
            symbols,
            ids,
            ends=ends if known else None,
            inputs=inputs,
            blank=blank,
            memory=memory,
        )
        head_error = nn.functional.smooth_l1_loss(estimate, slots.surprisal.to(estimate))
        loss = nll.mean() + self.config.surprisal_weight * head_error
        loss = loss + self.config.distortion_weight * distortion
        metrics = {
            "bits_per_token": nll.detach().mean() * BITS,
            "accuracy": hits.float().mean(),
            "distortion": distortion.detach(),
            "surprisal_error": head_error.detach(),
        }
        flat = None if codes is None else codes.reshape(-1, codes.shape[-1])
        return StepOutput(loss, metrics, latents.detach().reshape(-1, latents.shape[-1]), flat)

    def slots(self, batch: WindowBatch) -> Slots:
        """Place slots by the plain base's surprisal, which the corpus may have brought.

        Args:
            batch: Windows.

        Returns:
            The slots.
        """
        bits = batch.surprisal
        if bits is None:
            ids = batch.ids
            if batch.prior is not None:
                ids = torch.cat([batch.prior.reshape(len(ids), -1), ids], dim=1)
            bits = base_surprisal(self.z, ids).cpu()
        n = batch.ids.shape[1]
        n_prior = bits.shape[1] - n

        def place(ids: Tensor, bits: Tensor) -> Tensor:
            own, config = self.z.codebook.cut(ids), self.z.config
            return place_symbols(config, bits, batch.n_slots, depth=batch.depth, starts=own)

        prior_ends = None
        if batch.prior is not None:
            prior_ends = place(batch.prior, bits[:, :n_prior].reshape(-1, n))
        return Slots(place(batch.ids, bits[:, n_prior:]), prior_ends, bits[:, n_prior:])

    @torch.no_grad()
    def _memory(self, batch: WindowBatch, slots: Slots, step: int) -> Tensor | None:
        """Symbols of the windows in front, as a reader is given them; not trained through."""
        if batch.prior is None or slots.prior_ends is None:
            return None
        z = self.z
        z.adapters.activate("compress")
        prior = batch.prior.to(z.device)
        ends = slots.prior_ends.to(z.device)
        latents, bits = z.write_in_one_pass(prior, torch.ones_like(prior), ends)
        if step < self.config.discrete_from:
            symbols = z.codebook.unquantised(latents)
        else:
            symbols = z.quantise(latents, prior, ends, bits, depth=batch.depth).embeddings
        return symbols.reshape(len(batch.ids), -1, z.hidden_size)
