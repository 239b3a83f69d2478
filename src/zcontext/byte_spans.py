"""What ByteCodec writes: the bytes of a text as symbols, and back.

A symbol holds the first bytes of its segment; those that find no room become errata. Floor 0,
standard library only. What it does not know: windows, settings, who asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from zcontext.spans import Fidelity, LiteralText, ZSpan
from zcontext.vocabulary import Symbols
from zcontext.windows import Extent

SIZE: Final = 256
PAD: Final = 0xFF  # never a byte of UTF-8
_NAME = re.compile(r"\w*\d\w*|\b[A-Z]\w+")


@dataclass(frozen=True, slots=True)
class CharacterStarts:
    """The byte offsets at which a character starts, as a container."""

    data: bytes

    def __contains__(self, offset: object) -> bool:
        return isinstance(offset, int) and self.data[offset] & 0xC0 != 0x80


def byte_extents(text: str, places: Sequence[tuple[int, int]]) -> list[Extent]:
    """Character ranges, in order, as ranges of UTF-8 bytes."""
    found: list[Extent] = []
    char = byte = 0
    for begin, end in places:
        start = byte + len(text[char:begin].encode())
        char, byte = end, start + len(text[begin:end].encode())
        found.append(Extent(start, byte))
    return found


def byte_span(data: bytes, n: int, depth: int, tokens: Extent, chars: Extent, *, tag: str) -> ZSpan:
    """Bytes as `n` symbols of `depth` bytes each; what finds no room becomes errata."""
    codes: list[tuple[int, ...]] = []
    errata = b"" if n else data
    for start, end in _segments(len(data), n):
        piece = data[start:end]
        codes.append(tuple(piece[:depth].ljust(depth, bytes([PAD]))))
        errata += piece[depth:]
    symbols = Symbols(tuple(codes), SIZE, tag)
    lost: tuple[str, ...] = ()
    if errata:
        readable = set(_NAME.findall(read_bytes(symbols)))
        lost = tuple(sorted(set(_NAME.findall(data.decode())) - readable))
    accuracy = 1.0 - len(errata) / len(data)
    fidelity = Fidelity(accuracy, 8.0 * len(errata), lost)
    return ZSpan(symbols, tokens, chars, errata, fidelity)


def literal_span(text: str, tokens: Extent, chars: Extent, *, tag: str) -> ZSpan:
    """A span that is text."""
    nothing = Symbols((), SIZE, tag)
    kept = LiteralText(Extent(0, len(tokens)), 0, text)
    return ZSpan(nothing, tokens, chars, fidelity=Fidelity(1.0, 0.0), literals=(kept,))


def _segments(n_bytes: int, n_symbols: int) -> Iterator[tuple[int, int]]:
    for k in range(n_symbols):
        yield k * n_bytes // n_symbols, (k + 1) * n_bytes // n_symbols


def read_bytes(symbols: Symbols) -> str:
    """What symbols still hold of a text."""
    data = bytes(byte for code in symbols.codes for byte in code if byte != PAD)
    return data.decode("utf-8", "replace")


def exact_bytes(span: ZSpan) -> bytes:
    """The bytes of a span: each segment's from its symbol, then from the errata."""
    if span.is_literal:
        return span.literals[0].text.encode()
    if not len(span.symbols):
        return span.errata[-len(span.tokens) :]
    pieces: list[bytes] = []
    segments = list(_segments(len(span.tokens), len(span.symbols)))
    n_kept = [
        min(len(code), end - start)
        for (start, end), code in zip(segments, span.symbols.codes, strict=True)
    ]
    at = len(span.errata) - (len(span.tokens) - sum(n_kept))  # behind the mark, if there is one
    for (start, end), kept, code in zip(segments, n_kept, span.symbols.codes, strict=True):
        rest = end - start - kept
        pieces.append(bytes(code[:kept]) + span.errata[at : at + rest])
        at += rest
    return b"".join(pieces)
