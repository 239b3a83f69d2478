"""What a text takes, kept one way or another: symbols and errata beside gzip, zstd and the model.

All in bits, so that an exact document can be held against what loses nothing either. Floor 0,
standard library only; zstd is counted where the `zstandard` package is installed. What it does not
know: models. Their entropy is handed in.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import dataclass

from zcontext.spans import ZDocument
from zcontext.vocabulary import utf8_bytes

__all__ = ["Sizes", "sizes_of"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes in bits.

    Attributes:
        bits: Codes, the places of segments, and text kept as it is.
        errata_bits: What makes decompression exact; 0 where nothing does.
        utf8_bits: The text itself.
        gzip_bits: The text under gzip, level 9.
        zstd_bits: The text under zstd, level 19; None where `zstandard` is not installed.
        model_bits: The text under an ideal coder that uses the plain base: its surprisal; None if
            it was not measured.
    """

    bits: int
    errata_bits: int
    utf8_bits: int
    gzip_bits: int
    zstd_bits: int | None = None
    model_bits: int | None = None

    @property
    def total_bits(self) -> int:
        """What decompression needs."""
        return self.bits + self.errata_bits

    def __str__(self) -> str:
        """One line: the total, its parts, and the others with their share of the total."""
        told = f"{self.total_bits:,} bits ({self.bits:,} + {self.errata_bits:,} of errata)"
        others = (
            ("UTF-8", self.utf8_bits),
            ("gzip", self.gzip_bits),
            ("zstd", self.zstd_bits),
            ("the model's entropy", self.model_bits),
        )
        beside = [
            f"{name} {size:,} ({self.total_bits / size:.2f}x)" for name, size in others if size
        ]
        return f"{told}; as a multiple of {', '.join(beside)}" if beside else told

    def __add__(self, other: Sizes) -> Sizes:
        def both(one: int | None, two: int | None) -> int | None:
            return None if one is None or two is None else one + two

        return Sizes(
            self.bits + other.bits,
            self.errata_bits + other.errata_bits,
            self.utf8_bits + other.utf8_bits,
            self.gzip_bits + other.gzip_bits,
            both(self.zstd_bits, other.zstd_bits),
            both(self.model_bits, other.model_bits),
        )


def sizes_of(document: ZDocument, text: str, *, token_bits: Iterable[float] | None = None) -> Sizes:
    """The sizes of a document and of its text.

    Args:
        document: What was written.
        text: What it was written from.
        token_bits: The surprisal of each token under the plain base (`zcontext.pruner.token_bits`).

    Returns:
        The sizes.

    Raises:
        VocabularyError: The text holds a lone surrogate.
    """  # noqa: DOC502 - raised by the check
    data = utf8_bytes(text)
    return Sizes(
        bits=document.bits,
        errata_bits=document.errata_bits,
        utf8_bits=8 * len(data),
        gzip_bits=8 * len(gzip.compress(data, 9, mtime=0)),
        zstd_bits=_zstd_bits(data),
        model_bits=None if token_bits is None else round(sum(token_bits)),
    )


def _zstd_bits(data: bytes) -> int | None:
    try:
        import zstandard
    except ImportError:
        return None
    return 8 * len(zstandard.ZstdCompressor(level=19).compress(data))
