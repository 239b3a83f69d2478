"""The autoencode stage as the trainer sees it: batches, the switch to discrete symbols, health.

What this module does not know: the loop, the optimiser, how batches are cut.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from zcontext.model import ZLanguageModel
from zcontext.naming import place_symbols
from zcontext.phrases import Phrase
from zcontext.surprisal import base_surprisal
from zcontext.training.config import TrainConfig
from zcontext.training.data import WindowBatch
from zcontext.training.objective import BITS, Autoencode, StepOutput
from zcontext.training.phrase_search import find_phrases
from zcontext.training.restore_loss import restore_loss
from zcontext.training.windowing import dev_windows, open_sampler
from zcontext.upkeep import (
    centre,
    record_usage,
    restart_dead,
    start_from_latents,
    start_from_tokens,
)

logger = logging.getLogger(__name__)

CENTRE_TOKENS = 1_000_000
PHRASE_TOKENS = 6_000_000
CALIBRATION_BATCHES = 16
FIRST_UNTRAINED = 2**40
"""Index of batches that no run trains on: what they settle is the same whenever it is settled."""
DEV_RATIOS = (4, 8)


class AutoencodeStage:
    """Trains COMPRESS, the codebook and DECOMPRESS together.

    Args:
        model: The model that learns.
        config: The run's settings.

    Raises:
        TrainingError: There are no shards.
    """

    def __init__(self, model: ZLanguageModel, config: TrainConfig) -> None:
        self.model, self.config = model, config
        self._sampler = open_sampler(config, max_depth=model.config.depth)
        self.module: nn.Module = Autoencode(model, config.autoencode)
        self._dev: tuple[Tensor, Tensor] | None = None
        if config.run.start is None:
            centre(model.codebook, *self._embeddings_and_counts())

    def _embeddings_and_counts(self) -> tuple[Tensor, Tensor]:
        """The base's token embeddings, and how often the corpus has each token."""
        table = self.model.base.model.get_input_embeddings().weight
        counts = np.bincount(self._sampler.corpus.tokens[:CENTRE_TOKENS])
        return table, torch.from_numpy(counts).float()

    def _phrases(self) -> list[Phrase]:
        """Runs of tokens for the codes that the tokens leave over."""
        codec = self.model.config
        left = codec.size - 1 - self.model.base_vocab
        if not codec.named or left <= 0:
            return []
        return find_phrases(self._sampler.corpus.tokens[:PHRASE_TOKENS], left)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The two adapters and the codebook."""
        codebook = {f"codebook/{n}": p for n, p in self.model.codebook.named_parameters()}
        return {**self.model.parameters_of(("compress", "decompress")), **codebook}

    def buffers(self) -> dict[str, Tensor]:
        """How often each code was used, what it names, what deviations are measured from."""
        codebook = self.model.codebook
        named = {} if codebook.lexicon is None else {"named": codebook.lexicon.named}
        return {n: getattr(codebook, n) for n in ("usage", "mean_embedding")} | named

    def batch(self, index: int) -> WindowBatch:
        """The micro-batch of an index."""
        return self._sampler.batch(index)

    def before_step(self, step: int) -> None:
        """Start the codebook when symbols become discrete: from tokens or from latents seen."""
        if step != self.config.autoencode.discrete_from:
            return
        if self.model.config.shared:
            found = self._phrases()
            share = start_from_tokens(self.model.codebook, *self._embeddings_and_counts(), found)
            logger.info("codebook started: %.3f of the text has codes of its own", share)
        else:
            self._start_from_latents()

    def _start_from_latents(self) -> None:
        latents, count = [], 0
        for index in itertools.count(FIRST_UNTRAINED):
            rows = self._latents(self.batch(index))
            latents.append(rows)
            count += len(rows)
            if count >= self.config.autoencode.fit_latents:
                break
        generator = torch.Generator().manual_seed(self.config.run.seed)
        left = start_from_latents(self.model.codebook, torch.cat(latents), generator=generator)
        self._share_codebook()
        logger.info(
            "codebook started: variance left after each stage %s",
            ", ".join(f"{share:.3f}" for share in left),
        )

    @torch.no_grad()
    def _latents(self, batch: WindowBatch) -> Tensor:
        assert isinstance(self.module, Autoencode)
        ids = batch.ids.to(self.model.device)
        self.model.adapters.activate("compress")
        latents, _ = self.model.write_in_one_pass(
            ids, torch.ones_like(ids), self.module.slots(batch).ends.to(ids.device)
        )
        return latents.reshape(-1, latents.shape[-1])

    def after_step(self, step: int, output: StepOutput) -> None:
        """Count the codes used and restart the dead ones now and then."""
        if output.codes is None:
            return
        codebook = self.model.codebook
        record_usage(codebook, output.codes)
        since = step - self.config.autoencode.discrete_from
        every = self.config.autoencode.restart_every
        if every and not self.model.config.named and since > 0 and since % every == 0:
            generator = torch.Generator().manual_seed(step)
            restart_dead(codebook, output.latents, generator=generator)
            self._share_codebook()

    def _share_codebook(self) -> None:
        """Every process goes on with the rows of the first: each has seen latents of its own."""
        with torch.no_grad():
            for tensor in (self.model.codebook.rows, self.model.codebook.offset):
                tensor.copy_(broadcast(tensor.detach().clone()))

    @torch.no_grad()
    def finish(self) -> None:
        """Calibrate what the codec takes for the mean surprisal of text: the head's own mean."""
        z, estimates = self.model, []
        with z.using("compress"):
            for index in range(CALIBRATION_BATCHES):
                ids = self.batch(FIRST_UNTRAINED + index).ids.to(z.device)
                estimates.append(z.read(ids, torch.ones_like(ids)).surprisal.flatten())
        mean = round(float(torch.cat(estimates).mean()), 3)
        z.config = dataclasses.replace(z.config, mean_surprisal=mean)

    # -- health -----------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Teacher-forced figures on the dev windows, at two ratios and full depth.

        Returns:
            For each ratio r: `c@r` (bits per token), `accuracy@r`, `gap@r` (bits lost when the
            symbols are shuffled), and `h`, the plain base's bits per token; with discrete symbols
            also code entropy and cosine.
        """
        if self.config.data.dev is None:
            return {}
        if self._dev is None:
            self._dev = self._dev_windows()
        ids, bits = self._dev
        figures = {"h": float(bits.mean())}
        with self.model.lock, torch.no_grad():
            for ratio in DEV_RATIOS:
                figures |= self._evaluate_at(ratio, ids, bits)
        return figures

    def _dev_windows(self) -> tuple[Tensor, Tensor]:
        rows = dev_windows(self.config, self.model.tokenizer)
        ids = torch.tensor(rows, device=self.model.device)
        return ids, base_surprisal(self.model, ids)

    def _evaluate_at(self, ratio: int, ids: Tensor, bits: Tensor) -> dict[str, float]:
        z = self.model
        n_slots = max(1, ids.shape[1] // ratio)
        ends = place_symbols(z.config, bits, n_slots, starts=z.codebook.cut(ids)).to(ids.device)
        z.adapters.activate("compress")
        latents, estimate = z.write_in_one_pass(ids, torch.ones_like(ids), ends)
        symbols, figures = z.codebook.unquantised(latents), {}
        if not bool((z.codebook.usage == 1).all()):
            written = z.quantise(latents, ids, ends, estimate)
            symbols = written.embeddings
            cosine = nn.functional.cosine_similarity(
                symbols, z.codebook.unquantised(latents), dim=-1
            ).mean()
            usage = z.codebook.usage / z.codebook.usage.sum(-1, keepdim=True)
            entropy = -(usage * usage.clamp_min(1e-12).log2()).sum(-1).mean()
            figures = {
                f"cosine@{ratio}": float(cosine),
                "code_entropy": float(entropy),
                "dead_codes": float((usage < 0.03 / z.config.size).float().mean()),
            }
        nll, hits = restore_loss(z, symbols, ids, ends=ends)
        other, _ = restore_loss(z, symbols.roll(1, dims=0), ids, ends=ends)
        c = float(nll[:, :-1].mean()) * BITS
        return figures | {
            f"c@{ratio}": c,
            f"accuracy@{ratio}": float(hits.float().mean()),
            f"gap@{ratio}": float(other[:, :-1].mean()) * BITS - c,
            f"bound_share@{ratio}": (float(bits.mean()) - c)
            / (z.config.depth * math.log2(z.config.size) * n_slots / ids.shape[1]),
        }
