"""Where segments end, in as few bits as there are ways to place them.

A span of n tokens cut into k segments is one of comb(n - 1, k - 1) cuts, and is stored as its
number among them (enumerative coding, Cover 1973): about three bits a symbol at four tokens a
symbol. The decompressor reads each symbol at the place its segment ends; told the places, it learns
several times faster than with symbols spread evenly (docs/development/log.md).

Floor 0, standard library only. What it does not know: symbols, tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

MAX_TOKENS: Final = 1 << 16
"""Most tokens of one span; windows have at most 8,192. Without a limit, a few forged bytes could
ask for a cut of 2**60 tokens, and reading them would never end."""


def placement_bits(n_tokens: int, n_segments: int) -> int:
    """Bits that name one way to cut tokens into segments.

    Args:
        n_tokens: Tokens to cut.
        n_segments: Segments, none empty.

    Returns:
        The bits; 0 when there is one way or none.
    """
    if not 1 <= n_segments <= n_tokens:
        return 0
    return (math.comb(n_tokens - 1, n_segments - 1) - 1).bit_length()


def pack_ends(ends: Sequence[int]) -> bytes:
    """Number of a cut among all cuts of the same length and count.

    Args:
        ends: End of every segment (exclusive), strictly increasing from 1; the last is the number
            of tokens.

    Returns:
        Big-endian bytes, as many as `placement_bits` asks for.
    """
    n, k = ends[-1], len(ends)
    chosen = {end - 1 for end in ends[:-1]}
    left, number, count = k - 1, 0, math.comb(n - 1, k - 1)
    for place in range(n - 2, -1, -1):
        if left == 0:
            break
        without = count * (place + 1 - left) // (place + 1)
        if place in chosen:
            number += without
            count, left = count - without, left - 1
        else:
            count = without
    return number.to_bytes((placement_bits(n, k) + 7) // 8, "big")


def unpack_ends(data: bytes, *, n_tokens: int, n_segments: int) -> tuple[int, ...]:
    """The inverse of `pack_ends`.

    Args:
        data: What `pack_ends` returned.
        n_tokens: Tokens that were cut.
        n_segments: Segments they were cut into.

    Returns:
        End of every segment.

    Raises:
        ValueError: The bytes name no such cut.
    """
    if not 1 <= n_segments <= n_tokens <= MAX_TOKENS:
        raise ValueError(f"{n_tokens} tokens cannot be cut into {n_segments} segments")
    count, number = math.comb(n_tokens - 1, n_segments - 1), int.from_bytes(data, "big")
    if number >= count or len(data) != (placement_bits(n_tokens, n_segments) + 7) // 8:
        raise ValueError(f"{len(data)} bytes name no cut of {n_tokens} tokens into {n_segments}")
    left, ends = n_segments - 1, [n_tokens]
    for place in range(n_tokens - 2, -1, -1):
        if left == 0:
            break
        without = count * (place + 1 - left) // (place + 1)
        if number >= without:
            number -= without
            ends.append(place + 1)
            count, left = count - without, left - 1
        else:
            count = without
    return tuple(reversed(ends))
