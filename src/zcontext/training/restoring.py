"""The restore stage: what it costs DECOMPRESS to say again what a codec that stands has written.

What this module does not know: optimisers, files, where windows come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zcontext.config import check
from zcontext.model import ZLanguageModel
from zcontext.training.data import WindowBatch
from zcontext.training.judging import Judge
from zcontext.training.objective import BITS, StepOutput
from zcontext.training.restore_loss import ReadingOptions, alone, spoil, states_behind
from zcontext.training.transcribing import remember, transcribe


@dataclass(frozen=True, slots=True)
class RestoreConfig:
    """Settings of the stage.

    Attributes:
        facts_share: Share of the batches that are written with facts first, as documents are by
            default; the others go by surprisal alone.
        max_token_drop: Upper end of the share of the reader's input tokens that is hidden or
            replaced; drawn per batch, so that the reader cannot lean on its own prefix.
        spread_share: Share of batches whose reader is not told where segments end.
        heard: Learn from what the text costs with the channel of the bundle that the run starts
            from, instead of what DECOMPRESS would pay alone; of a reader that is not told where
            segments end it hears nothing. The channel is trained anew behind it all the same.

    Raises:
        ConfigError: A share is not one.
    """  # noqa: DOC502 - raised by the check

    facts_share: float = 0.7
    max_token_drop: float = 0.25
    spread_share: float = 0.05
    heard: bool = False

    def __post_init__(self) -> None:
        for name in ("facts_share", "max_token_drop", "spread_share"):
            check(self, name, 0 <= getattr(self, name) <= 1, "a share in 0 to 1")


class Restore(nn.Module):
    """Say windows again.

    Args:
        model: The model; only DECOMPRESS learns.
        config: Settings of the stage.

    Raises:
        ConfigError: It is to hear a channel, and the model has none.
    """  # noqa: DOC502 - raised by Hearing

    def __init__(self, model: ZLanguageModel, config: RestoreConfig) -> None:
        super().__init__()
        self.z = model
        self.config = config
        # Registered so that data-parallel wrappers see what is trained.
        self.base = model.base.model
        self._judge = Judge(model) if config.heard else None

    def forward(self, batch: WindowBatch, step: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch.

        Args:
            batch: Windows.
            step: Unused: the objective does not change over the run.
            generator: CPU generator of everything drawn here.

        Returns:
            Loss and figures.
        """
        del step
        z = self.z
        ids = batch.ids.to(z.device)
        facts = bool(torch.rand((), generator=generator) < self.config.facts_share)
        inputs, blank = spoil(ids, z.start_token, self.config.max_token_drop, generator)
        known = bool(torch.rand((), generator=generator) >= self.config.spread_share)
        nll, hits = self.say(batch, facts=facts, known=known, inputs=inputs, blank=blank)
        metrics = {"bits_per_token": nll.detach().mean() * BITS, "accuracy": hits.float().mean()}
        return StepOutput(nll.mean(), metrics, nll.detach().view(1, -1), None)

    def say(
        self,
        batch: WindowBatch,
        *,
        facts: bool = False,
        known: bool = True,
        inputs: Tensor | None = None,
        blank: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What saying windows again costs.

        Args:
            batch: Windows.
            facts: Whether facts are named first.
            known: Whether the reader is told where segments end.
            inputs: What the reader is shown, `[batch, 1 + n]`; None means the text itself.
            blank: True on inputs to blank out, `[batch, 1 + n]`.

        Returns:
            As `restore_loss` does, or as `Judge.nats`.
        """
        ids = batch.ids.to(self.z.device)
        memory = remember(self.z, batch, facts_first=facts)
        written = transcribe(self.z, batch, memory=memory, facts_first=facts)
        reading: ReadingOptions = {"inputs": inputs, "blank": blank, "memory": memory}
        if known:
            reading["ends"] = written.ends
        states = states_behind(self.z, written.embeddings, ids, **reading)
        if self._judge is None or not known:
            return alone(self.z, states, ids)
        return self._judge.nats(states[:, :-1], ids, written.ends, written.codes)
