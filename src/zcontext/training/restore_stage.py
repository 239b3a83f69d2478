"""The restore stage: DECOMPRESS alone learns on, for a codec whose writing no longer changes.

What texts are written as stays as it is; what a symbol decodes to does not, so the codec is another
and its channel has to be trained anew. What this module does not know: the loop, the optimiser.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zcontext.model import ZLanguageModel
from zcontext.training.config import TrainConfig
from zcontext.training.data import WindowBatch, build_batch
from zcontext.training.objective import BITS, StepOutput
from zcontext.training.restoring import Restore
from zcontext.training.windowing import dev_windows, open_sampler_of_trained

DEV_SETTINGS = ((4, 1), (8, 1), (16, 1), (16, None))
"""Ratio and depth (None for the codec's own) of the health figures."""


class RestoreStage:
    """Trains DECOMPRESS.

    Args:
        model: The model that learns; its codec writes.
        config: The run's settings.

    Raises:
        TrainingError: There are no shards, or there is no bundle to start from.
    """  # noqa: DOC502 - raised by open_sampler_of_trained

    def __init__(self, model: ZLanguageModel, config: TrainConfig) -> None:
        self.model, self.config = model, config
        self._sampler = open_sampler_of_trained(config, model.config)
        model.codebook.requires_grad_(False)
        self._restore = Restore(model, config.restore)
        self.module: nn.Module = self._restore
        self._dev: Tensor | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapter."""
        return self.model.parameters_of(("decompress",))

    def buffers(self) -> dict[str, Tensor]:
        """Nothing beside the adapter changes."""
        return {}

    def batch(self, index: int) -> WindowBatch:
        """The micro-batch of an index."""
        return self._sampler.batch(index)

    def before_step(self, step: int) -> None:
        """Nothing to prepare."""

    def after_step(self, step: int, output: StepOutput) -> None:
        """Nothing to keep."""

    def finish(self) -> None:
        """Drop the channel: it was fitted to the reader as it was."""
        self.model.channel = None

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Teacher-forced figures on the dev windows, facts first; heard as the stage learns.

        Returns:
            For each ratio r and depth d: `c@r/d` and `accuracy@r/d`; for the deepest symbols also
            `memory@r/d`: what the symbols of the first half of each window save of the bits per
            token of its second half.
        """
        if self.config.data.dev is None:
            return {}
        if self._dev is None:
            self._dev = torch.tensor(dev_windows(self.config, self.model.tokenizer))
        figures: dict[str, float] = {}
        with self.model.lock:
            for ratio, depth in DEV_SETTINGS:
                figures |= self._evaluate_at(ratio, depth or self.model.config.depth)
        return figures

    def _evaluate_at(self, ratio: int, depth: int) -> dict[str, float]:
        assert self._dev is not None
        ids, key = self._dev, f"{ratio}/{depth}"

        def cost(n_prior: int, rows: Tensor) -> tuple[float, float]:
            n_slots = max(1, (rows.shape[1] - n_prior) // ratio)
            batch = build_batch(rows, None, n_prior=n_prior, n_slots=n_slots, depth=depth)
            nll, hits = self._restore.say(batch, facts=True)
            return float(nll[:, : hits.shape[1]].mean()) * BITS, float(hits.float().mean())

        c, accuracy = cost(0, ids)
        figures = {f"c@{key}": c, f"accuracy@{key}": accuracy}
        if depth == self.model.config.depth:
            half = ids.shape[1] // 2
            alone, _ = cost(0, ids[:, half : 2 * half])
            behind, _ = cost(half, ids[:, : 2 * half])
            figures[f"memory@{key}"] = alone - behind
        return figures
