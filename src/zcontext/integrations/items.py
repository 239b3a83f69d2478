"""A chunk on its way through an exchange, and what can be told of one without compressing it.

Framework-free and free of torch. What it does not know: what becomes of the chunk; `exchange`
decides that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from zcontext.budget import Choice
from zcontext.errors import CodecMismatchError
from zcontext.integrations.records import (
    ACCURACY,
    ACTION,
    N_POSITIONS,
    N_SYMBOLS,
    N_TOKENS,
    SPAN,
    TEXT,
    Chunk,
    Exchanged,
    Flat,
    Policy,
    record_of,
)
from zcontext.spans import ZDocument, written_parts
from zcontext.vocabulary import ZVocabulary, utf8_bytes


@dataclass(slots=True)
class Item:
    """What was found of a chunk, then what was decided."""

    chunk: Chunk
    text: str
    document: ZDocument | None = None
    n_tokens: int = 0
    stored: bool = False  # the document was found, not written now
    kept: bool = False  # the text already is symbols
    again: bool = False  # and they can be written again for the question
    raw: bool = False  # the text stays
    reason: str = ""
    settled: bool = False  # no symbols but those that are there will do
    dropped: bool = False  # a budget has no room for it

    @property
    def is_open(self) -> bool:
        """Whether symbols have to be written for it."""
        return self.document is None and not self.raw and not self.kept

    def stay(self, reason: str) -> None:
        """Leave the text as it is."""
        self.raw, self.reason = True, reason

    def take(self, choice: Choice) -> None:
        """Follow a budget, as far as it is not settled that the text stays."""
        self.dropped = choice.form == "dropped"
        if choice.form == "text" and not (self.raw or self.kept):
            self.stay(self.reason or "fits")

    def receive(self, document: ZDocument, vocabulary: ZVocabulary) -> None:
        """Take what was written; symbols that stay as they were leave the chunk as it was."""
        vocabulary.check(document.symbols)
        if self.kept:
            self.again = document != self.document
            self.text = written_parts(vocabulary, document.parts) if self.again else self.text
        self.document = document

    def left_out(self) -> Exchanged:
        """What leaves where a budget had no room."""
        return Exchanged("", {ACTION: "dropped", N_TOKENS: self.n_tokens})


def rewritten_record(item: Item) -> dict[str, Flat]:
    """The record of a chunk that already was symbols, and was written again for the question."""
    record = record_of(item.chunk.metadata)
    record.pop(ACCURACY, None)  # it was that of the symbols before
    record[ACTION] = "refocused"
    if item.document is not None:
        record |= {N_SYMBOLS: item.document.n_symbols, SPAN: item.document.to_compact()}
        if item.document.has_literals:
            record[N_POSITIONS] = item.document.n_positions
    return record


def guarded(vocabulary: ZVocabulary, text: str, *, policy: Policy) -> str:
    """Text of unknown origin, made safe to stand in a prompt.

    Args:
        vocabulary: Of the codec in use.
        text: The text.
        policy: "keep" lets well-formed symbols of this codec pass; the rest as in
            `ZVocabulary.guard`.

    Returns:
        The text, unchanged unless the policy is "escape" or "drop".

    Raises:
        SymbolCollisionError: if it spells symbols and the policy is "refuse".
        VocabularyError: if it is not valid Unicode, or the policy is "keep" and what it spells is
            malformed.
        CodecMismatchError: if the policy is "keep" and it holds symbols of another codec.
    """
    utf8_bytes(text)
    if policy == "keep":
        vocabulary.split(text)
        return text
    return vocabulary.guard(text, on_symbols=policy)


def kept_source(chunk: Chunk, found: ZDocument) -> str | None:
    """The text behind symbols where `keep_text` has kept it, and it is the one they stand for."""
    text = chunk.metadata.get(TEXT)
    return text if isinstance(text, str) and digest(text) == found.text_sha256 else None


def foreign(chunk: Chunk, found: ZDocument, vocabulary: ZVocabulary) -> CodecMismatchError:
    """What is to be raised where symbols are another codec's, and their text is not there."""
    return CodecMismatchError(
        f"{chunk.label} was already exchanged for symbols of codec {found.codec[:4]}, this is "
        f"codec {vocabulary.tag}: load the bundle that wrote them, or retrieve the source "
        "text and compress it again."
    )


def digest(text: str) -> str:
    """What a document names its source by."""
    return sha256(utf8_bytes(text)).hexdigest()


def is_written(text: str, found: ZDocument) -> bool:
    """Whether the text is a run of what a span vouches for, its symbols and literals, no more."""
    return f" {' '.join(text.split())} " in f" {_written(found)} "


def is_whole(text: str, found: ZDocument) -> bool:
    """Whether the text is all of what a span vouches for."""
    return " ".join(text.split()) == _written(found)


def _written(found: ZDocument) -> str:
    writer = ZVocabulary(codec=found.codec, depth=found.depth, size=found.size)
    return " ".join(written_parts(writer, found.parts).split())


def n_symbols_in(vocabulary: ZVocabulary, text: str) -> int:
    """The symbols of a text that already holds some."""
    return sum(len(part) for part in vocabulary.split(text) if not isinstance(part, str))


def n_positions_of(vocabulary: ZVocabulary, text: str, *, count: Callable[[str], int]) -> int:
    """Positions of a text, mixed with symbols or not, read by itself."""
    texts = [part for part in vocabulary.split(text) if isinstance(part, str) and part.strip()]
    return n_symbols_in(vocabulary, text) + sum(map(count, texts))


def shares(n_tokens: Sequence[int], budget: int) -> list[int]:
    """A budget split in proportion to lengths: at least one each, never more than the budget."""
    rest = budget - len(n_tokens)
    total = sum(n_tokens)
    result: list[int] = []
    at = 0
    for n in n_tokens:
        result.append(1 + (at + n) * rest // total - at * rest // total)
        at += n
    return result
