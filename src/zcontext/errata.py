"""Errata: what to change in a text that was read back, so that it becomes the source.

Two kinds. A token correction says which token belongs at a place where greedy decoding would leave
the source; it is put in while decoding goes on. An edit says which characters of the decoded text
are others in the source: characters the base has no token for, and whatever else its tokenizer
does not bring back.

Stored as bytes: one of format and flags, then the edits, then the corrections as one big number (an
asymmetric numeral system, Duda 2009). Its adaptive counts learn how often a place is wrong and how
long the ids are, in bits: as ids rise with rarity, and rarity follows Zipf's law, lengths say most.
Against zlib on varints that is about a third fewer bytes.

Floor 0, standard library only. What it does not know: models, tokenizers, how errors are found.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Final

from zcontext.errors import CorruptSpanError, SpanError
from zcontext.packing import ByteReader, ByteWriter
from zcontext.vocabulary import utf8_bytes
from zcontext.zspan import require

_FORMAT: Final = 0x10
_DEFLATED: Final = 0x01
_EDITED: Final = 0x02
_CORRECTED: Final = 0x04
_FLAGS: Final = _DEFLATED | _EDITED | _CORRECTED
_MAX_LENGTH: Final = 31  # of a token id, in bits


@dataclass(frozen=True, slots=True)
class Edit:
    """Characters of a decoded text and what stands there in the source.

    Args:
        start: First character to replace.
        end: Where the replaced characters end.
        text: What takes their place.

    Raises:
        SpanError: if the range is not one, or neither side has a character.
    """

    start: int
    end: int
    text: str

    def __post_init__(self) -> None:
        fits = 0 <= self.start <= self.end and (self.end > self.start or bool(self.text))
        require(fits, f"{self!r}: give 0 <= start <= end, and something to take out or put in.")


@dataclass(frozen=True, slots=True)
class Errata:
    """The corrections of one span.

    Args:
        tokens: Places from the span's start, strictly rising, each with its token.
        edits: Of the decoded text, in order, none overlapping.

    Raises:
        SpanError: if places or edits are out of order, or a token is no id.
    """

    tokens: tuple[tuple[int, int], ...] = ()
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        places = [-1, *(place for place, _ in self.tokens)]
        require(
            all(a < b for a, b in pairwise(places)),
            "places of token corrections must rise strictly from 0.",
        )
        require(
            all(0 <= token < 1 << _MAX_LENGTH for _, token in self.tokens),
            f"a corrected token is no id of 0 to 2**{_MAX_LENGTH} - 1.",
        )
        ends = [0, *(edit.end for edit in self.edits)]
        require(
            all(end <= edit.start for end, edit in zip(ends, self.edits, strict=False)),
            "edits must follow one another.",
        )

    def apply(self, text: str) -> str:
        """A decoded text with the edits made.

        Args:
            text: What was decoded with the token corrections in place.

        Returns:
            The source, if it was decoded as it was when the errata were written.
        """
        pieces, at = [], 0
        for edit in self.edits:
            pieces += [text[at : edit.start], edit.text]
            at = edit.end
        return "".join([*pieces, text[at:]])

    def to_bytes(self, *, n_tokens: int) -> bytes:
        """The stored form; one byte where nothing is to be corrected.

        Args:
            n_tokens: Length of the span.

        Returns:
            At least one byte.

        Raises:
            SpanError: A correction stands beyond the span.
        """
        require(
            not self.tokens or self.tokens[-1][0] < n_tokens,
            f"a correction stands beyond the {n_tokens} tokens of its span.",
        )
        flags, edits = _pack_edits(self.edits)
        out = ByteWriter()
        out.raw(bytes([_FORMAT | flags | (_CORRECTED if self.tokens else 0)]))
        out.raw(edits)
        if self.tokens:
            longest = max(token.bit_length() for _, token in self.tokens)
            out.raw(bytes([longest]))
            number = _pack_tokens(dict(self.tokens), n_tokens, longest)
            out.raw(number.to_bytes((number.bit_length() + 7) // 8, "big"))
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, *, n_tokens: int) -> Errata:
        """The inverse of `to_bytes`.

        Args:
            data: What `to_bytes` returned.
            n_tokens: Length of the span.

        Returns:
            The errata.

        Raises:
            CorruptSpanError: if it is not the bytes of errata, whole and unaltered.
        """
        try:
            source = ByteReader(data)
            head = source.raw(1)[0]
            if head & ~_FLAGS != _FORMAT:
                raise ValueError(f"they start with byte {head:#04x}")
            if head & _DEFLATED and not head & _EDITED:
                raise ValueError("they deflate edits that are not there")
            edits = _unpack_edits(source, deflated=bool(head & _DEFLATED)) if head & _EDITED else ()
            tokens: tuple[tuple[int, int], ...] = ()
            if head & _CORRECTED:
                longest = source.raw(1)[0]
                packed = source.raw(len(data) - source.at)
                if longest > _MAX_LENGTH or packed.startswith(b"\0"):
                    raise ValueError("the corrections are no number this format writes")
                tokens = _unpack_tokens(int.from_bytes(packed, "big"), n_tokens, longest)
            source.finish()
            # Not by writing them again: another build of zlib deflates to other bytes.
            if bool(tokens) != bool(head & _CORRECTED) or bool(edits) != bool(head & _EDITED):
                raise ValueError("they announce what is not there")
            errata = cls(tokens, edits)
        except (ValueError, zlib.error, SpanError) as error:
            raise _corrupt(str(error)) from error
        return errata


def edits_between(decoded: str, source: str) -> tuple[Edit, ...]:
    """What to change in a decoded text to get the source.

    Characters without a token were replaced one for one, so texts of one length are compared place
    by place; otherwise everything between what both begin and end with is one edit.

    Args:
        decoded: What the base's tokenizer brings back.
        source: What it was given.

    Returns:
        The edits, in order.
    """
    if decoded == source:
        return ()
    if len(decoded) == len(source):
        wrong = (i for i, pair in enumerate(zip(decoded, source, strict=True)) if len({*pair}) > 1)
        edits = []
        for _, run in groupby(enumerate(wrong), key=lambda item: item[1] - item[0]):
            places = [place for _, place in run]
            start, end = places[0], places[-1] + 1
            edits.append(Edit(start, end, source[start:end]))
        return tuple(edits)
    shortest = min(len(decoded), len(source))
    head = next((i for i in range(shortest) if decoded[i] != source[i]), shortest)
    room = range(shortest - head)
    tail = next((i for i in room if decoded[-1 - i] != source[-1 - i]), shortest - head)
    return (Edit(head, len(decoded) - tail, source[head : len(source) - tail]),)


def _pack_edits(edits: Sequence[Edit]) -> tuple[int, bytes]:
    if not edits:
        return 0, b""
    out = ByteWriter()
    out.varint(len(edits))
    at = 0
    for edit in edits:
        for value in (edit.start - at, edit.end - edit.start, len(edit.text)):
            out.varint(value)
        at = edit.end
    text = utf8_bytes("".join(edit.text for edit in edits))
    out.blob(text)
    plain = out.getvalue()
    packed = ByteWriter()
    packed.varint(len(plain))
    packed.blob(zlib.compress(plain, 9))
    if len(packed.getvalue()) < len(plain):
        return _EDITED | _DEFLATED, packed.getvalue()
    return _EDITED, plain


def _unpack_edits(source: ByteReader, *, deflated: bool) -> tuple[Edit, ...]:
    if deflated:
        n_bytes, packed = source.varint(), source.blob()
        # deflate makes at most 1,032 bytes of one, so a lie about the length costs nothing.
        plain = zlib.decompressobj().decompress(packed, min(n_bytes, 1032 * len(packed)) or 1)
        if len(plain) != n_bytes:
            raise ValueError(f"{len(plain)} bytes of edits instead of {n_bytes}")
        inner = ByteReader(plain)
        edits = _unpack_edits(inner, deflated=False)
        inner.finish()
        return edits
    shape = []
    at = 0
    for _ in range(source.varint()):
        skipped, n_out, n_in = source.varint(), source.varint(), source.varint()
        shape.append((at + skipped, at + skipped + n_out, n_in))
        at += skipped + n_out
    text = source.blob().decode("utf-8")
    starts = [0, *accumulate(n_in for *_, n_in in shape)]
    if starts[-1] != len(text):
        raise ValueError(f"{len(text)} characters of edits instead of {starts[-1]}")
    return tuple(
        Edit(start, end, text[first : first + n_in])
        for (start, end, n_in), first in zip(shape, starts, strict=False)
    )


class _Counts:
    """How often each of some values was seen: the share of the code space the next one gets."""

    def __init__(self, n_values: int) -> None:
        self._seen = [1] * n_values

    @property
    def total(self) -> int:
        """The whole code space."""
        return sum(self._seen)

    def interval(self, value: int) -> tuple[int, int, int]:
        """Where the value's share starts, its width, and the total."""
        return sum(self._seen[:value]), self._seen[value], self.total

    def value_at(self, place: int) -> int:
        """The value whose share holds a place."""
        return next(v for v, end in enumerate(accumulate(self._seen)) if place < end)

    def add(self, value: int) -> None:
        """One more of a value; it weighs as much as two never seen (Krichevsky, Trofimov)."""
        self._seen[value] += 2


def _pack_tokens(tokens: dict[int, int], n_tokens: int, longest: int) -> int:
    wrong, lengths = _Counts(2), _Counts(longest + 1)
    steps: list[tuple[int, int, int]] = []
    for place in range(n_tokens):
        flag = int(place in tokens)
        steps.append(wrong.interval(flag))
        wrong.add(flag)
        if flag:
            length = tokens[place].bit_length()
            steps.append(lengths.interval(length))
            lengths.add(length)
            if length > 1:  # the first bit of a number is 1
                steps.append((tokens[place] - (1 << length - 1), 1, 1 << length - 1))
    number = 0
    for start, width, total in reversed(steps):  # what goes in last comes out first
        number = number // width * total + start + number % width
    return number


def _unpack_tokens(number: int, n_tokens: int, longest: int) -> tuple[tuple[int, int], ...]:
    wrong, lengths = _Counts(2), _Counts(longest + 1)

    def take(counts: _Counts) -> int:
        nonlocal number
        value = counts.value_at(number % counts.total)
        start, width, total = counts.interval(value)
        number = number // total * width + number % total - start
        counts.add(value)
        return value

    tokens = []
    for place in range(n_tokens):
        if take(wrong):
            length = take(lengths)
            token = min(length, 1)
            if length > 1:
                number, rest = divmod(number, 1 << length - 1)
                token = rest + (1 << length - 1)
            tokens.append((place, token))
    if number:
        raise ValueError("the corrections are longer than their span")
    return tuple(tokens)


def _corrupt(reason: str) -> CorruptSpanError:
    return CorruptSpanError(
        f"A span's errata cannot be read: {reason.rstrip('.')}. They were altered, or written by "
        "another version of zcontext: compress the source text again."
    )
