"""The channel stage's objective: windows written and read, and what it makes of each token.

The features that the channel weighs do not depend on what it learns. So they are taken once, and
the network is trained on them in seconds. What this module does not know: optimisers, files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zcontext.channel import TRUST, Channel, Nominees, next_spelled
from zcontext.config import check
from zcontext.hearing import Hearing
from zcontext.model import ZLanguageModel
from zcontext.segmentation import segment_of
from zcontext.tokenization import text_mask
from zcontext.training.data import WindowBatch
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


@dataclass(frozen=True, slots=True)
class Examples:
    """Tokens to be foreseen, each with its candidates.

    Attributes:
        features: What speaks for each candidate, `[n, c, N_FEATURES]`.
        real: False on a candidate that is there twice, `[n, c]`.
        rest: Logarithm of what the language model leaves to all other tokens, `[n]`.
        place: Which candidate is the right one, int64 `[n]`; -1 if none is.
        odds: What the language model gives the right one, `[n]`.
        spelled: 1 where the codes spell the token out, -1 where they spell out another, 0 where
            they spell out none, `[n]`.
    """

    features: Tensor
    real: Tensor
    rest: Tensor
    place: Tensor
    odds: Tensor
    spelled: Tensor

    def __len__(self) -> int:
        return len(self.place)

    def of(self, index: Tensor) -> Examples:
        """Some of the examples."""
        return Examples(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """Examples of several batches behind each other."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def of_tokens(cls, nominees: Nominees, ids: Tensor, spelled: Tensor) -> Examples:
        """What the candidates for tokens int64 `[n]` come to, beside what is spelled out."""
        odds, places = nominees.odds, nominees.places
        vocab = odds.shape[-1]
        others = torch.cat([odds, odds[:, :1]], dim=-1).scatter(-1, places, -torch.inf)
        hit = places == ids.unsqueeze(-1)
        return cls(
            nominees.features.half(),
            places < vocab,
            others[:, :vocab].logsumexp(-1).clamp_min(-40.0),
            torch.where(hit.any(-1), hit.int().argmax(-1), -1),
            odds.gather(-1, ids.unsqueeze(-1)).squeeze(-1),
            torch.where(spelled < 0, 0, torch.where(spelled == ids, 1, -1)),
        )


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
        self._max_token_drop = config.max_token_drop
        self._text = text_mask(model.tokenizer, model.base_vocab).to(model.device)

    def forward(self, batch: Examples, step: int, generator: torch.Generator) -> StepOutput:
        """Loss of some examples.

        Args:
            batch: The examples.
            step: Not used.
            generator: Not used.

        Returns:
            Loss and figures.
        """
        nats, hits = self.losses(batch)
        metrics = {
            "bits_per_token": nats.detach().mean() * BITS,
            "accuracy": hits.float().mean(),
            "unheard_bits": -batch.odds.mean() * BITS,
        }
        return StepOutput(nats.mean(), metrics, batch.rest[:0].unsqueeze(-1), None)

    def losses(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Nats with the channel, and whether the likeliest candidate was right, each `[n]`."""
        channel = self.channel
        scores = channel.judge(examples.features.float()).masked_fill(~examples.real, -torch.inf)
        elsewhere = (examples.rest + channel.outside).unsqueeze(-1)
        whole = torch.cat([scores, elsewhere], dim=-1).logsumexp(-1)
        own = scores.gather(-1, examples.place.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        own = torch.where(examples.place < 0, examples.odds + channel.outside, own)
        nats, hits = whole - own, scores.argmax(-1) == examples.place
        trusted = torch.where(examples.spelled > 0, TRUST, 1 - TRUST).log()
        sure = examples.spelled != 0
        return torch.where(sure, -trusted, nats), torch.where(sure, examples.spelled > 0, hits)

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
        z, hearing = self.z, Hearing(self.z)
        memory = remember(z, batch, facts_first=True)
        ids, ends, codes = self.write(batch, memory)
        read = self._read(ids, ends, codes, memory, generator)
        parts = []
        for row, last, code, states in zip(ids, ends, codes, read, strict=True):
            scores = z.logits(states).float().masked_fill(~self._text, -torch.inf)
            lanes, owner = hearing.lanes(code, lengths_of(last)), segment_of(last, len(row))
            for at, here in hearing.spell(row, lanes, owner):
                spelled = next_spelled(here)
                kept = torch.ones_like(at) > 0 if generator is None else spelled < 0
                if bool(kept.any()):
                    found = hearing.nominate(scores[at[kept]], here.of(kept))
                    parts.append(Examples.of_tokens(found, row[at[kept]], spelled[kept]))
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


def lengths_of(ends: Tensor) -> Tensor:
    """Tokens of each segment, from its last token, `[k]`."""
    return torch.diff(ends, prepend=ends.new_full((1,), -1))
