"""What a stored document still says: the tokens that its codes name, and where they stood.

In a codec of names every code is a token or a run of them. So the integers of a document, without
the text that they were written from and without a pass of the model, are a shorthand of it: its
*gloss*. What no code names is missing there, and a token that has no name may be told as others.
What this module does not know: questions, and how a gloss is written again.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zcontext.errors import ConfigError
from zcontext.lexicon import Lexicon
from zcontext.model import ZLanguageModel
from zcontext.spans import LiteralText, ZDocument, ZSpan
from zcontext.symbols import Symbols
from zcontext.tokenization import decoded, text_tokenizer
from zcontext.windows import Extent

_Piece = tuple[tuple[int, ...] | LiteralText, Extent]


@dataclass(frozen=True, slots=True)
class SpanGloss:
    """The gloss of one span.

    Attributes:
        span: The span, as it is stored.
        ids: Tokens that its codes name, and those of its literals, in the order of the text.
        literals: Which of them are literals, in order.
        places: Where each of them ends in the source, in tokens from the span's start, never
            falling. Of a segment it is only known which tokens are named: they are spread evenly.
    """

    span: ZSpan
    ids: tuple[int, ...]
    literals: tuple[Extent, ...]
    places: tuple[int, ...]

    @property
    def n_named(self) -> int:
        """Tokens that codes name."""
        return len(self.ids) - sum(map(len, self.literals))

    def rewritten(self, codes: Sequence[tuple[int, ...]], ends: Sequence[int]) -> ZSpan:
        """The span with other symbols, which stand for the same stretch of the source.

        Errata and measured fidelity are left out: they are those of the symbols that were there.

        Args:
            codes: Of the new symbols, no more than the span has tokens.
            ends: Where the segment of each ends among `ids` (exclusive), rising.

        Returns:
            The span.
        """
        old, n = self.span, len(self.span.tokens)
        there = _rising([self.places[end - 1] for end in ends], n)
        symbols = Symbols(tuple(codes), old.symbols.size, old.symbols.codec)
        return dataclasses.replace(old, symbols=symbols, ends=there, errata=b"", fidelity=None)

    @property
    def kept(self) -> ZSpan:
        """The span as it stays where other spans of its document are written again."""
        if self.span.is_literal:
            return self.span
        # Errata correct what is read behind the symbols before, which are no longer there.
        return dataclasses.replace(self.span, errata=b"", fidelity=None)


def gloss_of(model: ZLanguageModel, document: ZDocument) -> tuple[SpanGloss, ...]:
    """What the codes of a document name.

    Args:
        model: Its codec.
        document: Any document of this codec.

    Returns:
        One gloss for each span.

    Raises:
        CodecMismatchError: Another codec wrote it.
        ConfigError: The codes of this codec are no names.
    """  # noqa: DOC502 - raised by the check
    document.check_codec(model.codec)
    model.vocabulary.check(document.symbols)
    lexicon = model.codebook.lexicon
    if lexicon is None:
        raise ConfigError(
            "the codes of this codec name no tokens, so its integers alone do not tell the text; "
            "give the text, or use a bundle whose codec is named, as the one that ships",
            field="named",
            value=False,
        )
    return tuple(_gloss(model, lexicon, span) for span in document.spans)


def gloss_text(model: ZLanguageModel, document: ZDocument) -> str:
    """The gloss of a document as text, for people: no pass of the model is needed for it.

    Args:
        model: Its codec.
        document: Any document of this codec.

    Returns:
        The tokens that are named, one behind the other, and literals as they are.

    Raises:
        CodecMismatchError: Another codec wrote it.
        ConfigError: The codes of this codec are no names.
    """  # noqa: DOC502 - raised by the steps
    parts: list[str] = []
    for gloss in gloss_of(model, document):
        at = 0
        for extent, literal in zip(gloss.literals, gloss.span.literals, strict=True):
            parts += [decoded(model.tokenizer, gloss.ids[at : extent.start]), literal.text]
            at = extent.end
        parts.append(decoded(model.tokenizer, gloss.ids[at:]))
    return "".join(parts)


def _gloss(model: ZLanguageModel, lexicon: Lexicon, span: ZSpan) -> SpanGloss:
    pieces = list(_pieces(span))
    named = [
        text_tokenizer(model.tokenizer).ids(piece.text)
        if isinstance(piece, LiteralText)
        else lexicon.tokens_of([piece])
        for piece, _ in pieces
    ]
    _cut_excess(named, pieces, n_tokens=len(span.tokens) - span.n_literal_tokens)
    ids: list[int] = []
    literals: list[Extent] = []
    places: list[int] = []
    for (piece, extent), tokens in zip(pieces, named, strict=True):
        count = len(tokens)
        if isinstance(piece, LiteralText):
            literals.append(Extent(len(ids), len(ids) + count))
        ids += tokens
        places += [extent.start + (k + 1) * len(extent) // count for k in range(count)]
    return SpanGloss(span, tuple(ids), tuple(literals), tuple(places))


def _pieces(span: ZSpan) -> Iterator[_Piece]:
    """Codes of each symbol, and literals, as a reader has them, with their places in the source."""
    n, k = len(span.tokens), len(span.symbols)
    ends = span.ends or tuple((at + 1) * n // k for at in range(k))
    at = place = 0
    for literal in span.literals:
        before = max(at, bisect_right(ends, literal.tokens.end))
        for symbol in range(at, before):
            end = max(place, min(ends[symbol], literal.tokens.start))
            yield span.symbols.codes[symbol], Extent(place, end)
            place = end
        yield literal, Extent(max(place, literal.tokens.start), literal.tokens.end)
        at, place = before, literal.tokens.end
    for symbol in range(at, k):
        end = max(place, ends[symbol])
        yield span.symbols.codes[symbol], Extent(place, end)
        place = end


def _cut_excess(named: Sequence[list[int]], pieces: Sequence[_Piece], *, n_tokens: int) -> None:
    """Leave out tokens that symbols name beyond those that the source has.

    A token without a name is told as a sum of others. Symbols end at tokens of the source, so
    there cannot be more of them than tokens, not even if each token that is named gets its own.
    """
    symbols = [at for at, (piece, _) in enumerate(pieces) if not isinstance(piece, LiteralText)]
    over = sum(len(named[at]) for at in symbols) - n_tokens
    for at in reversed(symbols):
        excess = min(over, len(named[at]) - len(pieces[at][1]))
        if excess > 0:
            del named[at][-excess:]
            over -= excess


def _rising(places: Sequence[int], n: int) -> tuple[int, ...]:
    """Places as ends of segments: each beyond the one before, the last at `n`."""
    found: list[int] = []
    for left, place in zip(reversed(range(len(places))), places, strict=True):
        found.append(min(max(place, found[-1] + 1 if found else 1), n - left))
    return (*found[:-1], n)
