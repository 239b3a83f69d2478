"""What the decompressor hears beside its own foresight: the channel, applied to spans.

A span says where its segments end, so it is known of every token which codes speak of it. What this
module does not know: prompts, caches, how a token is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.channel import Channel, Lanes, Nominees
from zcontext.codebook import Codebook
from zcontext.errors import ConfigError
from zcontext.model import ZLanguageModel
from zcontext.pooling import weights_of_places
from zcontext.vocabulary import Symbols
from zcontext.windows import Extent

NOBODY = -1


@dataclass(frozen=True, slots=True)
class Voices:
    """Which segment speaks of which token of a span.

    Attributes:
        lanes: The segments, nothing of them spelled.
        owner: Per token its lane, or `NOBODY`, `[n_tokens]`.
    """

    lanes: Lanes
    owner: tuple[int, ...]

    def spelled(self) -> list[int | None]:
        """Every token that the codes spell out; None where they do not."""
        lanes = self.lanes.spelled.tolist()
        places = [0] * len(lanes)
        tokens: list[int | None] = []
        for lane in self.owner:
            if lane == NOBODY:
                tokens.append(None)
                continue
            token = lanes[lane][places[lane]]
            places[lane] += 1
            tokens.append(token if token >= 0 else None)
        return tokens


class Hearing:
    """One channel on one model.

    Args:
        model: A model with a channel.

    Raises:
        ConfigError: It has none.
    """

    def __init__(self, model: ZLanguageModel) -> None:
        if model.channel is None:
            raise ConfigError("this codec has no channel", field="channel", value=None)
        self.channel: Channel = model.channel
        self._codebook: Codebook = model.codebook
        self._table = model.base.model.get_input_embeddings().weight.detach()

    def voices(
        self,
        symbols: Symbols,
        ends: Sequence[int],
        n_tokens: int,
        *,
        literals: Sequence[Extent] = (),
    ) -> Voices | None:
        """Which symbol of a span speaks of which token.

        Args:
            symbols: Of the span.
            ends: Where their segments end, exclusive.
            n_tokens: Tokens of the span.
            literals: Tokens that are kept as text, in order.

        Returns:
            The voices; None if no symbol has a token of its own.
        """
        starts, stops = segment_edges(ends, literals)
        owner = [NOBODY] * n_tokens
        kept = [k for k, (a, b) in enumerate(zip(starts, stops, strict=True)) if a < b]
        if not kept:
            return None
        for lane, k in enumerate(kept):
            owner[starts[k] : stops[k]] = [lane] * (stops[k] - starts[k])
        device = self._table.device
        codes = torch.tensor([symbols.codes[k] for k in kept], device=device, dtype=torch.long)
        lengths = torch.tensor([stops[k] - starts[k] for k in kept], device=device)
        return Voices(self.lanes(codes, lengths), tuple(owner))

    @torch.no_grad()
    def lanes(self, codes: Tensor, lengths: Tensor) -> Lanes:
        """Segments of which nothing is spelled yet.

        Args:
            codes: int64 `[lanes, depth]`.
            lengths: Tokens of each, int64 `[lanes]`.

        Returns:
            The lanes.
        """
        weights = weights_of_places(self._codebook.place_logits, lengths)
        rows, named = self._codebook.words_of(codes)
        return self.channel.listen(rows, lengths, weights, named=named)

    def weigh(self, scores: Tensor, lanes: Lanes) -> Tensor:
        """Odds of the next token of every lane.

        Args:
            scores: The decompressor's, `[lanes, vocab]`.
            lanes: Where each segment stands.

        Returns:
            Scores `[lanes, vocab]`.
        """
        weighed: Tensor = self.channel(scores, lanes, self._table, self._codebook.mean_embedding)
        return weighed

    @torch.no_grad()
    def take(self, lanes: Lanes, tokens: Tensor) -> None:
        """Spell one more token in every lane.

        Args:
            lanes: Changed in place.
            tokens: int64 `[lanes]`.
        """
        deviations = self._table[tokens].float() - self._codebook.mean_embedding
        self.channel.take(lanes, tokens, deviations)

    def nominate(self, scores: Tensor, lanes: Lanes) -> Nominees:
        """Candidates for the next token of every lane, as `weigh` judges them."""
        return self.channel.nominate(scores, lanes, self._table, self._codebook.mean_embedding)

    def spell(self, ids: Tensor, lanes: Lanes, owner: Tensor) -> Iterator[tuple[Tensor, Lanes]]:
        """Spell a text that is known, all segments side by side.

        Args:
            ids: The tokens, int64 `[n]`.
            lanes: Segments of which nothing is spelled yet; changed in place.
            owner: Which lane each token belongs to, int64 `[n]`, or `NOBODY`.

        Yields:
            Places in the text, int64 `[m]`, and where the segments of these tokens stand before
            them; every place with an owner comes once.
        """
        known = (owner >= 0).nonzero().squeeze(-1)
        first = torch.full((len(lanes),), len(ids), device=ids.device)
        first = first.scatter_reduce(0, owner[known], known, "amin")
        for step in range(int(lanes.length.max()) if len(lanes) else 0):
            index = (lanes.length > step).nonzero().squeeze(-1)
            here, places = lanes.of(index), first[index] + step
            yield places, here
            self.take(here, ids[places])
            lanes.put(index, here)


class Track:
    """Where the spelling of one span stands.

    Args:
        voices: Of the span.
        hearing: Of its model.
    """

    def __init__(self, voices: Voices, hearing: Hearing) -> None:
        self._voices, self._hearing = voices, hearing
        self._lanes: Lanes | None = None
        self._lane = NOBODY
        self._place = 0
        self._enter()

    @property
    def lanes(self) -> Lanes | None:
        """The segment that speaks of the next token, as a single lane; None if none does."""
        return self._lanes

    def take(self, token: int) -> None:
        """Spell one token.

        Args:
            token: The token.
        """
        if self._lanes is not None:
            self._hearing.take(self._lanes, torch.tensor([token], device=self._lanes.left.device))
        self._place += 1
        self._enter()

    def _enter(self) -> None:
        owner = self._voices.owner
        lane = owner[self._place] if self._place < len(owner) else NOBODY
        if lane == NOBODY:
            self._lanes = None
        elif lane != self._lane or self._lanes is None:
            device = self._voices.lanes.left.device
            self._lanes = self._voices.lanes.of(torch.tensor([lane], device=device))
        self._lane = lane


def segment_edges(
    ends: Sequence[int], literals: Sequence[Extent] = ()
) -> tuple[list[int], list[int]]:
    """Where segments start and stop.

    A literal that a segment would start or end with had a slot of its own, which was not kept; one
    in its middle was pooled with it.

    Args:
        ends: Of segments, exclusive, rising.
        literals: Tokens that are kept as text, in order.

    Returns:
        Starts and stops; a segment with no token of its own starts where it stops.
    """
    starts = [0, *ends[:-1]]
    stops = list(ends)
    opening = {each.start: each.end for each in literals}
    closing = {each.end: each.start for each in literals}
    for k in range(len(stops)):
        while starts[k] in opening and opening[starts[k]] <= stops[k]:
            starts[k] = opening[starts[k]]
        while stops[k] in closing and closing[stops[k]] >= starts[k] and starts[k] < stops[k]:
            stops[k] = closing[stops[k]]
    return starts, stops


def heard(model: ZLanguageModel, voices: Voices | None, scores: Tensor, tokens: Tensor) -> Tensor:
    """Odds of the tokens of a known text under decompressor and channel.

    Args:
        model: The model that reads.
        voices: Of the span; None leaves the decompressor's scores as they are.
        scores: The decompressor's, `[n, vocab]`.
        tokens: The text, int64 `[n]`.

    Returns:
        Scores `[n, vocab]`.
    """
    if voices is None:
        return scores
    hearing, device = Hearing(model), scores.device
    owner = torch.tensor(voices.owner, device=device)
    lanes = voices.lanes.of(torch.arange(len(voices.lanes), device=device))
    places, weighed = [], []
    for at, here in hearing.spell(tokens.to(device), lanes, owner):
        places.append(at)
        weighed.append(hearing.weigh(scores[at], here))
    return scores.float().index_copy(0, torch.cat(places), torch.cat(weighed))
