"""The channel stage: how much to trust foresight, how much the codes, for a codec that stands.

First the Gaussian half is estimated in closed form: how tokens spread, and how far codes are off
from what they stand for. Then windows are written and read as they will be, and the small network
that weighs codes against foresight is trained on their tokens. Nothing else changes.

What this module does not know: the loop, the optimiser.
"""

from __future__ import annotations

import collections
import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from zcontext.channel import USUAL_LEFT, Channel
from zcontext.errors import TrainingError
from zcontext.hearing import Hearing
from zcontext.model import ZLanguageModel
from zcontext.pooling import weights_of_places
from zcontext.segmentation import segment_of
from zcontext.training.config import TrainConfig
from zcontext.training.data import build_batch
from zcontext.training.judging import Examples, lengths_of
from zcontext.training.listening import Listen
from zcontext.training.objective import BITS, StepOutput
from zcontext.training.stages import CENTRE_TOKENS, DEV_RATIOS, FIRST_UNTRAINED
from zcontext.training.windowing import dev_windows, open_sampler_of_trained

logger = logging.getLogger(__name__)

UNSEEN = 0.3
"""What a token counts that the corpus does not have."""

RIDGE = 0.05
"""Share of the mean variance that every direction gets on top."""


NOTHING_LEFT = (
    "the codes spell out every token of these windows, and nothing is left to weigh: "
    "raise [data] min_ratio and max_ratio"
)


class ChannelStage:
    """Fits and trains the channel of a codec that does not change.

    Args:
        model: The model that learns; its codec is trained.
        config: The run's settings.

    Raises:
        TrainingError: There are no shards, or there is no bundle to start from.
    """  # noqa: DOC502 - raised by open_sampler_of_trained

    def __init__(self, model: ZLanguageModel, config: TrainConfig) -> None:
        self.model, self.config = model, config
        self._sampler = open_sampler_of_trained(config, model.config)
        self._listen = Listen(model, config.channel)
        self._channel = self._listen.channel
        model.codebook.requires_grad_(False)
        self.module: nn.Module = self._listen
        self._examples: Examples | None = None
        self._dev: dict[int, Examples] = {}

    def parameters(self) -> dict[str, nn.Parameter]:
        """The network that weighs."""
        return {f"channel/{n}": p for n, p in self._channel.named_parameters()}

    def buffers(self) -> dict[str, Tensor]:
        """What was estimated in closed form."""
        return {f"channel/{n}": b for n, b in self._channel.named_buffers()}

    def batch(self, index: int) -> Examples:
        """The examples of an index."""
        if self._examples is None:
            self._examples = self._taken()
        generator = torch.Generator().manual_seed(self.config.run.seed * 1_000_003 + index)
        count = self.config.channel.batch_examples
        drawn = torch.randint(len(self._examples), (count,), generator=generator)
        return self._examples.of(drawn.to(self.model.device))

    def before_step(self, step: int) -> None:
        """Estimate the Gaussian half before the first step."""
        if step == 0:
            self._fit()

    def after_step(self, step: int, output: StepOutput) -> None:
        """Nothing to keep."""

    def finish(self) -> None:
        """The channel is trained no further."""
        self._channel.requires_grad_(False)

    def _taken(self) -> Examples:
        """Examples of many batches; the same whenever they are taken."""
        config, parts = self.config, []
        for index in range(config.channel.example_batches):
            generator = torch.Generator().manual_seed(config.run.seed * 1_000_003 + index)
            found = self._listen.examples(self._sampler.batch(index), generator)
            if found is not None:
                parts.append(found)
        if not parts:
            raise TrainingError(NOTHING_LEFT)
        taken = Examples.joined(parts)
        logger.info("channel learns from %d tokens", len(taken))
        return taken

    @torch.no_grad()
    def _fit(self) -> None:
        z, channel = self.model, self._channel
        table = z.base.model.get_input_embeddings().weight.float()
        seen = self._sampler.corpus.tokens[:CENTRE_TOKENS]
        counts = torch.from_numpy(np.bincount(seen, minlength=z.base_vocab)).float() + UNSEEN
        channel.commonness.copy_((counts / counts.sum()).log())
        tokens, errors, features = (torch.cat(parts) for parts in zip(*self._seen(), strict=True))
        spread = tokens.T @ tokens / len(tokens)
        if not len(errors):
            raise TrainingError(NOTHING_LEFT)
        off = errors.T @ errors / len(errors)
        variance = spread.trace()
        left = off * (variance / off.trace()) + (USUAL_LEFT - 1) * spread
        left += RIDGE * left.diagonal().mean() * torch.eye(len(left), device=left.device)
        channel.metric.copy_(torch.linalg.inv(left.double()).float())
        deviations = table - z.codebook.mean_embedding
        channel.strength.copy_(((deviations @ channel.metric) * deviations).sum(-1))
        level = (errors.square().sum(-1) / variance).clamp_min(1e-3).log()
        solution = torch.linalg.lstsq(features.cpu(), level.cpu().unsqueeze(-1), driver="gelsd")
        channel.noise.copy_(solution.solution.squeeze(-1))
        logger.info("channel estimated from %d segments: noise %s", len(errors), channel.noise)

    def _seen(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Weighted deviations of tokens, errors of segments, and what tells of these errors."""
        z, book, hearing = self.model, self.model.codebook, Hearing(self.model)
        for index in range(self.config.channel.fit_batches):
            ids, ends, codes = self._listen.write(self._sampler.batch(FIRST_UNTRAINED + index))
            deviations = z.embed_tokens(ids).float() - book.mean_embedding
            for text, row, last, code in zip(ids, deviations, ends, codes, strict=True):
                lengths, owner = lengths_of(last), segment_of(last, len(row))
                weights = weights_of_places(book.place_logits, lengths)
                lanes = hearing.lanes(code, lengths)
                unsure = lanes.spelled[:, 0] < 0
                collections.deque(hearing.spell(text, lanes, owner), maxlen=0)
                features = Channel.noise_features(lanes.energy, lengths)
                tokens = weights[weights > 0].unsqueeze(-1) * row
                yield tokens, lanes.left[unsure], features[unsure]

    # -- health -----------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Teacher-forced figures on the dev windows, at two ratios and full depth.

        Returns:
            For each ratio r: `c@r` and `accuracy@r` (bits per token, share of tokens right) with
            the channel, and `unheard_c@r` without it.
        """
        if self.config.data.dev is None:
            return {}
        if not self._dev:
            ids = torch.tensor(dev_windows(self.config, self.model.tokenizer))
            for ratio in DEV_RATIOS:
                n_slots, depth = max(1, ids.shape[1] // ratio), self.model.config.depth
                batch = build_batch(ids, None, n_prior=0, n_slots=n_slots, depth=depth)
                with self.model.lock:
                    found = self._listen.examples(batch, None)
                if found is not None:
                    self._dev[ratio] = found
        figures: dict[str, float] = {}
        for ratio, examples in self._dev.items():
            nats, hits = examples.judged(self._channel)
            figures |= {
                f"c@{ratio}": float(nats.mean()) * BITS,
                f"accuracy@{ratio}": float(hits.float().mean()),
                f"unheard_c@{ratio}": -float(examples.odds.mean()) * BITS,
            }
        return figures
