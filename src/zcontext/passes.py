"""What a pass of the model leaves behind: states, caches, and what the next step needs of them.

Plain records of tensors. What they do not know: how they were made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RunOutput:
    """States of one pass.

    Attributes:
        hidden: After the last layer run and the final norm, `[batch, seq, hidden]`.
        cache: The key-value cache, extended by this pass; None when none was asked for.
    """

    hidden: Tensor
    cache: Any


@dataclass(slots=True)
class ReadState:
    """What the read step of a window leaves for the write step.

    Attributes:
        ids: Tokens of context and target, int64 `[batch, n]`.
        tokens: Token embeddings of context and target, `[batch, n, hidden]`.
        positions: Positions of those tokens, `[batch, n]`.
        mask: 1 on everything in the cache that may be looked at, `[batch, memory + n]`.
        surprisal: Estimated bits of each token, `[batch, n]`.
        cache: The writer's key-value cache.
    """

    ids: Tensor
    tokens: Tensor
    positions: Tensor
    mask: Tensor
    surprisal: Tensor
    cache: Any = field(repr=False)


def spread_positions(n_symbols: int, n_tokens: int) -> Tensor:
    """Positions of a span's symbols in front of its text, where the ends of segments are unknown.

    Args:
        n_symbols: Symbols of the span.
        n_tokens: Tokens they stand for; the start token stands at position 0.

    Returns:
        int64 `[n_symbols]`, from 1 to `n_tokens`, not decreasing.
    """
    order = torch.arange(1, n_symbols + 1)
    return (order * n_tokens // max(1, n_symbols)).clamp_min(1)
