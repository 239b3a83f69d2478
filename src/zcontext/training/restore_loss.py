"""What it costs a reader to say a text again behind its symbols, and how its own input is spoilt.

What this module does not know: writers, codes, optimisers.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

import torch
from torch import Tensor

from zcontext.model import ZLanguageModel
from zcontext.passes import spread_positions
from zcontext.training.cross_entropy import token_losses

REPLACED_SHARE = 0.2
"""Share of the spoilt input tokens that are replaced by others instead of blanked out."""


def spoil(
    ids: Tensor, start_token: int, most: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A reader's inputs: start token, then the text with a random share of tokens spoilt.

    Most spoilt tokens are blanked out, some are replaced by other tokens of the batch, as the
    reader's own mistakes would be. (Blanking by a special token instead of a zero vector cost
    0.3 nats after 50 steps: the base takes it for a boundary.)

    Args:
        ids: int64 `[batch, n]`.
        start_token: What stands in front.
        most: Upper end of the share that is spoilt, which is drawn for the batch.
        generator: CPU generator.

    Returns:
        Inputs int64 `[batch, 1 + n]`, and which of them to blank out.
    """
    share = torch.rand((), generator=generator) * most
    draw = torch.rand(ids.shape, generator=generator).to(ids.device)
    shuffled = ids.flatten()[torch.randperm(ids.numel(), generator=generator).to(ids.device)]
    wrong = draw < share * REPLACED_SHARE
    spoilt = torch.where(wrong, shuffled.view_as(ids), ids)
    blank = (draw < share) & ~wrong
    start = torch.full_like(ids[:, :1], start_token)
    never = torch.zeros_like(blank[:, :1])
    return torch.cat([start, spoilt], dim=1), torch.cat([never, blank], dim=1)


class ReadingOptions(TypedDict, total=False):
    """What a reader is told beside symbols and text; all of it may be None, or missing.

    Attributes:
        ends: Last token of each symbol's segment, `[batch, k]`; None spreads symbols evenly.
        inputs: What the reader is shown, `[batch, 1 + n]`; None means the text itself.
        blank: True on inputs to blank out, `[batch, 1 + n]`.
        memory: Embeddings of earlier symbols, `[batch, m, hidden]`.
        real: True on symbols that are there, `[batch, k]`; None means all.
    """

    ends: Tensor | None
    inputs: Tensor | None
    blank: Tensor | None
    memory: Tensor | None
    real: Tensor | None


def states_behind(
    z: ZLanguageModel, symbols: Tensor, ids: Tensor, **reading: Unpack[ReadingOptions]
) -> Tensor:
    """The decompressor's states while it says a text again.

    Args:
        z: The model; DECOMPRESS is made active.
        symbols: Embeddings, `[batch, k, hidden]`; k may be 0.
        ids: The text, int64 `[batch, n]`, no padding.
        **reading: What else it is told.

    Returns:
        `[batch, n + 1, hidden]`, each behind the token that it foresees; the last foresees the end.
    """
    ends, inputs, real = reading.get("ends"), reading.get("inputs"), reading.get("real")
    batch, n = ids.shape
    if inputs is None:
        inputs = torch.cat([torch.full_like(ids[:, :1], z.start_token), ids], dim=1)
    k = symbols.shape[1]
    placed = spread_positions(k, n).expand(batch, -1) if ends is None else ends.cpu() + 1
    symbols, places, m = behind(reading.get("memory"), symbols, placed)
    there = torch.ones(batch, m + k, dtype=torch.long, device=z.device)
    if real is not None:
        there[:, m:] = real
    z.adapters.activate("decompress")
    return z.restore_states(
        symbols,
        places,
        there,
        inputs,
        torch.ones_like(inputs),
        offset=m,
        hidden_inputs=reading.get("blank"),
    )


def restore_loss(
    z: ZLanguageModel, symbols: Tensor, ids: Tensor, **reading: Unpack[ReadingOptions]
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the text and its end under the decompressor, without its channel.

    Args:
        z: As for `states_behind`, and what follows too.
        symbols: Embeddings, `[batch, k, hidden]`.
        ids: The text, int64 `[batch, n]`.
        **reading: What else the reader is told.

    Returns:
        As `alone` does.
    """
    return alone(z, states_behind(z, symbols, ids, **reading), ids)


def alone(z: ZLanguageModel, states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What a text and its end cost the decompressor without its channel.

    Args:
        z: The model.
        states: As `states_behind` gives them.
        ids: The text, int64 `[batch, n]`.

    Returns:
        Nats `[batch, n + 1]` (the last is the end token's), and whether the most likely token was
        the right one, bool `[batch, n]`.
    """
    target = torch.cat([ids, torch.full_like(ids[:, :1], z.end_token)], dim=1)
    nll, likeliest = token_losses(z, states, target)
    return nll, likeliest[:, :-1] == ids


def behind(memory: Tensor | None, symbols: Tensor, placed: Tensor) -> tuple[Tensor, Tensor, int]:
    """Symbols with those of earlier windows in front, as DECOMPRESS reads them.

    Args:
        memory: Embeddings of earlier symbols, `[batch, m, hidden]`, or None.
        symbols: Embeddings, `[batch, k, hidden]`.
        placed: Positions of these as if nothing were in front, `[batch, k]`.

    Returns:
        Embeddings `[batch, m + k, hidden]`, positions `[batch, m + k]`, and m.
    """
    if memory is None:
        return symbols, placed, 0
    m = memory.shape[1]
    places = torch.cat([torch.arange(m).expand(len(placed), -1), placed + m], dim=1)
    return torch.cat([memory.to(symbols.dtype), symbols], dim=1), places, m
