"""NF4 in plain torch is bitsandbytes' NF4, number for number, up to a lookup table's bin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zcontext import nf4
from zcontext.errors import ModelError

# The oracle; there is none where it cannot be installed (Intel Macs).
bnb = pytest.importorskip("bitsandbytes.functional")
SHAPES = [(192, 576), (33, 70), (7, 9), (3, 50), (5, 64), (64,), (1,), (300, 64)]
BIN = 2 / 65535
"""Width of a bin of the table through which bitsandbytes' CPU kernel finds an 8-bit code."""


def weight(
    shape: tuple[int, ...], *, seed: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 0.05).to(dtype)


def bnb_levels(packed: torch.Tensor, numel: int) -> torch.Tensor:
    packed = packed.reshape(-1)
    return torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[:numel]


def through_bnb(weight: torch.Tensor) -> tuple[torch.Tensor, bnb.QuantState]:
    packed, state = bnb.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    return packed, state


def slow_indices(values: torch.Tensor, table: tuple[float, ...], block: int) -> torch.Tensor:
    """The nearest table entry of every scaled value, by trying them all; ties go down."""
    entries = torch.tensor(table)
    out = []
    for start in range(0, values.numel(), block):
        part = values[start : start + block]
        scaled = part * (1.0 / part.abs().max().clamp(min=1e-38))
        midpoints = (entries[:-1] + entries[1:]) / 2
        out.append((scaled[:, None] > midpoints).sum(-1))
    return torch.cat(out).to(torch.uint8)


def test_the_tables_are_those_of_bitsandbytes() -> None:
    assert torch.equal(torch.tensor(nf4.LEVELS), bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(torch.tensor(nf4.dynamic_map()), bnb.create_dynamic_map())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_levels_and_second_scales_equal_those_of_bitsandbytes(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    w = weight(shape, seed=1, dtype=dtype)
    packed, state = through_bnb(w)
    ours = nf4.quantize(w)
    assert torch.equal(ours.levels, bnb_levels(packed, w.numel()))
    torch.testing.assert_close(ours.offset, state.offset, rtol=3e-7, atol=0)
    torch.testing.assert_close(ours.absmax_scales, state.state2.absmax, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_codes_differ_from_bitsandbytes_only_within_a_bin_of_a_midpoint(
    dtype: torch.dtype,
) -> None:
    w = weight((1536, 576), seed=2, dtype=dtype)
    _, state = through_bnb(w)
    ours = nf4.quantize(w)
    differ = (ours.absmax_codes != state.absmax).nonzero().squeeze(1)
    assert len(differ) < 0.01 * ours.absmax_codes.numel()
    absmax = w.float().view(-1, 64).abs().amax(-1) - ours.offset
    scaled = absmax / ours.absmax_scales.repeat_interleave(256)[: absmax.numel()]
    table = torch.tensor(nf4.dynamic_map())
    mine, theirs = (codes[differ].long() for codes in (ours.absmax_codes, state.absmax))
    midpoint = (table[mine] + table[theirs]) / 2
    assert ((scaled[differ] - midpoint).abs() <= BIN).all()
    # Ours is the nearer one.
    near = (scaled[differ] - table[mine]).abs() - (scaled[differ] - table[theirs]).abs()
    assert (near <= 1e-7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(192, 576), (33, 70), (3, 50)])
def test_bitsandbytes_reads_our_numbers_as_we_do(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    w = weight(shape, seed=3, dtype=dtype)
    packed, state = through_bnb(w)
    ours = nf4.quantize(w)
    state.absmax, state.state2.absmax = ours.absmax_codes, ours.absmax_scales
    state.offset = ours.offset
    assert torch.equal(bnb.dequantize_4bit(packed, state), nf4.dequantize(ours, dtype=dtype))


def test_the_round_trip_is_as_far_from_the_weight_as_that_of_bitsandbytes() -> None:
    w = weight((1536, 576), seed=4)
    packed, state = through_bnb(w)
    theirs = bnb.dequantize_4bit(packed, state)
    ours = nf4.roundtrip(w)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=1e-4)
    assert (ours - w).square().mean() <= (theirs - w).square().mean() * 1.0001
    assert 0.08 < (ours - w).norm() / w.norm() < 0.11


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), numel=st.integers(1, 700), sparse=st.booleans())
def test_the_fast_search_equals_the_slow_one(seed: int, numel: int, sparse: bool) -> None:
    w = weight((numel,), seed=seed)
    if sparse:
        w = w * (weight((numel,), seed=seed + 1) > 0.05)
    assert torch.equal(nf4.quantize(w).levels, slow_indices(w, nf4.LEVELS, 64))


def test_a_value_on_either_side_of_every_midpoint_gets_its_own_level() -> None:
    levels = torch.tensor(nf4.LEVELS)
    midpoints = (levels[:-1] + levels[1:]) / 2
    above = torch.nextafter(midpoints, torch.tensor(2.0))
    one = torch.ones(1)
    assert nf4.quantize(torch.cat([one, midpoints])).levels[1:].tolist() == list(range(15))
    assert nf4.quantize(torch.cat([one, above])).levels[1:].tolist() == list(range(1, 16))


def test_levels_survive_a_second_round_trip() -> None:
    once = nf4.roundtrip(weight((64, 128), seed=5))
    assert torch.equal(nf4.quantize(once).levels, nf4.quantize(weight((64, 128), seed=5)).levels)


def test_zeros_stay_zeros() -> None:
    assert torch.equal(nf4.roundtrip(torch.zeros(3, 64)), torch.zeros(3, 64))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.ones(4, dtype=torch.int64), "floating-point"),
        (torch.empty(0, 4), "not empty"),
        (torch.tensor([1.0, float("nan")]), "NaN"),
        (torch.tensor([1.0, float("-inf")]), "infinite"),
    ],
)
def test_what_cannot_be_quantised_is_refused(bad: torch.Tensor, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        nf4.quantize(bad)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    good = nf4.quantize(weight((64, 2), seed=6))
    with pytest.raises(ModelError, match="expected 192 and 3"):
        nf4.NF4Weight(good.levels, good.absmax_codes, good.absmax_scales, good.offset, (64, 3))
