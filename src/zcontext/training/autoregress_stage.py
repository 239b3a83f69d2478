"""The autoregress stage as the trainer sees it: batches, COMPOSE and the composer, health.

What this module does not know: the loop, the optimiser, what a batch costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zcontext.composing import Composition
from zcontext.model import ZLanguageModel
from zcontext.training.autoregress import Autoregress
from zcontext.training.config import TrainConfig
from zcontext.training.data import WindowBatch, build_batch
from zcontext.training.objective import BITS, StepOutput
from zcontext.training.restore_loss import alone, states_behind
from zcontext.training.windowing import dev_windows, open_sampler_of_trained

DEV_RATIOS = (4, 8, 16)
DEV_ROWS = 4
"""Windows of the health figures that are written together."""


class AutoregressStage:
    """Trains the autoregressive writer of a codec that does not change.

    Args:
        model: The model that learns; its codec is trained.
        config: The run's settings.

    Raises:
        TrainingError: There are no shards, or there is no bundle to start from.
    """  # noqa: DOC502 - raised by open_sampler_of_trained

    def __init__(self, model: ZLanguageModel, config: TrainConfig) -> None:
        self.model, self.config = model, config
        self._sampler = open_sampler_of_trained(config, model.config)
        self._composer = model.add_composer()
        # Symbols must go on meaning what they mean.
        model.codebook.requires_grad_(False)
        self._autoregress = Autoregress(model, config.autoregress)
        self.module: nn.Module = self._autoregress
        self._dev: Tensor | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """The COMPOSE adapter and the composer."""
        own = {f"composer/{n}": p for n, p in self._composer.named_parameters()}
        return {**self.model.parameters_of(("compose",)), **own}

    def buffers(self) -> dict[str, Tensor]:
        """None: the codec does not change."""
        return {}

    def batch(self, index: int) -> WindowBatch:
        """The micro-batch of an index."""
        return self._sampler.batch(index)

    def before_step(self, step: int) -> None:
        """Nothing to prepare."""

    def after_step(self, step: int, output: StepOutput) -> None:
        """Nothing to keep."""

    def finish(self) -> None:
        """Nothing to settle: the codec is not this stage's."""

    # -- health -----------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Teacher-forced figures of the likeliest symbols on dev windows, at some ratios.

        Returns:
            For each ratio r: `c@r` and `accuracy@r` (bits per token, share of tokens right),
            `ratio@r` (what was written when r was asked for), `gap@r` (bits lost when the symbols
            are another window's), and `one_pass_c@r` and `one_pass_accuracy@r`, the same windows
            written in one pass with as many symbols each.
        """
        if self.config.data.dev is None:
            return {}
        if self._dev is None:
            self._dev = self._dev_windows()
        figures: dict[str, float] = {}
        with self.model.lock:
            for ratio in DEV_RATIOS:
                rows = [
                    self._measure(self._dev[at : at + DEV_ROWS], ratio)
                    for at in range(0, len(self._dev), DEV_ROWS)
                ]
                for name in rows[0]:
                    values = [row[name] for row in rows]
                    figures[f"{name}@{ratio}"] = sum(values) / len(values)
                figures[f"ratio@{ratio}"] = 1 / figures.pop(f"symbols_per_token@{ratio}")
        return figures

    def _dev_windows(self) -> Tensor:
        rows = dev_windows(self.config, self.model.tokenizer, batch=DEV_ROWS)
        return torch.tensor(rows, device=self.model.device)

    def _measure(self, ids: Tensor, ratio: int) -> dict[str, float]:
        z, n = self.model, ids.shape[1]
        batch = build_batch(
            ids.cpu(), None, n_prior=0, n_slots=max(1, n // ratio), depth=z.config.depth
        )
        passage, _ = self._autoregress.read(batch)
        z.adapters.activate("compose")
        found = Composition(z, passage, depth=z.config.depth).run()
        figures = {"symbols_per_token": sum(map(len, found.codes)) / ids.numel()}
        codes, ends, real = _padded(found.codes, found.ends)
        figures |= self._restored(codes, ids, ends, real, trusted=True)
        other = self._restored(codes.roll(1, 0), ids, ends.roll(1, 0), real.roll(1, 0))
        figures["gap"] = other["c"] - figures["c"]
        counts = [len(row) for row in found.codes]
        placed = passage.one_pass_ends(z.config, counts, depth=z.config.depth)
        _, ends, real = _padded(found.codes, [(row + 1).tolist() for row in placed])
        z.adapters.activate("compress")
        latents = z.write(passage.state, ends.to(z.device), real.long().to(z.device))
        written = z.quantise(latents, ids, ends.to(z.device), passage.state.surprisal)
        one_pass = self._restored(written.codes, ids, ends, real, trusted=True)
        return figures | {f"one_pass_{name}": value for name, value in one_pass.items()}

    def _restored(
        self, codes: Tensor, ids: Tensor, ends: Tensor, real: Tensor, *, trusted: bool = False
    ) -> dict[str, float]:
        """Bits per token and tokens right, with the channel where the codes are trusted.

        Symbols of another window would spell out what is wrong, and are not.
        """
        z, n = self.model, ids.shape[1]
        codes, ends, real = (each.to(ids.device) for each in (codes, ends, real))
        states = states_behind(z, z.embed_codes(codes), ids, ends=ends, real=real)
        if trusted:
            nll, hits = self._autoregress.costs(states, ids, ends, codes, real)
        else:
            nll, hits = alone(z, states, ids)
            nll = nll[:, :n]
        return {"c": float(nll.mean()) * BITS, "accuracy": float(hits.float().mean())}


def _padded(
    codes: Sequence[Sequence[Sequence[int]]], ends: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of symbols as codes `[batch, k, depth]`, last tokens `[batch, k]` and what is real."""
    k = max(map(len, codes))
    filled = [[*row, *[row[-1]] * (k - len(row))] for row in codes]
    places = [[*row, *[row[-1]] * (k - len(row))] for row in ends]
    real = torch.arange(k) < torch.tensor([len(row) for row in codes]).unsqueeze(1)
    return torch.tensor(filled), torch.tensor(places) - 1, real
