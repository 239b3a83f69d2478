"""Pruning: a text cut down to the sentences, phrases and words that say most, for any reader.

The second best: for a reader that knows no symbols. Whole sentences are kept first, those with most
surprisal per token; the room that is left goes to phrases of the next ones, then to words. What is
kept is verbatim and in order, and nothing is cut inside a number, a name, an address, code or JSON.
No piece of a sentence stands alone with fewer than three words, unless nothing longer fits.

Floor 0, standard library only. What it does not know: models. It is told what every token is worth.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

from zcontext.errors import SpanError
from zcontext.fragile import Ranges, fragile_places, losable_places, merged, protected_places
from zcontext.windows import Extent

__all__ = ["PrunedText", "prune_text", "sentence_places"]

_SENTENCE_END = re.compile(
    r"[.!?\u2026][\"'\u2019\u201d)\]]*\s+|[\u3002\uff01\uff1f][\u300d\u300f\u201d]*\s*|\n\s*"
)
_PHRASE_END = re.compile(r"[,;:\u2013\u2014\u3001\uff0c)\]]\s+|\s+(?=[(\[])")
_WORD_END = re.compile(r"\s+|(?<=[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_PART_OF_WORD = re.compile(r"\w+")
_LEAST_ROOM: Final = 8
"""Tokens of room that are worth a piece of a sentence."""
_LEAST_WORDS: Final = 3
"""Words of a piece of a sentence that may stand alone: with fewer it would be a stray one."""
_LONGEST_WORD: Final = 64
"""Characters in front of a dot that are looked at: a piece may grow long where no dot ends it."""
_WHOLE: Final = ("code", "json", "urls")


@dataclass(frozen=True, slots=True)
class PrunedText:
    """A text cut down, and what that cost.

    Args:
        text: What is left.
        n_tokens: Base tokens of the source.
        n_kept: Base tokens of what is left.
        bits: Surprisal of the source.
        bits_kept: Of that, what the kept tokens had.
        lost: Numbers, names, addresses and code of the source that are nowhere in what is left.
        kept: Characters of the source that are left, in order.

    Raises:
        SpanError: if more is left than there was.
    """

    text: str
    n_tokens: int
    n_kept: int
    bits: float
    bits_kept: float
    lost: tuple[str, ...] = ()
    kept: tuple[Extent, ...] = ()

    def __post_init__(self) -> None:
        if not (0 <= self.n_kept <= self.n_tokens and 0 <= self.bits_kept <= self.bits + 1e-6):
            raise SpanError(
                f"{self.n_kept} tokens and {self.bits_kept:.1f} bits are left of {self.n_tokens} "
                f"and {self.bits:.1f}: pruning keeps at most what there was."
            )

    @property
    def share(self) -> float:
        """Share of the surprisal that is left; 1 for the empty text."""
        return min(1.0, self.bits_kept / self.bits) if self.bits else 1.0

    @property
    def ratio(self) -> float:
        """Source tokens per token left; 1 for the empty text."""
        if self.n_kept:
            return self.n_tokens / self.n_kept
        return float("inf") if self.n_tokens else 1.0


@dataclass(frozen=True, slots=True)
class _Unit:
    """A stretch of text that is kept or dropped as one."""

    begin: int
    end: int
    n_tokens: int
    bits: float

    @property
    def density(self) -> float:
        return self.bits / max(1, self.n_tokens)


class _Scale:
    """What stretches of one text hold: tokens and surprisal, from sums over its tokens."""

    def __init__(self, starts: Sequence[int], bits: Sequence[float]) -> None:
        self._starts = starts
        self._sums = [0.0, *accumulate(max(0.0, value) for value in bits)]

    def unit(self, begin: int, end: int) -> _Unit:
        """The stretch from one character to another."""
        first, last = bisect_left(self._starts, begin), bisect_left(self._starts, end)
        return _Unit(begin, end, last - first, self._sums[last] - self._sums[first])

    @property
    def bits(self) -> float:
        return self._sums[-1]


def prune_text(
    text: str,
    *,
    starts: Sequence[int],
    bits: Sequence[float],
    budget: int,
    count: Callable[[str], int],
    protect: Sequence[str] = (),
) -> PrunedText:
    """A text cut down to a number of tokens.

    Args:
        text: The source.
        starts: Character at which each of its tokens starts, never falling.
        bits: Surprisal of each token.
        budget: Most tokens of what is left.
        count: Tokens of a text.
        protect: Kinds and patterns that are kept before anything else, as long as there is room.

    Returns:
        What is left, never more than the budget.
    """
    scale = _Scale(starts, bits)
    if len(starts) <= budget:
        n_kept = count(text)
        if n_kept <= budget:
            n_tokens = max(len(starts), n_kept)
            everything = (Extent(0, len(text)),) if text else ()
            return PrunedText(text, n_tokens, n_kept, scale.bits, scale.bits, (), everything)
    places = fragile_places(text)
    atoms = merged([*_joined(places, text), *_trimmed(text, protected_places(text, _WHOLE))])
    protected = _grown(text, _trimmed(text, protected_places(text, protect)), atoms)
    chosen = _Chooser(text, scale, merged([*atoms, *protected]), budget).choose(protected)
    while True:
        kept = merged((unit.begin, unit.end) for unit in chosen)
        left = _assembled(text, kept)
        n_kept = count(left)
        if n_kept <= min(budget, len(starts)) or not chosen:
            break
        chosen = chosen[:-1]  # joined anew, pieces can take a token more than they did
    return PrunedText(
        text=left,
        n_tokens=len(starts),
        n_kept=n_kept,
        bits=scale.bits,
        bits_kept=sum(scale.unit(begin, end).bits for begin, end in kept),
        lost=_lost(text, losable_places(text), kept),
        kept=tuple(Extent(begin, end) for begin, end in kept),
    )


def _trimmed(text: str, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Places without the space that may stand in front."""
    return [(begin + (text[begin] == " "), end) for begin, end in places]


def _joined(places: Sequence[tuple[int, int]], text: str) -> Iterator[tuple[int, int]]:
    """Fragile places, those with a single space between them as one: `Karl XII`, `3.5 MB`."""
    start: int | None = None
    for (begin, end), after in pairwise([*places, (len(text) + 9, len(text) + 9)]):
        start = begin if start is None else start
        if after[0] - end != 1 or text[end] != " ":
            yield start, end
            start = None


def sentence_places(text: str) -> list[tuple[int, int]]:
    """The sentences of a text, by form.

    Args:
        text: Any text.

    Returns:
        Character ranges that cover it in order, each with the white space behind it.
    """
    return list(_pieces(text, 0, len(text), _SENTENCE_END, Ranges(())))


def _grown(
    text: str, places: Sequence[tuple[int, int]], atoms: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Places that a pattern may have put anywhere, grown to whole words and atoms."""
    found = Ranges(places)
    words = [match.span() for match in _PART_OF_WORD.finditer(text) if found.meets(*match.span())]
    whole = Ranges(merged([*places, *words]))
    return merged([*places, *words, *(atom for atom in atoms if whole.meets(*atom))])


def _pieces(
    text: str, begin: int, end: int, pattern: re.Pattern[str], atoms: Ranges
) -> Iterator[tuple[int, int]]:
    """A stretch cut behind each match of a pattern that lies inside no atom."""
    at = begin
    for match in pattern.finditer(text, begin, end):
        cut = match.end()
        if at < cut < end and not (atoms.meets(cut - 1, cut) and atoms.meets(cut, cut + 1)):
            if pattern is _SENTENCE_END and _abbreviates(text, at, match):
                continue
            yield at, cut
            at = cut
    if at < end:
        yield at, end


def _abbreviates(text: str, begin: int, match: re.Match[str]) -> bool:
    """Whether a piece that a dot ends is no sentence by its form: "J. R.", "e.g.", "12.", "Dr."."""
    closed = match.group().rstrip()
    if "\n" in match.group() or not closed.endswith("."):
        return False
    end = match.start() + len(closed)
    start = max(begin, end - _LONGEST_WORD)
    words = text[start:end].split()
    last = words[-1].strip("\"'([")[:-1]
    alone = len(words) == 1 and start == begin
    return len(last) == 1 or "." in last.rstrip(".") or (alone and len(last) <= 4)


class _Chooser:
    """Fills a budget: protected places, sentences, phrases, runs of words; densest first."""

    def __init__(
        self, text: str, scale: _Scale, atoms: Sequence[tuple[int, int]], budget: int
    ) -> None:
        self._text, self._scale, self._whole = text, scale, Ranges(atoms)
        self._room = budget
        self._chosen: list[_Unit] = []
        self._edges: set[int] = set()

    def choose(self, first: Sequence[tuple[int, int]]) -> list[_Unit]:
        """What to keep, in the order in which it was chosen."""
        self._take([self._scale.unit(begin, end) for begin, end in first])
        taken = sorted((unit.begin, unit.end) for unit in self._chosen)
        sentences = [
            self._scale.unit(*piece)
            for gap in _gaps(len(self._text), taken)
            for piece in _pieces(self._text, *gap, _SENTENCE_END, self._whole)
        ]
        rest = self._take(sentences, if_=lambda unit: self._n_words(unit) > 0)
        # One sentence after the other, so that what is left of each has something to stand by.
        for sentence in rest if self._room >= _LEAST_ROOM or not self._chosen else ():
            phrases = self._cut(sentence, _PHRASE_END)
            rest = self._take(phrases, if_=self._stands)
            rest = self._take(rest, if_=self._stands)  # beside those that stand now
            for phrase in rest:
                self._take([run for run in (self._run(phrase),) if run], if_=self._stands)
            if self._room < _LEAST_ROOM:
                break
        return self._chosen

    def _take(
        self, units: Sequence[_Unit], *, if_: Callable[[_Unit], bool] = lambda unit: True
    ) -> list[_Unit]:
        """Take units while there is room, densest first; those left over."""
        rest = []
        for unit in sorted(units, key=lambda unit: (-unit.density, unit.begin)):
            if 0 < unit.n_tokens <= self._room and if_(unit):
                self._chosen.append(unit)
                self._edges |= {unit.begin, unit.end}
                self._room -= unit.n_tokens
            elif unit.n_tokens:
                rest.append(unit)
        return rest

    def _cut(self, unit: _Unit, pattern: re.Pattern[str]) -> list[_Unit]:
        pieces = _pieces(self._text, unit.begin, unit.end, pattern, self._whole)
        return [self._scale.unit(*piece) for piece in pieces]

    def _stands(self, unit: _Unit) -> bool:
        """Whether a piece of a sentence is no stray one: long enough, or beside what is kept."""
        beside = unit.begin in self._edges or unit.end in self._edges
        return beside or not self._chosen or self._n_words(unit) >= _LEAST_WORDS

    def _n_words(self, unit: _Unit) -> int:
        words = self._cut(unit, _WORD_END)
        return sum(any(map(str.isalnum, self._text[word.begin : word.end])) for word in words)

    def _run(self, phrase: _Unit) -> _Unit | None:
        """The words of a phrase, one after the other, that have most surprisal within the room."""
        words = self._cut(phrase, _WORD_END)
        best: _Unit | None = None
        first = 0
        for last, word in enumerate(words):
            run = self._scale.unit(words[first].begin, word.end)
            while first < last and run.n_tokens > self._room:
                first += 1
                run = self._scale.unit(words[first].begin, word.end)
            if run.n_tokens <= self._room and (best is None or run.bits > best.bits):
                best = run
        return best


def _gaps(n_chars: int, taken: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    at = 0
    for begin, end in taken:
        if at < begin:
            yield at, begin
        at = end
    if at < n_chars:
        yield at, n_chars


def _assembled(text: str, kept: Sequence[tuple[int, int]]) -> str:
    """The kept stretches, parted by a space where nothing else parts them."""
    pieces: list[str] = []
    for begin, end in kept:
        piece = text[begin:end]
        if pieces and not pieces[-1][-1].isspace() and not piece[0].isspace():
            pieces.append(" ")
        pieces.append(piece)
    return "".join(pieces).strip()


def _lost(
    text: str, places: Sequence[tuple[int, int]], kept: Sequence[tuple[int, int]]
) -> tuple[str, ...]:
    left = Ranges(kept)
    there = {text[begin:end] for begin, end in places if left.meets(begin, end)}
    return tuple(dict.fromkeys(t for b, e in places if (t := text[b:e]) not in there))
