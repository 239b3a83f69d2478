"""What a known text costs the reader that ships: DECOMPRESS with its channel beside it.

The channel stage learns from such costs, the stages behind it are judged by them. What this module
does not know: writers, optimisers, where states come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.channel import TRUST, Channel, Nominees, next_spelled
from zcontext.hearing import Hearing
from zcontext.model import ZLanguageModel
from zcontext.segmentation import segment_of
from zcontext.tokenization import text_mask


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
            nominees.features,
            places < vocab,
            others[:, :vocab].logsumexp(-1).clamp_min(-40.0),
            torch.where(hit.any(-1), hit.int().argmax(-1), -1),
            odds.gather(-1, ids.unsqueeze(-1)).squeeze(-1),
            torch.where(spelled < 0, 0, torch.where(spelled == ids, 1, -1)),
        )

    def judged(self, channel: Channel) -> tuple[Tensor, Tensor]:
        """Nats with a channel, and whether the likeliest candidate was right, each `[n]`."""
        scores = channel.judge(self.features.float()).masked_fill(~self.real, -torch.inf)
        elsewhere = (self.rest + channel.outside).unsqueeze(-1)
        whole = torch.cat([scores, elsewhere], dim=-1).logsumexp(-1)
        own = scores.gather(-1, self.place.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        own = torch.where(self.place < 0, self.odds + channel.outside, own)
        nats, hits = whole - own, scores.argmax(-1) == self.place
        trusted = torch.where(self.spelled > 0, TRUST, 1 - TRUST).log()
        sure = self.spelled != 0
        return torch.where(sure, -trusted, nats), torch.where(sure, self.spelled > 0, hits)


class Judge:
    """The reader that ships, where it is shown a text and its symbols.

    Its figures have a gradient in the reader's states; what the codes say, and how much the channel
    trusts whom, stands.

    Args:
        model: A model with a channel.

    Raises:
        ConfigError: It has none.
    """  # noqa: DOC502 - raised by Hearing

    def __init__(self, model: ZLanguageModel) -> None:
        self._model, self._hearing = model, Hearing(model)
        self._text = text_mask(model.tokenizer, model.base_vocab).to(model.device)

    def examples(
        self, states: Tensor, ids: Tensor, ends: Tensor, codes: Tensor, *, unsure: bool = False
    ) -> Iterator[tuple[Tensor, Examples]]:
        """What speaks for the tokens of one text.

        Args:
            states: The reader's, each behind the token it foresees, `[n, hidden]`.
            ids: The text, int64 `[n]`.
            ends: Last token of each segment, rising, `[k]`; the last one's is n - 1.
            codes: Of its symbols, int64 `[k, depth]`.
            unsure: Leave out the tokens that the codes spell out.

        Yields:
            Places in the text, int64 `[m]`, and an example for each; no place comes twice.
        """
        scores = self._model.logits(states).float().masked_fill(~self._text, -torch.inf)
        lanes, owner = self._hearing.lanes(codes, lengths_of(ends)), segment_of(ends, len(ids))
        for at, here in self._hearing.spell(ids, lanes, owner):
            spelled = next_spelled(here)
            kept = spelled < 0 if unsure else torch.ones_like(spelled) > 0
            if bool(kept.any()):
                found = self._hearing.nominate(scores[at[kept]], here.of(kept))
                yield at[kept], Examples.of_tokens(found, ids[at[kept]], spelled[kept])

    def nats(
        self,
        states: Tensor,
        ids: Tensor,
        ends: Tensor,
        codes: Tensor,
        *,
        counts: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What texts cost. Their ends cost nothing: a reader knows how long they are.

        Args:
            states: The reader's, each behind the token it foresees, `[batch, n, hidden]`.
            ids: The texts, int64 `[batch, n]`.
            ends: Last token of each segment, `[batch, k]`.
            codes: Of their symbols, int64 `[batch, k, depth]`.
            counts: Symbols of each text; None means all k.

        Returns:
            Nats, and whether the likeliest token was the right one, each `[batch, n]`.
        """
        nats, hits = [], []
        for row, k in enumerate(counts or [ends.shape[1]] * len(ids)):
            told = self.examples(states[row], ids[row], ends[row, :k], codes[row, :k])
            places, examples = zip(*told, strict=True)
            cost, right = Examples.joined(examples).judged(self._hearing.channel)
            order = torch.cat(places).argsort()
            nats.append(cost[order])
            hits.append(right[order])
        return torch.stack(nats), torch.stack(hits)


def lengths_of(ends: Tensor) -> Tensor:
    """Tokens of each segment, from its last token, `[k]`."""
    return torch.diff(ends, prepend=ends.new_full((1,), -1))
