"""Text in, symbols out: what the doors to LangChain and LlamaIndex share.

A framework's retrieved pieces arrive as `Chunk`s and leave as `Exchanged`s, one for one and in
order: either the written symbols or the text as it was, and always a record of what was done, as
flat metadata. `index` puts spans next to the texts, `swap` puts them in their place.

Framework-free and free of torch: it knows `SupportsCompress`, and nothing of documents or nodes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from zcontext.errors import (
    CodecMismatchError,
    ConfigError,
    CorruptSpanError,
    SymbolCollisionError,
    VocabularyError,
)
from zcontext.integrations.records import (
    ACCURACY,
    ACTION,
    CODEC,
    KEYS,
    N_SYMBOLS,
    N_TOKENS,
    PREFIX,
    REASON,
    SPAN,
    TEXT,
    Action,
    Chunk,
    Exchanged,
    ExchangeSettings,
    Flat,
    Policy,
    SpanWarning,
    StaleSpanWarning,
    UnreadableSymbolsWarning,
    record_of,
    stored_span,
    token_accuracy,
    warn_unreadable,
    without_record,
)
from zcontext.spans import SupportsCompress, ZDocument
from zcontext.vocabulary import ZVocabulary, has_symbols, utf8_bytes

__all__ = [
    "ACCURACY",
    "ACTION",
    "CODEC",
    "KEYS",
    "N_SYMBOLS",
    "N_TOKENS",
    "PREFIX",
    "REASON",
    "SPAN",
    "TEXT",
    "Action",
    "Chunk",
    "Exchange",
    "ExchangeSettings",
    "Exchanged",
    "Flat",
    "Policy",
    "SpanWarning",
    "StaleSpanWarning",
    "UnreadableSymbolsWarning",
    "guarded",
    "record_of",
    "stored_span",
    "token_accuracy",
    "warn_unreadable",
    "without_record",
]


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


@dataclass(slots=True)
class _Item:
    """A chunk on its way: what was found, then what was decided."""

    chunk: Chunk
    text: str
    document: ZDocument | None = None
    n_tokens: int = 0
    stored: bool = False  # the document was found, not written now
    kept: bool = False  # the text already is symbols
    raw: bool = False  # the text stays
    reason: str = ""


class Exchange:
    """Exchanges lists of chunks under one codec.

    Args:
        vocabulary: Of the codec in use.
        compressor: Gives the compressor; called only when something has to be counted or
            compressed, so that swapping stored spans loads no weights.
        settings: When to exchange, and for how many symbols.
    """

    def __init__(
        self,
        vocabulary: ZVocabulary,
        *,
        compressor: Callable[[], SupportsCompress],
        settings: ExchangeSettings | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.settings = settings or ExchangeSettings()
        self._compressor = compressor

    def index(self, chunks: Sequence[Chunk]) -> list[Exchanged]:
        """Spans next to the texts, which stay as they are.

        Args:
            chunks: Any number, in any state.

        Returns:
            One per chunk, in order.

        Raises:
            ZContextError: if a text spells symbols, is not valid Unicode, or cannot be compressed.
        """
        return [
            Exchanged(item.chunk.text, self._record(item, "indexed"), item.document)
            for item in self._decide(chunks)
        ]

    def swap(self, chunks: Sequence[Chunk]) -> list[Exchanged]:
        """Symbols in place of the texts, from stored spans where they fit.

        Args:
            chunks: Any number, in any state.

        Returns:
            One per chunk, in order.

        Raises:
            ZContextError: if a text spells symbols, is not valid Unicode, or cannot be compressed.
        """
        result: list[Exchanged] = []
        for item in self._decide(chunks):
            text = item.text
            if item.document is not None and not item.raw and not item.kept:
                text = self.vocabulary.render(item.document.symbols)
            action: Action = "swapped" if item.stored else "compressed"
            result.append(Exchanged(text, self._record(item, action), item.document))
        return result

    def _decide(self, chunks: Sequence[Chunk]) -> list[_Item]:
        items = [self._look(chunk) for chunk in chunks]
        if self.settings.max_symbols is not None:
            self._share_out(items, self.settings.max_symbols)
        else:
            self._compress([item for item in items if _is_open(item)], max_symbols=None)
        for item in items:
            self._check_accuracy(item)
        stale = [f"{i.chunk.label}: {i.reason}" for i in items if i.reason.endswith(" span")]
        if stale:
            warnings.warn(
                f"Stored spans of {len(stale)} of {len(items)} chunks could not be used and the "
                f"texts were compressed again ({'; '.join(stale[:3])}). Index them again with the "
                "bundle in use, after splitting; a store that cuts long metadata loses spans too.",
                StaleSpanWarning,
                stacklevel=4,
            )
        return items

    def _look(self, chunk: Chunk) -> _Item:
        """What the chunk is, and whether it brought a span that fits."""
        item = _Item(chunk, chunk.text)
        if not chunk.text.strip():
            item.raw, item.reason = True, "empty"
            return item
        found, reason = self._find(chunk)
        if found is not None and has_symbols(chunk.text) and _is_written(chunk.text, found):
            if found.codec == self.vocabulary.codec:
                item.document, item.kept = found, True
                return item
            item.text = self._source(chunk, found)
        item.text = self._guard(item)
        if self.settings.on_symbols == "keep" and has_symbols(item.text):
            item.kept = True
            return item
        if found is not None and found.text_sha256 == _digest(item.text):
            if found.codec == self.vocabulary.codec:
                item.document, item.stored, item.n_tokens = found, True, found.n_tokens
            else:
                reason = f"codec {found.codec[:4]} span"
        elif found is not None:
            reason = "outdated span"
        item.reason = reason
        if item.document is None:
            item.n_tokens = self._compressor().count_tokens(item.text)
        if item.n_tokens < self.settings.min_tokens:
            item.raw, item.reason = True, "short"
        return item

    def _find(self, chunk: Chunk) -> tuple[ZDocument | None, str]:
        try:
            return stored_span(chunk.metadata), ""
        except CorruptSpanError:
            return None, "damaged span"  # the text is there: compressed again, with a warning

    def _source(self, chunk: Chunk, found: ZDocument) -> str:
        """The text behind symbols of another codec, where `keep_text` has kept it."""
        text = chunk.metadata.get(TEXT)
        if isinstance(text, str) and _digest(text) == found.text_sha256:
            return text
        raise CodecMismatchError(
            f"{chunk.label} was already exchanged for symbols of codec {found.codec[:4]}, this is "
            f"codec {self.vocabulary.tag}: load the bundle that wrote them, or retrieve the source "
            "text and compress it again."
        )

    def _guard(self, item: _Item) -> str:
        label = item.chunk.label
        try:
            return guarded(self.vocabulary, item.text, policy=self.settings.on_symbols)
        except SymbolCollisionError as error:
            raise SymbolCollisionError(
                f"{label} spells symbols that no span in its metadata vouches for. If it is "
                "ordinary text, set on_symbols='escape' (kept, readable) or 'drop'; if its "
                "metadata was lost after compression, set on_symbols='keep'."
            ) from error
        except (VocabularyError, CodecMismatchError) as error:
            raise type(error)(f"{label}: {error}") from error

    def _share_out(self, items: Sequence[_Item], budget: int) -> None:
        """Keep a whole list within a budget; stored spans are used as long as they fit."""
        budget -= sum(len(_symbols_in(self.vocabulary, item)) for item in items if item.kept)
        wanted = [item for item in items if not item.kept and not item.raw]
        n_stored = sum(item.document.n_symbols for item in wanted if item.document)
        fresh = [item for item in wanted if item.document is None]
        if n_stored + len(fresh) <= budget:
            wanted, budget = fresh, budget - n_stored
        if len(wanted) > budget:
            raise ConfigError(
                f"max_symbols={self.settings.max_symbols} is too few for {len(items)} chunks: each "
                "takes one symbol at least. Raise it, retrieve fewer, or give a ratio instead.",
                field="max_symbols",
                value=self.settings.max_symbols,
            )
        for item, share in zip(wanted, _shares([i.n_tokens for i in wanted], budget), strict=True):
            if item.document is None or item.document.n_symbols > share:
                item.document, item.stored = None, False
                self._compress([item], max_symbols=share)

    def _compress(self, items: Sequence[_Item], *, max_symbols: int | None) -> None:
        if not items:
            return
        documents = self._compressor().compress_many(
            [item.text for item in items],
            settings=self.settings.compress,
            ratio=self.settings.ratio,
            max_symbols=max_symbols,
        )
        for item, document in zip(items, documents, strict=True):
            self.vocabulary.check(document.symbols)
            item.document = document

    def _check_accuracy(self, item: _Item) -> None:
        if self.settings.min_accuracy is None or item.document is None or item.kept or item.raw:
            return
        accuracy = token_accuracy(item.document)
        if accuracy is None:
            item.raw, item.reason = True, "accuracy not measured"
        elif accuracy < self.settings.min_accuracy:
            item.raw, item.reason = True, "low accuracy"

    def _record(self, item: _Item, action: Action) -> dict[str, Flat]:
        if item.kept:
            return record_of(item.chunk.metadata)
        record: dict[str, Flat] = {ACTION: "raw" if item.raw else action, N_TOKENS: item.n_tokens}
        if item.reason:
            record[REASON] = item.reason
        if item.document is None:
            return record
        record[CODEC] = item.document.codec
        record[N_SYMBOLS] = item.document.n_symbols
        accuracy = token_accuracy(item.document)
        if accuracy is not None:
            record[ACCURACY] = round(accuracy, 6)
        record[SPAN] = item.document.to_compact()
        if self.settings.keep_text and not item.raw and action != "indexed":
            record[TEXT] = item.chunk.text
        return record


def _digest(text: str) -> str:
    return sha256(utf8_bytes(text)).hexdigest()


def _is_written(text: str, found: ZDocument) -> bool:
    """Whether the text is a run of the very symbols that a span vouches for, and nothing else."""
    writer = ZVocabulary(codec=found.codec, depth=found.depth, size=found.size)
    return f" {' '.join(text.split())} " in f" {writer.render(found.symbols)} "


def _is_open(item: _Item) -> bool:
    return item.document is None and not item.raw and not item.kept


def _symbols_in(vocabulary: ZVocabulary, item: _Item) -> list[object]:
    """The symbols of a text that already holds some."""
    parts = vocabulary.split(item.text)
    return [code for part in parts if not isinstance(part, str) for code in part]


def _shares(n_tokens: Sequence[int], budget: int) -> list[int]:
    """A budget split in proportion to lengths: at least one each, never more than the budget."""
    rest = budget - len(n_tokens)
    total = sum(n_tokens)
    shares: list[int] = []
    at = 0
    for n in n_tokens:
        shares.append(1 + (at + n) * rest // total - at * rest // total)
        at += n
    return shares
