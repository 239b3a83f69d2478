"""Numbers that must come out the same in training and in use.

What this module does not know: what the numbers are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
P = ParamSpec("P")
T = TypeVar("T")


def in_full_precision(
    method: Callable[Concatenate[M, Tensor, P], T],
) -> Callable[Concatenate[M, Tensor, P], T]:
    """Keep autocast out: 8 bits of mantissa choose other codes than inference does."""

    @wraps(method)
    def kept(self: M, first: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with torch.autocast(first.device.type, enabled=False):
            return method(self, first, *args, **kwargs)

    return kept


def unit_rms(states: Tensor) -> Tensor:
    """States at root mean square 1 along the last axis.

    Args:
        states: `[..., hidden]`.

    Returns:
        float32 `[..., hidden]`.
    """
    states = states.float()
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)
