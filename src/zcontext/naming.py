"""Where a codec cuts a text, and which tokens of a segment its codes name outright.

Where every code of a table is a token, a segment of no more tokens than a symbol has codes can be
said without loss. Of a longer one the tokens are named that a reader would not guess. What this
module does not know: tables of codes, latents, models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.config import CodecConfig
from zcontext.segmentation import place_slots, segment_of


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
    """Tokens that are named.

    Attributes:
        codes: Their codes in the order of the text, int64 `[batch, k, depth]`; 0 where there is
            none: no token is left, or the token has no code of its own.
        places: Where in the text each stands, `[batch, k, depth]`; n behind the last.
        chosen: Whether a token is to be said, with or without a code of its own, `[batch, n]`.
    """

    codes: Tensor
    places: Tensor
    chosen: Tensor


def place_symbols(
    config: CodecConfig, surprisal: Tensor, n_slots: int, *, depth: int | None = None
) -> Tensor:
    """Where the symbols of some texts are written: `place_slots` as a codec needs it.

    Args:
        config: Of the codec.
        surprisal: Bits per token, `[batch, n]`.
        n_slots: Symbols of each text, 1 to n.
        depth: Codes per symbol; None means the codec's own.

    Returns:
        Last token of every segment, int64 `[batch, n_slots]`, on the CPU.
    """
    n_names = (depth or config.depth) if config.named else None
    rows = surprisal.detach().cpu()
    return torch.stack([place_slots(row, n_slots, n_names=n_names) for row in rows])


def name_tokens(names: Tensor, ends: Tensor, surprisal: Tensor, *, depth: int) -> Named:
    """Name the most surprising tokens of every segment.

    Args:
        names: Code of each token, 0 for none, int64 `[batch, n]`.
        ends: Last token of every segment, `[batch, k]`; tokens behind the last belong to none.
        surprisal: Bits per token, `[batch, n]`; of equals the earlier is named.
        depth: Codes per symbol.

    Returns:
        What is named.
    """
    batch, n = names.shape
    k = ends.shape[1]
    owner = segment_of(ends, n)
    chosen = (_ranks(owner, surprisal) < depth) & (owner < k)
    count = chosen.long().cumsum(-1) - chosen.long()
    stage = count - count.gather(-1, torch.searchsorted(owner, owner))
    slot = torch.where(chosen, owner * depth + stage, k * depth)  # one more, for the others
    codes = names.new_zeros(batch, k * depth + 1).scatter(-1, slot, names)
    places = torch.full_like(codes, n)
    places = places.scatter(-1, slot, torch.arange(n, device=slot.device).expand_as(slot))
    shape = (batch, k, depth)
    return Named(codes[:, :-1].reshape(shape), places[:, :-1].reshape(shape), chosen)


def _ranks(owner: Tensor, surprisal: Tensor) -> Tensor:
    """How many tokens of its segment are more surprising than each, `[batch, n]`."""
    order = surprisal.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, owner.gather(-1, order).argsort(dim=-1, stable=True))
    grouped = owner.gather(-1, order)
    rank = torch.arange(owner.shape[-1], device=owner.device) - torch.searchsorted(grouped, grouped)
    return torch.empty_like(rank).scatter(-1, order, rank)
