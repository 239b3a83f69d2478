"""Cuts of a span: every one has a number, and the number takes the bits it must."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcontext.placement import pack_ends, placement_bits, unpack_ends


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, ...]:
    n = draw(st.integers(1, 600))
    inner = draw(st.sets(st.integers(1, n - 1), max_size=n - 1)) if n > 1 else set()
    return (*sorted(inner), n)


@given(cuts())
def test_unpack_inverts_pack(ends: tuple[int, ...]) -> None:
    data = pack_ends(ends)
    assert unpack_ends(data, n_tokens=ends[-1], n_segments=len(ends)) == ends
    assert len(data) == (placement_bits(ends[-1], len(ends)) + 7) // 8


@pytest.mark.parametrize(("n", "k"), [(1, 1), (6, 3), (7, 7), (9, 2)])
def test_every_cut_has_a_number_of_its_own(n: int, k: int) -> None:
    every = [(*inner, n) for inner in itertools.combinations(range(1, n), k - 1)]
    numbers = {int.from_bytes(pack_ends(ends), "big") for ends in every}
    assert numbers == set(range(math.comb(n - 1, k - 1)))


def test_a_number_that_names_no_cut_is_refused() -> None:
    for data, n, k in [(b"\xff", 6, 3), (b"", 6, 3), (b"\x00\x00", 6, 3), (b"", 2, 3)]:
        with pytest.raises(ValueError, match="cut"):
            unpack_ends(data, n_tokens=n, n_segments=k)


def test_four_tokens_a_symbol_cost_about_three_bits_a_symbol() -> None:
    assert 3.1 < placement_bits(512, 128) / 128 < 3.3
