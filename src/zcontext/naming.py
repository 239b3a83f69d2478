"""Where a codec cuts a text, and which phrases of a segment its codes name outright.

Where every code of a table is a token or a run of tokens (a phrase, `phrases.py`), a segment of no
more phrases than a symbol has codes can be said without loss. Of a longer one the phrases are named
that a reader would not guess. What this module does not know: tables of codes, latents, models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.anchoring import place_anchored
from zcontext.config import CodecConfig
from zcontext.segmentation import hardest, place_slots, segment_of

SPOKEN_FOR = 0.85
"""Share of the names of a window that anchored segments must have for the phrases hardest to guess;
the rest is room to choose their ends in."""


@dataclass(frozen=True, slots=True)
class Wording:
    """What a quantiser is told of the text behind its latents.

    Attributes:
        ids: Tokens, int64 `[batch, n]`.
        tokens: Their embeddings, `[batch, n, hidden]`.
        ends: Last token of every segment, `[batch, k]`.
        surprisal: How hard each token is to guess, in bits, `[batch, n]`.
    """

    ids: Tensor
    tokens: Tensor
    ends: Tensor
    surprisal: Tensor


@dataclass(frozen=True, slots=True)
class Named:
    """Phrases that are named.

    Attributes:
        codes: Their codes in the order of the text, int64 `[batch, k, depth]`; 0 where there is
            none: no phrase is left, or a token has no code of its own.
        places: Where in the text each starts, `[batch, k, depth]`; n behind the last.
        chosen: Whether a token is to be said, with or without a code of its own, `[batch, n]`.
    """

    codes: Tensor
    places: Tensor
    chosen: Tensor


def place_symbols(
    config: CodecConfig,
    surprisal: Tensor,
    n_slots: int,
    *,
    depth: int | None = None,
    starts: Tensor | None = None,
    costs: Tensor | None = None,
) -> Tensor:
    """Where the symbols of some texts are written: `place_slots` as a codec needs it.

    With costs it is `place_anchored`: a segment has no more phrases than its symbol can name, or,
    where there are more in all than names, no more of those that are hardest to guess.

    Args:
        config: Of the codec.
        surprisal: Bits per token, `[batch, n]`.
        n_slots: Symbols of each text, 1 to n.
        depth: Codes per symbol; None means the codec's own.
        starts: Where phrases start, bool `[batch, n]`; no segment ends within one, as long as there
            are as many as slots. None takes every token for itself.
        costs: What ending behind each token costs (`end_costs`), int64 `[batch, n]`; None has
            segments end by surprisal.

    Returns:
        Last token of every segment, int64 `[batch, n_slots]`, on the CPU.
    """
    n_names = (depth or config.depth) if config.named else None
    rows = surprisal.detach().cpu()
    if costs is not None:
        cuts = torch.ones_like(costs, dtype=torch.bool) if starts is None else starts.cpu()
        told = zip(rows, cuts, costs, strict=True)
        return torch.stack([_anchor_phrases(*row, n_slots, n_names=n_names) for row in told])
    if starts is None:
        return torch.stack([place_slots(row, n_slots, n_names=n_names) for row in rows])
    pairs = zip(rows, starts.cpu(), strict=True)
    return torch.stack([_place_phrases(*pair, n_slots, n_names=n_names) for pair in pairs])


def _place_phrases(
    surprisal: Tensor, starts: Tensor, n_slots: int, *, n_names: int | None
) -> Tensor:
    last, bits = phrases_of(surprisal, starts)
    if len(last) < n_slots:
        return place_slots(surprisal, n_slots, n_names=n_names)
    return last[place_slots(bits, n_slots, n_names=n_names)]


def phrases_of(surprisal: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The phrases of one text, in its order.

    Args:
        surprisal: Bits per token, `[n]`.
        starts: Where phrases start, bool `[n]`.

    Returns:
        The last token of each, int64 `[k]`, and the bits of all of it, float64 `[k]`.
    """
    last = torch.cat([starts, starts.new_ones(1)])[1:].nonzero().squeeze(-1)
    return last, _bits_of_phrases(surprisal.unsqueeze(0), starts.unsqueeze(0))[0, last]


def _anchor_phrases(
    surprisal: Tensor, starts: Tensor, costs: Tensor, n_slots: int, *, n_names: int | None
) -> Tensor:
    if int(starts.sum()) < n_slots:
        starts = torch.ones_like(starts)
    last, bits = phrases_of(surprisal, starts)
    if n_names is not None and len(last) > n_slots * n_names:
        count = max(n_slots, int(SPOKEN_FOR * n_slots * n_names))
        last = last[_cheapest_ends(costs[last], hardest(bits, count).long())]
    return last[place_anchored(costs[last], n_slots, most=n_names)]


def _cheapest_ends(costs: Tensor, marked: Tensor) -> Tensor:
    """The cheapest phrase to end behind, from each marked one up to the next, `[n_marked]`.

    The last is the last phrase, whatever it costs; before the first marked one nothing ends.
    """
    owner = marked.cumsum(0) - 1
    order = costs.argsort(stable=True)
    order = order[owner[order].argsort(stable=True)]
    ends = order[torch.searchsorted(owner[order], torch.arange(int(marked.sum())))]
    ends[-1] = len(costs) - 1
    return ends


def name_phrases(
    names: Tensor, starts: Tensor, ends: Tensor, surprisal: Tensor, *, depth: int
) -> Named:
    """Name the most surprising phrases of every segment.

    Args:
        names: Code of the phrase that starts at each token, 0 for none, int64 `[batch, n]`.
        starts: Where phrases start, bool `[batch, n]`; none reaches across two segments.
        ends: Last token of every segment, `[batch, k]`; tokens behind the last belong to none.
        surprisal: Bits per token, `[batch, n]`; of equals the earlier is named.
        depth: Codes per symbol.

    Returns:
        What is named.
    """
    batch, n = names.shape
    k = ends.shape[1]
    owner = segment_of(ends, n)
    bits = _bits_of_phrases(surprisal, starts).masked_fill(~starts, -torch.inf)
    chosen = starts & (_ranks(owner, bits) < depth) & (owner < k)
    count = chosen.long().cumsum(-1) - chosen.long()
    stage = count - count.gather(-1, torch.searchsorted(owner, owner))
    slot = torch.where(chosen, owner * depth + stage, k * depth)  # one more, for the others
    codes = names.new_zeros(batch, k * depth + 1).scatter(-1, slot, names)
    places = torch.full_like(codes, n)
    places = places.scatter(-1, slot, torch.arange(n, device=slot.device).expand_as(slot))
    shape = (batch, k, depth)
    said = chosen.gather(-1, _start_of_phrase(starts))
    return Named(codes[:, :-1].reshape(shape), places[:, :-1].reshape(shape), said)


def _start_of_phrase(starts: Tensor) -> Tensor:
    """Where the phrase of each token starts, `[batch, n]`."""
    places = torch.arange(starts.shape[-1], device=starts.device)
    return torch.where(starts, places, 0).cummax(-1).values


def _bits_of_phrases(surprisal: Tensor, starts: Tensor) -> Tensor:
    """Bits of the whole phrase that each token is in, float64 `[batch, n]`."""
    upto = torch.nn.functional.pad(surprisal.double().cumsum(-1), (1, 0))
    n = starts.shape[-1]
    places = torch.arange(n, device=starts.device)
    coming = torch.where(starts, places, n).flip(-1).cummin(-1).values.flip(-1)
    end = torch.nn.functional.pad(coming[..., 1:], (0, 1), value=n)
    return upto.gather(-1, end) - upto.gather(-1, _start_of_phrase(starts))


def _ranks(owner: Tensor, surprisal: Tensor) -> Tensor:
    """How many of its segment are more surprising than each, `[batch, n]`."""
    order = surprisal.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, owner.gather(-1, order).argsort(dim=-1, stable=True))
    grouped = owner.gather(-1, order)
    rank = torch.arange(owner.shape[-1], device=owner.device) - torch.searchsorted(grouped, grouped)
    return torch.empty_like(rank).scatter(-1, order, rank)
