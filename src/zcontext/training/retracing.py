"""The second pass of the autoregressive writer's training: all steps of a path in one forward.

The first (`composing.py`) decided, one step after another and without a gradient, where segments
end and which codes are drawn under which noise. Given these, every input is known, so one causal
forward gives the states of all steps. What this module does not know: losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.caches import fork
from zcontext.composing import NEVER, Passage, Path, composer_of
from zcontext.model import ZLanguageModel
from zcontext.pointing import price_of
from zcontext.segmentation import weigh
from zcontext.spelling import hearing_order


@dataclass(frozen=True, slots=True)
class Retraced:
    """States of a path, as far as the objective needs them; all with a gradient.

    Attributes:
        paces: That led to each slot, `[batch, k]`.
        reached: Where they lead, were nothing rounded: bits of the pointer's, `[batch, k]`.
        latents: Of each slot, `[batch, k, hidden]`.
        odds: Log-odds of END at each slot, `[batch, k]`.
    """

    paces: Tensor
    reached: Tensor
    latents: Tensor
    odds: Tensor


def retrace(model: ZLanguageModel, passage: Passage, path: Path) -> Retraced:
    """All slots of a path in one forward; COMPOSE must be active.

    Where segments end was decided by rounding, which has no gradient. The sum over a segment's
    tokens does have one in its limits: the token next to be taken in, for each bit of its own.
    Where codes are names it is left out: a sum does not tell that a symbol has no names left
    (`limits.py` does).

    Args:
        model: With a composer.
        passage: The windows.
        path: Through them.

    Returns:
        Paces, latents and odds.
    """
    composer, codebook = composer_of(model), model.codebook
    with torch.no_grad():
        order = hearing_order(codebook, path.codes, passage.tokens, path.ends)
        symbols = model.embed_codes(path.codes.gather(-1, order))
        pooled = codebook.pool(passage.tokens, path.ends)
    slots = composer.slot_inputs(pooled, path.n_left.to(pooled))
    one = price_of(1.0, mean_surprisal=model.config.mean_surprisal)
    start = composer.start_inputs((path.prices / one).clamp_min(1.0))
    # Start, slot, symbol, slot, symbol, ... slot.
    pairs = torch.stack([slots, symbols.to(slots.dtype)], dim=2).flatten(1, 2)[:, :-1]
    places = passage.positions.gather(1, path.ends)
    spots = places.repeat_interleave(2, dim=1)[:, :-1]
    spots = torch.cat([passage.before.unsqueeze(1), spots], dim=1)
    out = model.run(
        torch.cat([start, pairs], dim=1),
        positions=spots,
        mask=torch.cat([passage.state.mask, passage.state.mask.new_ones(spots.shape)], dim=1),
        cache=fork(passage.state.cache),
        n_layers=model.config.writer_layers,
    )
    at_slots = out.hidden[:, 1::2]
    paces = composer.pace(torch.cat([out.hidden[:, :1], at_slots[:, :-1]], dim=1))
    reached = (paces * path.prices.unsqueeze(1)).cumsum(1)
    if codebook.lexicon is None:
        pooled = pooled + _boundaries(codebook.mean_embedding, passage, path, reached)
    latents = pooled
    if codebook.lexicon is None or not codebook.lexicon.complete:
        # Else all codes are looked up, and nothing is left for the states to say.
        latents = composer.latents(at_slots, pooled, scale=codebook.correction_scale)
    odds = composer.end_odds(at_slots)
    never = torch.zeros_like(path.real)
    never[:, 0] = True
    return Retraced(paces, reached, latents, odds.masked_fill(never, NEVER))


def _boundaries(mean: Tensor, passage: Passage, path: Path, reached: Tensor) -> Tensor:
    """Zeros with the gradient that pooled segments have in where the pointer stood."""
    n = passage.tokens.shape[1]
    following = (path.ends + 1).clamp_max(n - 1)
    width = passage.tokens.shape[-1]
    token = passage.tokens.gather(1, following.unsqueeze(-1).expand(-1, -1, width)).float() - mean
    weight = weigh(passage.bits).to(token)
    lengths = torch.tensor([len(row) for row in passage.surprisal], device=token.device)
    moves = (path.ends + 1 < lengths.unsqueeze(1)) & path.real & ~path.held
    slope = token / weight.gather(1, following).unsqueeze(-1)
    moved = (reached - reached.detach()) * moves
    change = moved.unsqueeze(-1) * slope.detach()
    before = torch.cat([torch.zeros_like(change[:, :1]), change[:, :-1]], dim=1)
    return change - before
