r"""Symbols, how they are written in text, and how user text is kept from spelling them.

The written form of one symbol of depth 2 is ``[|z3f9a:0C7V|]``: four hex digits of the codec's
digest, then the codes, each in fixed-width base 32 (Crockford's alphabet; two characters up to
size 1,024, three up to 32,768, four beyond). It is ASCII without ``<>&{}"'\`` and symbols are
joined by one space, so it survives templates, JSON, XML chat buffers, `repr` and text splitters.
The mark inside is a colon because sentence splitters cut long runs at any ``.``, ``,`` or ``;``.

Floor 0, standard library only. This module knows what symbols look like, never what they mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from typing import Final, Literal

from zcontext.errors import (
    CodecMismatchError,
    ConfigError,
    SymbolCollisionError,
    UnknownSymbolError,
    VocabularyError,
)
from zcontext.symbols import MAX_DEPTH, Symbols, join

__all__ = ["CollisionPolicy", "Symbols", "ZVocabulary", "has_symbols", "join", "utf8_bytes"]

CollisionPolicy = Literal["refuse", "escape", "drop"]

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_SYMBOL = re.compile(rf"\[\|z([0-9a-f]{{4}}):([{_ALPHABET}]{{2,}})\|\]")
# What is left of a symbol after truncation, a cut in the middle, or a change of case. Either half
# of a symbol cut in two is caught by one of the four, so no two texts join into a symbol unseen.
# Code such as Haskell's [|x:xs|] passes: halves without their whole tag must follow a space.
_FRAGMENT = re.compile(
    r"\[\|z[0-9a-f]{4}:[0-9a-z]*(?:\|\])?"
    r"|[0-9a-f]{4}:[0-9a-z]+\|\]"
    r"|(?<!\S)[0-9a-f]{0,3}:[0-9a-z]{2,}\|\]"
    r"|\[\|z[0-9a-f]{0,4}\Z",
    re.ASCII | re.IGNORECASE,
)


def utf8_bytes(text: str) -> bytes:
    """Text as UTF-8.

    Args:
        text: Any text.

    Returns:
        Its UTF-8 bytes.

    Raises:
        VocabularyError: if it is not str, or holds a lone surrogate, which no encoding can carry.
    """
    if not isinstance(text, str):
        raise VocabularyError(
            f"text is a {type(text).__name__}, not str: decode bytes first, as "
            "data.decode('utf-8', errors='replace')."
        )
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise VocabularyError(
            f"The text is not valid Unicode: lone surrogate U+{ord(text[error.start]):04X} at "
            f"character {error.start}. It usually comes from bytes read with surrogateescape or "
            "from cut-up JSON: read the file with errors='replace', or repair it with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        ) from None


def has_symbols(text: str) -> bool:
    """Whether the text holds a well-formed symbol of any codec."""
    return "[|z" in text and _SYMBOL.search(text) is not None


def _width(size: int) -> int:
    """Characters of a code."""
    return 2 if size <= 32**2 else 3 if size <= 32**3 else 4


@lru_cache(maxsize=8)
def _digits(size: int) -> tuple[list[str], dict[str, int]]:
    """Spelling of every code of a codec, and back."""
    spelled = ["".join(digits) for digits in islice(product(_ALPHABET, repeat=_width(size)), size)]
    return spelled, {text: code for code, text in enumerate(spelled)}


@dataclass(frozen=True, slots=True)
class ZVocabulary:
    """The symbols of one codec: writes them into text and finds them there.

    Args:
        codec: Digest of the codec, 64 lower-case hex digits.
        depth: Most codes per symbol.
        size: Codes per stage.

    Raises:
        VocabularyError: if one of them cannot exist.
    """

    codec: str
    depth: int
    size: int

    def __post_init__(self) -> None:
        if not isinstance(self.codec, str) or not _DIGEST.match(self.codec):
            raise VocabularyError(
                f"codec={self.codec!r}: give the codec's digest, 64 lower-case hex digits."
            )
        if type(self.depth) is not int or not 1 <= self.depth <= MAX_DEPTH:
            raise VocabularyError(f"depth={self.depth!r}: give an integer in 1..{MAX_DEPTH}.")
        Symbols((), self.size, self.tag)

    @property
    def tag(self) -> str:
        """The four hex digits that every written symbol carries."""
        return self.codec[:4]

    def render(self, symbols: Symbols) -> str:
        """The written form; '' for no symbols.

        Args:
            symbols: What to write.

        Returns:
            ASCII text, symbols joined by single spaces.

        Raises:
            CodecMismatchError: if the symbols come from another codec.
            UnknownSymbolError: if they are deeper than this codec's.
        """
        self.check(symbols)
        spell = _digits(self.size)[0].__getitem__
        opening = f"[|z{self.tag}:"
        return " ".join([f"{opening}{''.join(map(spell, code))}|]" for code in symbols.codes])

    def check(self, symbols: Symbols) -> None:
        """Refuse symbols that this codec did not write.

        Args:
            symbols: What arrived.

        Raises:
            CodecMismatchError: if tag or size differ.
            UnknownSymbolError: if they are deeper than this codec's.
        """
        if (symbols.codec, symbols.size) != (self.tag, self.size):
            raise CodecMismatchError(
                f"Symbols of codec {symbols.codec} (size {symbols.size}) were handed to codec "
                f"{self.tag} (size {self.size}): load the bundle that wrote them, or compress the "
                "text again."
            )
        if symbols.depth > self.depth:
            raise UnknownSymbolError(
                f"Symbols of depth {symbols.depth} were handed to a codec of depth {self.depth}: "
                f"cut them with coarser({self.depth})."
            )

    def parse(self, text: str) -> Symbols:
        """Symbols from text that holds nothing else but whitespace.

        Args:
            text: What `render` returned, or pieces of it.

        Returns:
            One run.

        Raises:
            CodecMismatchError: if a symbol was written by another codec.
            UnknownSymbolError: if anything else stands in the text.
            VocabularyError: if the symbols are of different depths.
        """
        runs: list[Symbols] = []
        for part in self.split(text):
            if isinstance(part, Symbols):
                runs.append(part)
            elif part.strip():
                raise UnknownSymbolError(
                    f"{_shorten(part.strip())!r} is not a symbol: parse() reads symbols and "
                    "whitespace only; use split() for text mixed with symbols."
                )
        return join(runs) if runs else Symbols((), self.size, self.tag)

    def split(self, text: str) -> list[str | Symbols]:
        """Mixed text as parts, in order; no part is empty.

        Adjacent symbols of equal depth become one part and the whitespace between adjacent
        symbols is dropped. Whitespace between symbols and text stays with the text.

        Args:
            text: Text, symbols, or both.

        Returns:
            Its parts.

        Raises:
            CodecMismatchError: if a symbol was written by another codec.
            UnknownSymbolError: if a symbol is malformed, cut or names a code this codec lacks.
        """
        if "[|" not in text and "|]" not in text:
            return [text] if text else []
        parts: list[str | Symbols] = []
        run: list[tuple[int, ...]] = []
        at = 0
        for match in _SYMBOL.finditer(text):
            code = self._read(match)
            start, end = match.span()
            gap = text[at:start]
            blank = not gap or gap.isspace()
            if run and (not blank or len(run[0]) != len(code)):
                parts.append(Symbols(tuple(run), self.size, self.tag))
                run = []
            if gap and not (blank and at > 0):
                parts.append(self._plain(gap, at))
            run.append(code)
            at = end
        if run:
            parts.append(Symbols(tuple(run), self.size, self.tag))
        if at < len(text):
            parts.append(self._plain(text[at:], at))
        return parts

    def guard(self, text: str, *, on_symbols: CollisionPolicy = "refuse") -> str:
        """User text that cannot be taken for symbols, of this or any codec.

        Args:
            text: Text of unknown origin.
            on_symbols: "refuse" raises; "escape" keeps the text readable but unparsable
                (``[ |z3f9a:0CW| ]``); "drop" removes what looks like a symbol.

        Returns:
            The text as it was, or changed as asked.

        Raises:
            ConfigError: if `on_symbols` is none of these.
            SymbolCollisionError: if the text spells symbols and `on_symbols` is "refuse".
        """
        if on_symbols not in ("refuse", "escape", "drop"):
            raise ConfigError(
                f"on_symbols={on_symbols!r}: give 'refuse', 'escape' or 'drop'.",
                field="on_symbols",
                value=on_symbols,
            )
        found = _FRAGMENT.search(text) if "[|" in text or "|]" in text else None
        if found is None:
            return text
        if on_symbols == "refuse":
            raise SymbolCollisionError(
                f"The text spells a symbol at character {found.start()}: "
                f"{_shorten(found.group())!r}. If it is ordinary text, pass on_symbols='escape' "
                "(kept, readable) or 'drop' (removed); if symbols are meant, pass them as Symbols."
            )
        if on_symbols == "drop":
            text = _FRAGMENT.sub(" ", text)
            if _FRAGMENT.search(text) is None:
                return text
            # Fragments overlapped, and what is left of them makes a new one: escape the rest.
        # All brackets at once: every fragment needs one, so none is left whatever overlaps.
        return text.replace("[|", "[ |").replace("|]", "| ]")

    def _read(self, match: re.Match[str]) -> tuple[int, ...]:
        tag, payload = match.groups()
        if tag != self.tag:
            raise CodecMismatchError(
                f"{_shorten(match.group())!r} at character {match.start()} was written by codec "
                f"{tag}, this one is {self.tag}: load the bundle that wrote it, or compress the "
                "text again."
            )
        values = _digits(self.size)[1]
        width = _width(self.size)
        if len(payload) % width == 0 and len(payload) <= width * self.depth:
            spelled = [payload[k : k + width] for k in range(0, len(payload), width)]
            if all(map(values.__contains__, spelled)):
                return tuple(map(values.__getitem__, spelled))
        raise UnknownSymbolError(
            f"{_shorten(match.group())!r} at character {match.start()} is not a symbol of codec "
            f"{self.tag}: expected 1..{self.depth} codes of {width} characters below size "
            f"{self.size}. The text was altered after it was written; compress it again."
        )

    def _plain(self, text: str, offset: int) -> str:
        found = _FRAGMENT.search(text) if "[|" in text or "|]" in text else None
        if found is None:
            return text
        raise UnknownSymbolError(
            f"{_shorten(found.group())!r} at character {offset + found.start()} looks like a cut "
            "or altered symbol. If a splitter cut it, let it split at spaces or count tokens with "
            "our counter; if it is user text, pass it through guard(text, on_symbols='escape')."
        )


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
