"""NF4: the 4-bit number format of QLoRA, block-wise and with double quantisation, in plain torch.

What it is: the arithmetic of `bitsandbytes.functional.quantize_4bit(quant_type="nf4",
compress_statistics=True)` and its inverse, number for number, so that a machine without
bitsandbytes trains and runs on the very weights that a 4-bit model has elsewhere.
What it does not know: models, layers, files; `loading.py` decides which weights go through here.

Algorithm: QLoRA (Dettmers et al. 2023, arXiv 2305.14314), sections 2 and 3. A weight is cut into
blocks of 64; each is divided by its largest magnitude (absmax) and rounded to one of 16 levels. The
absmax values, less their mean, are themselves quantised: blocks of 256, 8-bit dynamic map (Dettmers
et al. 2022, arXiv 2110.02861).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.errors import ModelError

BLOCK = 64
"""Weights that share one absmax."""
STATISTICS_BLOCK = 256
"""Absmax values that share one second-level absmax."""

LEVELS: tuple[float, ...] = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The 16 values of NF4: quantiles of a standard normal scaled to [-1, 1], with an exact zero."""

_SMALLEST = 1e-38
"""An all-zero block is divided by this instead of by its absmax."""
_BINS = 2048
"""Bins over [-1, 1]; the levels' midpoints lie at least 80 bins apart."""


@dataclass(frozen=True, slots=True)
class NF4Weight:
    """One weight in NF4 with double quantisation.

    Attributes:
        levels: index into `LEVELS` of every weight, uint8 [numel].
        absmax_codes: index into the dynamic map of every block's absmax, uint8 [blocks].
        absmax_scales: the second-level absmax, float32 [ceil(blocks / 256)].
        offset: the mean absmax, float32 scalar tensor.
        shape: the weight's own shape.
    """

    levels: Tensor
    absmax_codes: Tensor
    absmax_scales: Tensor
    offset: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the parts belong together.

        Raises:
            ModelError: when the number of levels is not the number of weights, or of absmax codes
                not the number of blocks.
        """
        numel = math.prod(self.shape)
        blocks = -(-numel // BLOCK)
        if self.levels.numel() != numel or self.absmax_codes.numel() != blocks:
            raise ModelError(
                f"an NF4 weight of shape {list(self.shape)} holds {self.levels.numel()} levels and "
                f"{self.absmax_codes.numel()} block statistics; expected {numel} and {blocks}. "
                "Quantise the weight again with nf4.quantize()."
            )


@functools.cache
def dynamic_map() -> tuple[float, ...]:
    """Return the 256 values of the signed 8-bit dynamic data type, ascending.

    Seven exponents (1e-6 to 1); the larger the exponent, the more bits are left for the fraction.

    Returns:
        The sorted values, from just above -1 to exactly 1.
    """
    values: list[float] = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        middles = (edges[:-1] + edges[1:]) / 2.0
        scale = 10 ** (exponent - 6)
        values += (scale * middles).tolist()
        values += (-scale * middles).tolist()
    return tuple(sorted(values))


@torch.no_grad()
def quantize(weight: Tensor) -> NF4Weight:
    """Quantise a weight to NF4 with double quantisation.

    Args:
        weight: floating point, any shape but empty.

    Returns:
        The quantised weight, on the same device.

    Raises:
        ModelError: for a weight that is empty, not floating point, or not finite.
    """
    if not weight.is_floating_point() or weight.numel() == 0:
        raise ModelError(
            f"cannot quantise a weight of dtype {weight.dtype} and shape {list(weight.shape)} to "
            "NF4: expected a floating-point tensor that is not empty. Leave it as it is."
        )
    absmax, levels = _to_nearest(weight.reshape(-1).float(), _level_finder(weight.device), BLOCK)
    if not bool(torch.isfinite(absmax).all()):
        raise ModelError(
            f"cannot quantise a weight of shape {list(weight.shape)} to NF4: it holds NaN or "
            "infinite values. The checkpoint is damaged; fetch it again."
        )
    # In double precision, so that the mean does not depend on the order in which a device adds.
    offset = absmax.cpu().double().mean().float().to(weight.device)
    table = torch.tensor(dynamic_map(), dtype=torch.float32, device=weight.device)
    bounds = (table[:-1] + table[1:]) / 2
    scales, codes = _to_nearest(
        absmax - offset, lambda scaled: torch.bucketize(scaled, bounds), STATISTICS_BLOCK
    )
    return NF4Weight(levels, codes, scales, offset, tuple(weight.shape))


@torch.no_grad()
def dequantize(weight: NF4Weight, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the plain weight that an NF4 weight stands for.

    Args:
        weight: what `quantize` returned.
        dtype: of the result; the arithmetic is float32.

    Returns:
        The weight in its own shape.
    """
    device = weight.levels.device
    table = torch.tensor(dynamic_map(), dtype=torch.float32, device=device)
    statistics = table.index_select(0, weight.absmax_codes.int())
    absmax = _scale_blocks(statistics, weight.absmax_scales, STATISTICS_BLOCK) + weight.offset
    table = torch.tensor(LEVELS, dtype=torch.float32, device=device)
    levels = table.index_select(0, weight.levels.int())
    return _scale_blocks(levels, absmax, BLOCK).to(dtype).reshape(weight.shape)


def roundtrip(weight: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Send a weight through NF4 and back: the weight that a 4-bit model really multiplies by.

    Args:
        weight: floating point, any shape but empty.
        dtype: of the result; the weight's own when None.

    Returns:
        A new tensor of the same shape.

    Raises:
        ModelError: for a weight that is empty, not floating point, or not finite.
    """
    return dequantize(quantize(weight), dtype=weight.dtype if dtype is None else dtype)


def _level_finder(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function from values in [-1, 1] to the index of the nearest level.

    Three times as fast as torch.bucketize and equal to it: the range is cut into bins so narrow
    that at most one midpoint between levels falls into each. A bin's number is a monotone function
    of the value even as floats round, so one comparison with that midpoint settles the level.
    """
    table = torch.tensor(LEVELS, dtype=torch.float32, device=device)
    midpoints = (table[:-1] + table[1:]) / 2
    bins = _bin_of(midpoints)
    base = torch.searchsorted(bins, torch.arange(_BINS + 1, device=device, dtype=torch.int32))
    bound = torch.full((_BINS + 1,), torch.inf, device=device)
    bound[bins.long()] = midpoints
    base = base.to(torch.uint8)

    def nearest(scaled: Tensor) -> Tensor:
        number = _bin_of(scaled)
        return base.index_select(0, number) + (scaled > bound.index_select(0, number))

    return nearest


def _bin_of(scaled: Tensor) -> Tensor:
    # The clamp is for NaN and infinity, which quantize() refuses once it has seen the absmax.
    return ((scaled + 1.0) * (_BINS / 2)).nan_to_num_(0.0).to(torch.int32).clamp_(0, _BINS)


def _to_nearest(
    flat: Tensor, nearest: Callable[[Tensor], Tensor], block: int
) -> tuple[Tensor, Tensor]:
    """Scale each block by its absmax and take the nearest level; the last block may be short.

    Returns:
        The absmax of every block, float32, and the index of every value, uint8.
    """
    n = flat.numel()
    padded = torch.nn.functional.pad(flat, (0, -n % block)) if n % block else flat
    blocks = padded.view(-1, block)
    absmax = blocks.abs().amax(dim=-1)
    scaled = blocks * (1.0 / absmax.clamp(min=_SMALLEST)).unsqueeze(-1)
    return absmax, nearest(scaled.view(-1)[:n]).to(torch.uint8)


def _scale_blocks(values: Tensor, scales: Tensor, block: int) -> Tensor:
    n = values.numel()
    padded = torch.nn.functional.pad(values, (0, -n % block)) if n % block else values
    return (padded.view(-1, block) * scales.unsqueeze(-1)).view(-1)[:n]
