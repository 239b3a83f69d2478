"""The symbols of one window as a value, and its stored forms.

Floor 0, standard library only. What it does not know: the other spans of the text, beyond where the
one before it ends.
"""

from __future__ import annotations

import base64
import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from zcontext.errors import SpanError
from zcontext.packing import ByteReader, ByteWriter
from zcontext.placement import MAX_TOKENS, pack_ends, placement_bits, unpack_ends
from zcontext.symbols import Symbols
from zcontext.vocabulary import has_symbols, utf8_bytes
from zcontext.windows import Extent

_KEYS: Final = frozenset(("tokens", "chars", "codes", "ends", "errata", "fidelity", "literals"))


def require(condition: bool, message: str) -> None:
    """Raise SpanError unless a condition holds."""
    if not condition:
        raise SpanError(message)


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well a span reads back without its errata.

    Args:
        token_accuracy: Share of tokens right, 0..1, each predicted from the right ones before it.
        bits_missing: Bits needed on top of the symbols to name every token.
        lost: Numbers and names of the source that would not survive.

    Raises:
        SpanError: if a value is outside its range.
    """

    token_accuracy: float
    bits_missing: float
    lost: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(
            isinstance(self.token_accuracy, int | float) and 0.0 <= self.token_accuracy <= 1.0,
            f"token_accuracy={self.token_accuracy!r}: give a share in 0..1.",
        )
        require(
            isinstance(self.bits_missing, int | float)
            and 0.0 <= self.bits_missing <= sys.float_info.max,
            f"bits_missing={self.bits_missing!r}: give a finite number of 0 or more.",
        )
        require(
            isinstance(self.lost, tuple) and all(isinstance(item, str) for item in self.lost),
            f"lost={self.lost!r}: give a tuple of str.",
        )


@dataclass(frozen=True, slots=True)
class LiteralText:
    """Text of a span that is kept as it is, between its symbols.

    Args:
        tokens: Its extent in base tokens, from the span's start.
        char: The character at which it starts, from the span's start.
        text: What stands there.

    Raises:
        SpanError: if there is no token or no text, or the text spells symbols.
        VocabularyError: if the text holds a lone surrogate.
    """  # noqa: DOC502 - raised by the check

    tokens: Extent
    char: int
    text: str

    def __post_init__(self) -> None:
        require(
            isinstance(self.tokens, Extent)
            and type(self.char) is int
            and self.char >= 0
            and isinstance(self.text, str),
            f"{type(self).__name__} takes an Extent, an int of 0 or more and a str.",
        )
        utf8_bytes(self.text)
        require(
            len(self.tokens) > 0 and bool(self.text) and not has_symbols(self.text),
            f"literal {self.text[:20]!r} of {len(self.tokens)} tokens: give one token or more, and "
            "text that spells no symbols.",
        )

    @property
    def bits(self) -> int:
        """What it takes to store the text."""
        return 8 * len(utf8_bytes(self.text))


@dataclass(frozen=True, slots=True)
class ZSpan:
    """The symbols written for one window of the source.

    Args:
        symbols: What was written.
        tokens: Extent of the source in base tokens.
        chars: The same extent in characters.
        errata: Corrections that make the decompressed text exact; empty if none are needed or
            none were asked for.
        fidelity: How well it reads back without errata, if that was measured.
        ends: Where each symbol's segment ends, in tokens from the span's start (exclusive, the
            last is the span's length); None if unknown, and a reader then assumes equal segments.
        literals: Text kept as it is, in order; symbols stand for the rest.

    Raises:
        SpanError: if a field is of the wrong type or no token is covered.
    """

    symbols: Symbols
    tokens: Extent
    chars: Extent
    errata: bytes = b""
    fidelity: Fidelity | None = None
    ends: tuple[int, ...] | None = None
    literals: tuple[LiteralText, ...] = ()

    def __post_init__(self) -> None:
        require(
            isinstance(self.symbols, Symbols)
            and isinstance(self.tokens, Extent)
            and isinstance(self.chars, Extent)
            and isinstance(self.errata, bytes)
            and (self.fidelity is None or isinstance(self.fidelity, Fidelity)),
            f"{type(self).__name__} takes Symbols, two Extents, bytes and a Fidelity or None.",
        )
        require(len(self.tokens) > 0, "A span covers no token: leave it out of the document.")
        require(
            len(self.tokens) <= MAX_TOKENS,
            f"A span covers {len(self.tokens):,} tokens, at most {MAX_TOKENS:,}: cut the text.",
        )
        if self.ends is not None:
            self._check_ends(self.ends)
        require(isinstance(self.literals, tuple), "literals must be a tuple of LiteralText.")
        if self.literals:
            self._check_literals()

    def _check_ends(self, ends: tuple[int, ...]) -> None:
        require(
            isinstance(ends, tuple)
            and len(ends) == len(self.symbols) > 0
            and all(type(end) is int for end in ends)
            and all(a < b for a, b in zip((0, *ends), ends, strict=False))
            and ends[-1] == len(self.tokens),
            f"the ends of {len(self.symbols)} segments of {len(self.tokens)} tokens must be as "
            "many increasing integers, the last the number of tokens.",
        )

    def _check_literals(self) -> None:
        token = char = 0
        for literal in self.literals:
            require(isinstance(literal, LiteralText), "literals must be LiteralText.")
            require(
                literal.tokens.start >= token and literal.char >= char,
                "literals must follow one another.",
            )
            token, char = literal.tokens.end, literal.char + len(literal.text)
        require(
            token <= len(self.tokens) and char <= len(self.chars),
            f"literals end at token {token} and character {char}, their span of "
            f"{len(self.tokens)} tokens has {len(self.chars)} characters.",
        )
        if self.n_literal_tokens == len(self.tokens):
            whole = len(self.literals) == 1 and len(self.literals[0].text) == len(self.chars)
            require(
                whole and not len(self.symbols) and not self.errata,
                "a span that is one literal has its whole text, no symbols and no errata.",
            )
        require(
            not len(self.symbols) or self.ends is not None,
            "symbols between literals need the ends of their segments.",
        )

    @property
    def is_literal(self) -> bool:
        """Whether the whole span is text."""
        return self.n_literal_tokens == len(self.tokens)

    @property
    def n_literal_tokens(self) -> int:
        """Tokens kept as text."""
        return sum(len(literal.tokens) for literal in self.literals)

    @property
    def n_positions(self) -> int:
        """Positions that a reader spends on the span: symbols, and tokens kept as text."""
        return len(self.symbols) + self.n_literal_tokens

    @property
    def parts(self) -> tuple[str | Symbols, ...]:
        """Symbols and literals in the order of the source; a symbol stands where it ends."""
        if not self.literals:
            return (self.symbols,) if len(self.symbols) else ()
        parts: list[str | Symbols] = []
        at = 0
        for literal in self.literals:
            before = bisect_right(self.ends or (), literal.tokens.end)
            parts += [self.symbols[at:before], literal.text]
            at = max(at, before)
        parts.append(self.symbols[at:])
        return tuple(part for part in parts if len(part))

    @property
    def bits(self) -> int:
        """What the span stores for a reader: codes, places of segments, literals; no errata."""
        placed = 0 if self.ends is None else placement_bits(len(self.tokens), len(self.ends))
        return self.symbols.bits + placed + sum(literal.bits for literal in self.literals)


def span_to_dict(span: ZSpan) -> dict[str, Any]:
    """JSON-ready form of a span."""
    measured = span.fidelity
    literals = [
        [each.tokens.start, each.tokens.end, each.char, each.text] for each in span.literals
    ]
    return {
        **({"literals": literals} if literals else {}),
        "tokens": [span.tokens.start, span.tokens.end],
        "chars": [span.chars.start, span.chars.end],
        "codes": [list(code) for code in span.symbols.codes],
        "ends": None if span.ends is None else list(span.ends),
        "errata": base64.b64encode(span.errata).decode("ascii"),
        "fidelity": None
        if measured is None
        else {
            "token_accuracy": measured.token_accuracy,
            "bits_missing": measured.bits_missing,
            "lost": list(measured.lost),
        },
    }


def span_from_dict(item: Mapping[str, Any], *, tag: str, size: int) -> ZSpan:
    """The inverse of `span_to_dict`."""
    measured, ends = item["fidelity"], item["ends"]
    unknown = set(item) - _KEYS
    if unknown:
        raise ValueError(f"unexpected keys {sorted(unknown)} of a span")
    return ZSpan(
        symbols=Symbols(tuple(map(tuple, item["codes"])), size, tag),
        tokens=Extent(*item["tokens"]),
        chars=Extent(*item["chars"]),
        errata=base64.b64decode(item["errata"], validate=True),
        fidelity=None
        if measured is None
        else Fidelity(**{**measured, "lost": tuple(measured["lost"])}),
        ends=None if ends is None else tuple(ends),
        literals=tuple(
            LiteralText(Extent(start, end), char, text)
            for start, end, char, text in item.get("literals", ())
        ),
    )


def write_span(out: ByteWriter, span: ZSpan, *, with_literals: bool) -> None:
    """Append the packed form of a span; literals have a place in the newer schema only."""
    for value in (len(span.tokens), len(span.chars), len(span.symbols)):
        out.varint(value)
    out.blob(span.symbols.to_bytes())
    out.varint(0 if span.ends is None else 1)
    if span.ends is not None:
        out.blob(pack_ends(span.ends))
    out.blob(span.errata)
    out.varint(0 if span.fidelity is None else 1)
    if span.fidelity is not None:
        out.float64(span.fidelity.token_accuracy)
        out.float64(span.fidelity.bits_missing)
        out.varint(len(span.fidelity.lost))
        for item in span.fidelity.lost:
            out.blob(item.encode("utf-8"))
    if with_literals:
        out.varint(len(span.literals))
        token = char = 0
        for literal in span.literals:
            out.varint(literal.tokens.start - token)
            out.varint(len(literal.tokens))
            out.varint(literal.char - char)
            out.blob(literal.text.encode("utf-8"))
            token, char = literal.tokens.end, literal.char + len(literal.text)


def read_span(
    source: ByteReader,
    previous: ZSpan | None,
    *,
    depth: int,
    size: int,
    tag: str,
    with_literals: bool,
) -> ZSpan:
    """The inverse of `write_span`, behind the span before it."""
    token = previous.tokens.end if previous else 0
    char = previous.chars.end if previous else 0
    n_tokens, n_chars, n_symbols = (source.varint() for _ in range(3))
    packed = source.blob()
    ends = None
    if source.varint():
        ends = unpack_ends(source.blob(), n_tokens=n_tokens, n_segments=n_symbols)
    errata = source.blob()
    symbols = Symbols.from_bytes(packed, n_symbols=n_symbols, depth=depth, size=size, codec=tag)
    measured = None
    if source.varint():
        accuracy, bits = source.float64(), source.float64()
        lost = tuple(source.blob().decode("utf-8") for _ in range(source.varint()))
        measured = Fidelity(accuracy, bits, lost)
    tokens, chars = Extent(token, token + n_tokens), Extent(char, char + n_chars)
    literals = tuple(_read_literals(source)) if with_literals else ()
    return ZSpan(symbols, tokens, chars, errata, measured, ends, literals)


def _read_literals(source: ByteReader) -> Iterator[LiteralText]:
    token = char = 0
    for _ in range(source.varint()):
        start = token + source.varint()
        token = start + source.varint()
        char += source.varint()
        literal = LiteralText(Extent(start, token), char, source.blob().decode("utf-8"))
        char += len(literal.text)
        yield literal
