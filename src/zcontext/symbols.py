"""Symbols as values: a run of code tuples, checked, sliced, joined and packed into bits.

Floor 0, standard library only. It knows the numbers; `vocabulary` knows how they are written in
text, and only a model knows what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil, log2
from typing import Final

from zcontext.errors import CodecMismatchError, UnknownSymbolError, VocabularyError
from zcontext.packing import code_width, pack_codes, unpack_codes

MIN_SIZE: Final = 2
MAX_SIZE: Final = 65_536
MAX_DEPTH: Final = 8

_TAG = re.compile(r"[0-9a-f]{4}\Z")


@dataclass(frozen=True, slots=True, repr=False)
class Symbols:
    """A run of symbols of one depth.

    Args:
        codes: Per symbol, its codes, stage by stage.
        size: Number of codes there are; each code is below it.
        codec: First four hex digits of the digest of the codec that wrote them.

    Raises:
        VocabularyError: if size, depth or codec cannot exist, or the depths differ.
        UnknownSymbolError: if a code is not in 0..size-1.
    """

    codes: tuple[tuple[int, ...], ...]
    size: int
    codec: str

    def __post_init__(self) -> None:
        if type(self.size) is not int or not MIN_SIZE <= self.size <= MAX_SIZE:
            raise VocabularyError(
                f"size={self.size!r}: give an integer in {MIN_SIZE}..{MAX_SIZE} (codes per stage)."
            )
        if not isinstance(self.codec, str) or not _TAG.match(self.codec):
            raise VocabularyError(
                f"codec={self.codec!r}: give the first four lower-case hex digits of the codec's "
                "digest (ZVocabulary.tag)."
            )
        codes: object = self.codes
        if not isinstance(codes, tuple) or not set(map(type, codes)) <= {tuple}:
            raise VocabularyError(
                "codes must be a tuple of tuples of int: use tuple(map(tuple, array.tolist()))."
            )
        if not codes:
            return
        depths = set(map(len, codes))
        if len(depths) > 1 or not 1 <= max(depths) <= MAX_DEPTH:
            raise VocabularyError(
                f"symbols of depth {sorted(depths)}: all must have one depth in 1..{MAX_DEPTH}."
            )
        # Sets, because a run has few distinct codes: 400,000 of them check in some 20 ms.
        values = set(chain.from_iterable(self.codes))
        if not set(map(type, chain.from_iterable(self.codes))) <= {int}:
            raise VocabularyError("codes must be plain int: use array.tolist() on an array.")
        if min(values) < 0 or max(values) >= self.size:
            wrong = min(values) if min(values) < 0 else max(values)
            raise UnknownSymbolError(
                f"code {wrong} is outside 0..{self.size - 1}: these symbols come from a codec of "
                "another size, or were altered."
            )

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.codes[:3])) + (", ..." if len(self.codes) > 3 else "")
        return (
            f"Symbols(n_symbols={len(self.codes)}, depth={self.depth}, size={self.size}, "
            f"codec={self.codec!r}, codes=({shown}))"
        )

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return iter(self.codes)

    def __getitem__(self, part: slice) -> Symbols:
        if not isinstance(part, slice):
            raise VocabularyError(
                f"Symbols[{part!r}]: only slices are symbols again; read one symbol's codes with "
                "symbols.codes[i]."
            )
        return Symbols(self.codes[part], self.size, self.codec)

    def __add__(self, other: Symbols) -> Symbols:
        if not isinstance(other, Symbols):
            return NotImplemented
        return join((self, other))

    @property
    def depth(self) -> int:
        """Codes per symbol; 0 when there is no symbol."""
        return len(self.codes[0]) if self.codes else 0

    @property
    def n_symbols(self) -> int:
        """Number of symbols: positions that the reader spends on them."""
        return len(self.codes)

    @property
    def bits(self) -> int:
        """What the symbols can carry: n_symbols * depth * log2(size), rounded up."""
        n_codes = len(self.codes) * self.depth
        if self.size & (self.size - 1) == 0:
            return n_codes * code_width(self.size)
        return ceil(n_codes * log2(self.size))

    def coarser(self, depth: int) -> Symbols:
        """The same symbols with only their first `depth` codes.

        Args:
            depth: Codes kept per symbol.

        Returns:
            The coarser symbols.

        Raises:
            VocabularyError: if `depth` is not in 1..self.depth.
        """
        if not self.codes:
            return self
        if type(depth) is not int or not 1 <= depth <= self.depth:
            raise VocabularyError(
                f"depth={depth!r}: symbols of depth {self.depth} can be cut to 1..{self.depth}."
            )
        if depth == self.depth:
            return self
        return Symbols(tuple(code[:depth] for code in self.codes), self.size, self.codec)

    def to_bytes(self) -> bytes:
        """The codes, bit-packed at the width of one code (exactly `bits` for powers of two)."""
        return pack_codes(chain.from_iterable(self.codes), width=code_width(self.size))

    @classmethod
    def from_bytes(
        cls, data: bytes, *, n_symbols: int, depth: int, size: int, codec: str
    ) -> Symbols:
        """The inverse of `to_bytes`.

        Args:
            data: What `to_bytes` returned.
            n_symbols: How many symbols it packed.
            depth: Codes per symbol.
            size: Number of codes there are.
            codec: First four hex digits of the digest of their codec.

        Returns:
            The symbols.

        Raises:
            VocabularyError: if the bytes are not those of `n_symbols` such symbols.
        """
        cls((), size, codec)  # checks size and codec before they are used
        if type(depth) is not int or not (1 if n_symbols else 0) <= depth <= MAX_DEPTH:
            raise VocabularyError(f"depth={depth!r}: give an integer in 1..{MAX_DEPTH}.")
        try:
            flat = unpack_codes(data, n_codes=n_symbols * depth, width=code_width(size))
        except ValueError as error:
            raise VocabularyError(
                f"Not the bytes of {n_symbols} symbols of depth {depth} and size {size}: {error}."
            ) from error
        return cls(tuple(zip(*[iter(flat)] * depth, strict=True)) if flat else (), size, codec)


def join(runs: Sequence[Symbols]) -> Symbols:
    """Runs of symbols of one codec and depth as one run; runs without symbols join anything.

    Args:
        runs: One run or more.

    Returns:
        All their symbols in order.

    Raises:
        CodecMismatchError: if codec or size differ.
        VocabularyError: if depths differ, or there is no run at all.
    """
    if not runs:
        raise VocabularyError("join() of no runs has no codec: give at least one Symbols.")
    first = runs[0]
    for run in runs:
        if (run.codec, run.size) != (first.codec, first.size):
            raise CodecMismatchError(
                f"Symbols of codec {run.codec} (size {run.size}) cannot follow symbols of codec "
                f"{first.codec} (size {first.size}): compress both texts with one codec."
            )
    depths = {run.depth for run in runs if len(run)}
    if len(depths) > 1:
        raise VocabularyError(
            f"Symbols of depths {sorted(depths)} cannot form one run: cut them with "
            f"coarser({min(depths)}), or keep them as separate parts."
        )
    codes = tuple(chain.from_iterable(run.codes for run in runs))
    return Symbols(codes, first.size, first.codec)
