"""How often codes fire: Zipf curve, entropy, what each stage chose.

What it does not know: what codes mean, texts, models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.lexicon import SILENT
from zcontext.polysemy.firings import Firings

CURVE_POINTS = 120
"""Points of the Zipf curve that are kept, evenly in the logarithm of the rank."""


@dataclass(frozen=True, slots=True)
class StageUsage:
    """What one stage chose.

    Attributes:
        silent_share: Share of symbols to which it added nothing (shared tables only).
        n_codes: Different codes it chose.
        entropy_bits: Of its choice.
    """

    silent_share: float
    n_codes: int
    entropy_bits: float


@dataclass(frozen=True, slots=True)
class Usage:
    """How often codes fire.

    Attributes:
        n_symbols: Symbols looked at.
        n_firings: Codes that fired, once per symbol.
        n_codes: Codes there are.
        n_used: Codes that fired at all.
        entropy_bits: Of the distribution of firings over codes.
        effective_codes: 2 to that: equally likely codes of the same entropy.
        zipf_slope: Of log count over log rank, least squares over codes that fired twice or more.
        curve: Rank and count, evenly spaced in the logarithm of the rank.
        stages: Of each stage.
    """

    n_symbols: int
    n_firings: int
    n_codes: int
    n_used: int
    entropy_bits: float
    effective_codes: float
    zipf_slope: float
    curve: tuple[tuple[int, int], ...]
    stages: tuple[StageUsage, ...]


def usage_of(found: Firings, *, size: int, shared: bool) -> Usage:
    """How often codes fire.

    Args:
        found: Where they do.
        size: Codes per table.
        shared: All stages choose from one table.

    Returns:
        The usage.
    """
    counts = found.key.bincount().sort(descending=True).values
    counts = counts[counts > 0]
    ranks = torch.arange(1, len(counts) + 1, dtype=torch.float64)
    points = sorted({round(len(counts) ** (k / CURVE_POINTS)) for k in range(CURVE_POINTS + 1)})
    # One code for silence belongs to nobody's usage.
    n_codes = size - 1 if shared else size * found.codes.shape[1]
    entropy = _entropy(counts)
    stages = tuple(_stage(column, shared=shared) for column in found.codes.unbind(1))
    return Usage(
        n_symbols=len(found.segments),
        n_firings=len(found.key),
        n_codes=n_codes,
        n_used=len(counts),
        entropy_bits=entropy,
        effective_codes=2.0**entropy,
        zipf_slope=_slope(ranks[counts > 1], counts[counts > 1]),
        curve=tuple((rank, int(counts[rank - 1])) for rank in points if len(counts)),
        stages=stages,
    )


def _stage(codes: Tensor, *, shared: bool) -> StageUsage:
    counts = codes.bincount()
    n_silent = int((codes == SILENT).sum()) if shared else 0
    n_used = int((counts > 0).sum()) - (n_silent > 0)
    return StageUsage(n_silent / max(1, len(codes)), n_used, _entropy(counts[counts > 0]))


def _entropy(counts: Tensor) -> float:
    share = counts.double() / counts.sum().clamp_min(1)
    return float(-(share * share.log2()).sum()) if len(counts) else 0.0


def _slope(ranks: Tensor, counts: Tensor) -> float:
    if len(ranks) < 2:
        return 0.0
    x, y = ranks.double().log(), counts.double().log()
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())
