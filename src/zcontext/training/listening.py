"""The channel stage's objective: windows written and read, and what it makes of each token.

The features that the channel weighs do not depend on what it learns. So they are taken once, and
the network is trained on them in seconds. What this module does not know: optimisers, files.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zcontext.channel import Channel
from zcontext.config import check
from zcontext.model import ZLanguageModel
from zcontext.training.data import WindowBatch
from zcontext.training.judging import Examples, Judge
from zcontext.training.objective import BITS, StepOutput
from zcontext.training.restore_loss import behind, spoil
from zcontext.training.transcribing import remember, transcribe


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """Settings of the stage.

    Attributes:
        fit_batches: Batches that the Gaussian half is estimated from.
        example_batches: Batches whose tokens the network is trained on.
        batch_examples: Tokens per step.
        max_token_drop: Upper end of the share of the reader's input tokens that is spoilt, as its
            own mistakes will spoil them.

    Raises:
        ConfigError: A value is out of its range.
    """  # noqa: DOC502 - raised by the check

    fit_batches: int = 32
    example_batches: int = 96
    batch_examples: int = 1024
    max_token_drop: float = 0.2

    def __post_init__(self) -> None:
        for name in ("fit_batches", "example_batches", "batch_examples"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        check(self, "max_token_drop", 0 <= self.max_token_drop <= 1, "a share in 0 to 1")


class Listen(nn.Module):
    """Foresee tokens from examples of what speaks for them.

    Args:
        model: Its channel learns, nothing else does.
        config: Settings of the stage.
    """

    def __init__(self, model: ZLanguageModel, config: ChannelConfig) -> None:
        super().__init__()
        self.z = model
        self.channel: Channel = model.add_channel()
        self._judge = Judge(model)
        self._max_token_drop = config.max_token_drop

    def forward(self, batch: Examples, step: int, generator: torch.Generator) -> StepOutput:
        """Loss of some examples.

        Args:
            batch: The examples.
            step: Not used.
            generator: Not used.

        Returns:
            Loss and figures.
        """
        nats, hits = batch.judged(self.channel)
        metrics = {
            "bits_per_token": nats.detach().mean() * BITS,
            "accuracy": hits.float().mean(),
            "unheard_bits": -batch.odds.mean() * BITS,
        }
        return StepOutput(nats.mean(), metrics, batch.rest[:0].unsqueeze(-1), None)

    @torch.no_grad()
    def examples(self, batch: WindowBatch, generator: torch.Generator | None) -> Examples | None:
        """What speaks for the tokens of some windows.

        Args:
            batch: Windows.
            generator: CPU generator of the tokens that are spoilt; None spoils none.

        Returns:
            One example per token, in no order; where tokens are spoilt, to be learned from, none of
            those that are spelled out: None if all of them are.
        """
        memory = remember(self.z, batch, facts_first=True)
        ids, ends, codes = self.write(batch, memory)
        read = self._read(ids, ends, codes, memory, generator)
        parts = []
        for states, *written in zip(read, ids, ends, codes, strict=True):
            for _, found in self._judge.examples(states, *written, unsure=generator is not None):
                parts.append(dataclasses.replace(found, features=found.features.half()))
        return Examples.joined(parts) if parts else None

    @torch.no_grad()
    def write(
        self, batch: WindowBatch, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Texts `[batch, n]`, last tokens of segments `[batch, k]`, codes `[batch, k, depth]`.

        Slots stand where the writer puts them, not where a corpus that knows surprisal would, and
        facts are named first, as in documents by default.
        """
        written = transcribe(self.z, batch, memory=memory, facts_first=True)
        return batch.ids.to(self.z.device), written.ends, written.codes

    def _read(
        self,
        ids: Tensor,
        ends: Tensor,
        codes: Tensor,
        memory: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The reader's states `[batch, n, hidden]`, each behind the token it foresees."""
        z, blank = self.z, None
        inputs = torch.cat([torch.full_like(ids[:, :1], z.start_token), ids], dim=1)
        if generator is not None:
            inputs, blank = spoil(ids, z.start_token, self._max_token_drop, generator)
            blank = blank[:, :-1]
        z.adapters.activate("decompress")
        symbols, places, m = behind(memory, z.embed_codes(codes), ends.cpu() + 1)
        return z.restore_states(
            symbols,
            places,
            torch.ones_like(places).to(z.device),
            inputs[:, :-1],
            torch.ones_like(ids),
            offset=m,
            hidden_inputs=blank,
        )
