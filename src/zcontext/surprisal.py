"""How hard a text is to guess for the plain base, and when a writer should ask it.

The writer's own estimate comes from its first layers and is free; where a symbol has a code for
every other token it serves as well. Where codes are few, it matters which tokens get them. What
this module does not know: windows, budgets, documents.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zcontext.errors import ModelError
from zcontext.model import ZLanguageModel

SCARCE = 3.0
"""Tokens for each code from which the base is asked which of them to name
(docs/development/log.md)."""


def scarce(n_tokens: int, n_symbols: int, *, depth: int) -> bool:
    """Whether codes are so few that the base should say which tokens are hard to guess.

    Args:
        n_tokens: Tokens of a window that symbols stand for.
        n_symbols: Symbols of it.
        depth: Codes per symbol.

    Returns:
        Whether there are `SCARCE` tokens or more for each code; False without symbols.
    """
    return 0 < SCARCE * n_symbols * depth <= n_tokens


@torch.no_grad()
def base_surprisal(z: ZLanguageModel, ids: Tensor) -> Tensor:
    """Surprisal of every token under the plain base, behind the start token.

    Args:
        z: The model; all adapters are off while it runs.
        ids: int64 `[batch, n]`; what fills rows up on the right changes nothing before it.

    Returns:
        Bits, `[batch, n]`.

    Raises:
        ModelError: The base gives values that are not numbers.
    """
    with z.using(None):
        ids = ids.to(z.device)
        inputs = torch.cat([torch.full_like(ids[:, :1], z.start_token), ids[:, :-1]], dim=1)
        positions = torch.arange(ids.shape[1], device=z.device).expand(len(ids), -1)
        hidden = z.run(z.embed_tokens(inputs), positions=positions, mask=torch.ones_like(ids))
        rows = [
            nn.functional.cross_entropy(z.logits(states), row, reduction="none")
            for states, row in zip(hidden.hidden, ids, strict=True)
        ]
    return finite(torch.stack(rows) / math.log(2))


def finite(bits: Tensor) -> Tensor:
    """Surprisals, if they are numbers.

    Args:
        bits: Of any shape.

    Returns:
        The same.

    Raises:
        ModelError: One is not.
    """
    if not bool(torch.isfinite(bits).all()):
        raise ModelError(
            "the base gives surprisals that are not finite; load it with dtype='fp32' or "
            "'bf16', and check that the bundle was trained on this base"
        )
    return bits
