"""What a text holds that must not come back altered: numbers, names, addresses, code, tables, JSON.

Three uses. `fragile_places` are the small things that a reader would miss (pruning never cuts
through one). `losable_places` are these and pieces of code: what a record of losses names.
`protected_places` are what a user asks to be
kept as text between symbols: kinds by name, or patterns of his own.

Floor 0, standard library only. Everything is found by form alone: no language is known here, and no
tokens. Reading takes time in proportion to the text, whatever the text is.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from zcontext.errors import ConfigError

__all__ = [
    "KINDS",
    "PATTERN",
    "Ranges",
    "check_protect",
    "fragile_places",
    "losable_places",
    "merged",
    "protected_places",
    "whole_words",
]

Places = list[tuple[int, int]]

PATTERN: Final = "re:"
"""What a pattern starts with, where a kind might stand: `"re:ART-[0-9]+"`."""

# The looks behind keep both from being tried again at every character of a long word.
_ADDRESS = re.compile(
    r"https?://[^\s<>\"')\]]+|www\.[^\s<>\"')\]]+|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+\w"
)
_NUMBER = re.compile(r"(?<!\w)\w*\d(?:[\w.,:/%-]*\w)?%?")
_WORD = re.compile(r"[^\W\d_](?:[\w'\u2019-]*\w)?")
_SENTENCE_START = re.compile(r"(?:^|[.!?:\u2026\n])[\s\"'\u201c\u2018(\[]*\Z")
_LONGEST_CODE: Final = 200
_FENCE = re.compile(r"[ ]{0,3}(`{3,}|~{3,})")
_INLINE_CODE = re.compile(r"(?<!`)`[^`\n]{1,400}`(?!`)")
_DELIMITER_ROW = re.compile(r"[ ]{0,3}\|?[ ]*:?-+:?[ ]*(?:\|[ ]*:?-+:?[ ]*)*\|?[ ]*\Z")
_OPENING = re.compile(r"[{\[]")
_JSON_TOKEN = re.compile(
    r"[ \t\r\n]*(?:(?P<mark>[{}\[\],:])|(?P<string>\"(?:[^\"\\\x00-\x1f]|\\[^\r\n])*\")"
    r"|(?P<other>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null))"
)


def whole_words(words: str) -> re.Pattern[str]:
    """What finds some words in a text where they are no part of longer ones.

    Args:
        words: Taken letter by letter.

    Returns:
        The pattern.
    """
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)")


def fragile_places(text: str) -> Places:
    """Where a text holds what a reader would miss if it came back altered.

    Addresses, numbers, and names: capitalised words in the middle of a sentence, and those at the
    start of one that are also seen elsewhere or stand before another.

    Args:
        text: Any text.

    Returns:
        Character ranges, in order, none overlapping.
    """
    addresses = _addresses(text)
    taken = Ranges(addresses)
    numbers = [m.span() for m in _NUMBER.finditer(text) if not taken.meets(*m.span())]
    found = addresses + numbers
    return sorted(found + _names(text, Ranges(found)))


def losable_places(text: str) -> Places:
    """What a record of losses names one by one: fragile places, and code.

    Code is named span by span between backticks, and line by line in fenced blocks; what is longer
    than 200 characters in pieces.

    Args:
        text: Any text.

    Returns:
        Character ranges, in order; numbers and names inside code stand beside it.
    """
    found = set(fragile_places(text))
    for begin, end in _code(text):
        for start, stop in _lines(text[begin:end]):
            line = text[begin + start : begin + stop]
            if _FENCE.match(line) or not line.strip():
                continue
            at = begin + start + len(line) - len(line.lstrip())
            last = begin + start + len(line.rstrip())
            found |= {(k, min(k + _LONGEST_CODE, last)) for k in range(at, last, _LONGEST_CODE)}
    return sorted(found)


def _names(text: str, taken: Ranges) -> Places:
    opening: Places = []
    named: set[str] = set()
    names: Places = []
    for match in _WORD.finditer(text):
        begin, end = match.span()
        if not match.group()[0].isupper() or taken.meets(begin, end):
            continue
        if len(match.group()) > 1 and match.group().isupper():
            names.append((begin, end))
        elif _SENTENCE_START.search(text, max(0, begin - 8), begin):
            opening.append((begin, end))
        elif len(match.group()) > 1:
            names.append((begin, end))
            named.add(match.group())
    starts = {begin for begin, _ in names}
    return names + [(b, e) for b, e in opening if text[b:e] in named or e + 1 in starts]


def _addresses(text: str) -> Places:
    return [match.span() for match in _ADDRESS.finditer(text)]


def _numbers(text: str) -> Places:
    taken = Ranges(_addresses(text))
    return [m.span() for m in _NUMBER.finditer(text) if not taken.meets(*m.span())]


def _all_names(text: str) -> Places:
    return _names(text, Ranges(merged([*_addresses(text), *_numbers(text)])))


def _lines(text: str) -> Iterator[tuple[int, int]]:
    """Where lines start and end, each with its newline."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield start, end
        start = end


def _code(text: str) -> Places:
    """Fenced blocks, and spans between single backticks."""
    fenced: Places = []
    mark, begin = "", 0
    for start, end in _lines(text):
        fence = _FENCE.match(text, start, end)
        if not mark and fence:
            mark, begin = fence.group(1), start
        elif mark and fence and fence.group(1).startswith(mark):
            fenced.append((begin, end))
            mark = ""
    if mark:  # a fence that nothing closes runs to the end, as in Markdown
        fenced.append((begin, len(text)))
    taken = Ranges(fenced)
    inline = [m.span() for m in _INLINE_CODE.finditer(text) if not taken.meets(*m.span())]
    return sorted(fenced + inline)


def _tables(text: str) -> Places:
    """Markdown tables: a line with bars, a row of dashes below it, lines with bars after."""
    found: Places = []
    above: tuple[int, int] | None = None
    inside = False
    for start, end in _lines(text):
        line = text[start:end].rstrip("\r\n")
        if inside and "|" in line:
            found[-1] = (found[-1][0], end)
            continue
        inside = bool(above and "|" in line and "-" in line and _DELIMITER_ROW.match(line))
        if inside and above:
            found.append((above[0], end))
        above = (start, end) if "|" in line and not inside else None
    return found


def _json(text: str) -> Places:
    """Objects and arrays of JSON that hold a string or another container.

    One pass with a stack: what turns out not to be JSON is left behind, and what was whole inside
    it is kept.
    """
    found: Places = []
    opening = _OPENING.search(text)
    while opening:
        at, state = opening.start(), "value"
        stack: list[_Open] = []
        while token := _JSON_TOKEN.match(text, at):
            after = _next_state(token, state, stack)
            if after is None:
                break
            state, at = after, token.end()
            if token.group("mark") in ("}", "]"):
                closed = stack.pop()
                if closed.counts:
                    while found and found[-1][0] >= closed.begin:
                        found.pop()
                    found.append((closed.begin, at))
                if not stack:
                    break
        opening = _OPENING.search(text, at)
    return found


@dataclass(slots=True)
class _Open:
    """A container of JSON that is not closed yet, and whether it holds more than plain numbers."""

    begin: int
    bracket: str
    counts: bool = False


def _next_state(token: re.Match[str], state: str, stack: list[_Open]) -> str | None:
    """What may follow a token of JSON; None if it may not stand where it does."""
    mark = token.group("mark")
    value_fits = state in ("value", "value or end")
    if mark is None:
        is_string = token.group("string") is not None
        if stack and is_string:
            stack[-1].counts = True
        if is_string and state in ("key", "key or end"):
            return "colon"
        return "comma" if value_fits else None
    if mark in "{[":
        if stack:
            stack[-1].counts = True
        stack.append(_Open(token.start("mark"), mark))
        return (f"{'key' if mark == '{' else 'value'} or end") if value_fits else None
    if mark in "}]":
        fits = bool(stack) and stack[-1].bracket == ("{" if mark == "}" else "[")
        empty = "key or end" if mark == "}" else "value or end"
        return "comma" if fits and state in ("comma", empty) else None
    if mark == ",":
        in_object = bool(stack) and stack[-1].bracket == "{"
        return ("key" if in_object else "value") if state == "comma" else None
    return "value" if state == "colon" else None


_FINDERS: Final[dict[str, Callable[[str], Places]]] = {
    "numbers": _numbers,
    "names": _all_names,
    "urls": _addresses,
    "code": _code,
    "tables": _tables,
    "json": _json,
}
KINDS: Final = tuple(_FINDERS)
"""What can be protected by name."""


def check_protect(protect: object) -> None:
    """Refuse what names nothing to protect.

    Args:
        protect: As in `CompressSettings.protect`.

    Raises:
        ConfigError: It is not a tuple of kinds and patterns.
    """
    items: tuple[object, ...] = protect if isinstance(protect, tuple) else (None,)
    for item in items:
        known = isinstance(item, str) and (item in KINDS or item.startswith(PATTERN))
        reason = ""
        if known and str(item).startswith(PATTERN):
            try:
                _pattern(str(item))
            except (re.error, RecursionError, OverflowError) as error:
                known, reason = False, f": {error}"
        if not known:
            raise ConfigError(
                f"protect={protect!r}{reason}; give a tuple of {', '.join(KINDS)}, and patterns "
                f"such as '{PATTERN}ART-[0-9]+'",
                field="protect",
                value=protect,
            )


@lru_cache(maxsize=64)
def _pattern(item: str) -> re.Pattern[str]:
    return re.compile(item[len(PATTERN) :])


def protected_places(text: str, protect: Sequence[str]) -> Places:
    """Where a text holds what is to be kept as it is.

    The space in front of a place in the middle of a line belongs to it, as it does to the tokens
    of most bases. Places that touch or overlap are one; those that are blank are left out.

    Args:
        text: Any text.
        protect: Kinds and patterns, checked.

    Returns:
        Character ranges, in order, none touching another.
    """
    found: Places = []
    for item in protect:
        if item in _FINDERS:
            found += _FINDERS[item](text)
        else:
            found += [match.span() for match in _pattern(item).finditer(text)]
    opened = [
        (begin - (begin > 1 and text[begin - 1] == " " and not text[begin - 2].isspace()), end)
        for begin, end in found
    ]
    return [(b, e) for b, e in merged(opened) if text[b:e].strip()]


def merged(places: Iterable[tuple[int, int]]) -> Places:
    """Ranges in order, those that touch or overlap as one; empty ones are left out.

    Args:
        places: Ranges in any order.

    Returns:
        Ranges that neither touch nor overlap.
    """
    result: Places = []
    for begin, end in sorted(place for place in places if place[0] < place[1]):
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return result


class Ranges:
    """Ranges that do not overlap, to be asked whether another meets one of them.

    Args:
        ranges: In any order.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._ranges = sorted(ranges)
        self._starts = [begin for begin, _ in self._ranges]

    def meets(self, begin: int, end: int) -> bool:
        """Whether some range shares a character with `begin` to `end`.

        Args:
            begin: First character.
            end: Behind the last one.

        Returns:
            True if one does.
        """
        at = bisect_right(self._starts, end - 1) - 1
        return at >= 0 and self._ranges[at][1] > begin
