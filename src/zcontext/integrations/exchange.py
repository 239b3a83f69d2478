"""Text in, symbols out: what the doors to LangChain and LlamaIndex share.

A framework's retrieved pieces arrive as `Chunk`s and leave as `Exchanged`s, one for one and in
order: either the written symbols or the text as it was, and always a record of what was done, as
flat metadata. `index` puts spans next to the texts, `swap` puts them in their place.

Framework-free and free of torch: it knows `SupportsCompress`, and nothing of documents or nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from zcontext.budget import Candidate, Choice, plan_budget
from zcontext.config import CompressSettings
from zcontext.errors import (
    CodecMismatchError,
    ConfigError,
    CorruptSpanError,
    SymbolCollisionError,
    VocabularyError,
)
from zcontext.fragile import protected_places
from zcontext.integrations.items import (
    Item,
    digest,
    foreign,
    guarded,
    is_whole,
    is_written,
    kept_source,
    n_positions_of,
    n_symbols_in,
    rewritten_record,
    shares,
)
from zcontext.integrations.records import (
    ACCURACY,
    ACTION,
    CODEC,
    KEYS,
    N_POSITIONS,
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
    warn_stale,
    warn_unreadable,
    without_record,
)
from zcontext.spans import SupportsCompress, SupportsFocus, ZDocument, written_parts
from zcontext.vocabulary import ZVocabulary, has_symbols

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

_PLAIN: Final = CompressSettings()


class Exchange:
    """Exchanges lists of chunks under one codec.

    Args:
        vocabulary: Of the codec in use.
        compressor: Gives the compressor; called only when something has to be counted or
            compressed, so that swapping stored spans loads no weights.
        settings: When to exchange, and for how many symbols.
        question: What will be asked of the chunks. Texts are then written for it, without stored
            spans, which serve every question; chunks that are symbols are written again from them.
    """

    def __init__(
        self,
        vocabulary: ZVocabulary,
        *,
        compressor: Callable[[], SupportsCompress],
        settings: ExchangeSettings | None = None,
        question: str | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.settings = settings or ExchangeSettings()
        self._compressor = compressor
        self._question = question

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
            for item in self._decide(chunks, max_tokens=None)
        ]

    def swap(self, chunks: Sequence[Chunk]) -> list[Exchanged]:
        """Symbols in place of the texts, from stored spans where they fit.

        Args:
            chunks: Any number, in any state.

        Returns:
            One per chunk, in order; with `max_tokens`, those without room are marked "dropped"
            and have no text.

        Raises:
            ZContextError: if a text spells symbols, is not valid Unicode, or cannot be compressed.
        """
        result: list[Exchanged] = []
        for item in self._decide(chunks, max_tokens=self.settings.max_tokens):
            if item.dropped:
                result.append(item.left_out())
                continue
            action: Action = "swapped" if item.stored else "compressed"
            result.append(Exchanged(self._shown(item), self._record(item, action), item.document))
        return result

    def _shown(self, item: Item) -> str:
        """What stands for a chunk where its text was."""
        if item.document is None or item.raw or item.kept:
            return item.text
        return written_parts(self.vocabulary, item.document.parts)

    def _decide(self, chunks: Sequence[Chunk], *, max_tokens: int | None) -> list[Item]:
        items = [self._look(chunk) for chunk in chunks]
        if max_tokens is not None:
            self._plan(items, max_tokens)
        elif self.settings.max_symbols is not None:
            self._share_out(items, self.settings.max_symbols)
        later = self.settings.max_symbols is not None or max_tokens is not None
        wanted = [i for i in items if (i.again and not i.dropped) or (i.is_open and not later)]
        self._compress(wanted, max_symbols=None)
        for item in items:
            self._check_accuracy(item)
        stale = [f"{i.chunk.label}: {i.reason}" for i in items if i.reason.endswith(" span")]
        if stale:
            warn_stale(stale, n_chunks=len(items), stacklevel=4)
        return items

    def _look(self, chunk: Chunk) -> Item:
        """What the chunk is, and whether it brought a span that fits."""
        item = Item(chunk, chunk.text)
        if not chunk.text.strip():
            item.stay("empty")
            return item
        found, reason = self._find(chunk)
        arrived = found is not None and has_symbols(chunk.text) and is_written(chunk.text, found)
        if found is not None and arrived and self._stays(item, found):
            return item
        item.text = self._guard(item)
        if self.settings.on_symbols == "keep" and has_symbols(item.text):
            item.kept = True
            return item
        if self._question is not None:
            reason = ""  # what was stored serves every question, and is not looked for
        elif found is not None and found.text_sha256 == digest(item.text):
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
            item.stay("short")
        return item

    def _find(self, chunk: Chunk) -> tuple[ZDocument | None, str]:
        try:
            return stored_span(chunk.metadata), ""
        except CorruptSpanError:
            return None, "damaged span"  # the text is there: compressed again, with a warning

    def _stays(self, item: Item, found: ZDocument) -> bool:
        """Whether a chunk that is symbols stays so; if not, it is what `keep_text` has kept."""
        chunk, ours = item.chunk, found.codec == self.vocabulary.codec
        asked = self._question is not None and is_whole(chunk.text, found)
        text = kept_source(chunk, found) if asked or not ours else None
        if text is not None:
            item.chunk, item.text = replace(chunk, text=text), text
            return False
        if ours:
            compressor = self._compressor() if asked else None
            item.document, item.kept = found, True
            item.again = isinstance(compressor, SupportsFocus) and compressor.refocuses
            return True
        raise foreign(chunk, found, self.vocabulary)

    def _guard(self, item: Item) -> str:
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

    def _plan(self, items: Sequence[Item], max_tokens: int) -> None:
        """Text, symbols or nothing for each chunk, within a cap on positions.

        A span can turn out to be of no use when it is there: too inaccurate, or longer than
        planned. It is then settled what its chunk can be, and the rest is planned again.
        """
        for item in items:
            self._check_accuracy(item)
        while True:
            candidates = [self._candidate(item) for item in items]
            plan = plan_budget(candidates, max_tokens=max_tokens, ratios=self.settings.ratios)
            chosen = list(zip(items, plan.choices, strict=True))
            wanted = [(i, c) for i, c in chosen if c.form == "symbols" and not c.stored]
            surprised = [self._surprises(item, choice) for item, choice in wanted]
            if not any(surprised):
                break
        for item, choice in chosen:
            item.take(choice)

    def _surprises(self, item: Item, choice: Choice) -> bool:
        """Write what was planned; whether that made the plan void."""
        before = (item.document, item.stored, item.reason)
        item.document, item.stored = None, False
        self._compress([item], max_symbols=choice.n_positions)
        self._check_accuracy(item)
        item.settled = item.raw or self._n_positions(item) > choice.n_positions
        if item.settled and before[0] is not None:
            item.document, item.stored, item.reason = before
            item.raw = False
        return item.settled

    def _candidate(self, item: Item) -> Candidate:
        score, there = item.chunk.score, item.document
        if item.raw or item.kept:
            n = self._n_positions(item) if item.kept else item.n_tokens
            return Candidate(n, score, compressible=False)
        n_stored = None if there is None else self._n_positions(item)
        n_literal = 0 if item.settled else self._n_literal(item)
        return Candidate(item.n_tokens, score, n_stored, not item.settled, n_literal)

    def _n_literal(self, item: Item) -> int:
        """Tokens that would be kept as text, were the chunk written now."""
        protect = self._protect()
        places = protected_places(item.text, protect) if protect else []
        return sum(self._compressor().count_tokens(item.text[b:e]) for b, e in places)

    def _protect(self) -> tuple[str, ...]:
        return self.settings.protect or (self.settings.compress or _PLAIN).protect

    def _n_positions(self, item: Item) -> int:
        """Positions of what stands for a chunk; loads no compressor where that is symbols only."""
        return n_positions_of(
            self.vocabulary, self._shown(item), count=lambda t: self._compressor().count_tokens(t)
        )

    def _share_out(self, items: Sequence[Item], budget: int) -> None:
        """Keep a whole list within a budget; stored spans are used as long as they fit."""
        budget -= sum(n_symbols_in(self.vocabulary, i.text) for i in items if i.kept)
        wanted = [item for item in items if not item.kept and not item.raw]
        n_stored = sum(item.document.n_positions for item in wanted if item.document)
        fresh = [item for item in wanted if item.document is None]
        kept = [self._n_literal(item) for item in wanted]
        if n_stored + len(fresh) + sum(self._n_literal(item) for item in fresh) <= budget:
            wanted, budget = fresh, budget - n_stored
            kept = [self._n_literal(item) for item in wanted]
        budget -= sum(kept)
        if len(wanted) > budget:
            raise ConfigError(
                f"max_symbols={self.settings.max_symbols} is too few for {len(items)} chunks: each "
                "takes one symbol at least. Raise it, retrieve fewer, or give a ratio instead.",
                field="max_symbols",
                value=self.settings.max_symbols,
            )
        split = shares([item.n_tokens for item in wanted], budget)
        for item, share, n_literal in zip(wanted, split, kept, strict=True):
            share += n_literal
            if item.document is None or item.document.n_positions > share:
                item.document, item.stored = None, False
                self._compress([item], max_symbols=share)

    def _compress(self, items: Sequence[Item], *, max_symbols: int | None) -> None:
        if not items:
            return
        compressor = self._compressor()
        settings = self._compress_settings(capped=max_symbols is not None)
        ratio = self.settings.ratio if max_symbols is None else None
        capped = max_symbols is not None or (ratio is None and settings.max_symbols is not None)
        together, documents = list[Item](), list[ZDocument]()
        if self._question is not None and isinstance(compressor, SupportsFocus):
            together = [item for item in items if item.again or not capped]
            given = [i.document if i.again and i.document else i.text for i in together]
            documents = compressor.compress_together(
                given, question=self._question, settings=settings, ratio=ratio
            )
        alone = [item for item in items if not (item.again or (together and not capped))]
        if alone:
            documents += compressor.compress_many(
                [i.text for i in alone], settings=settings, ratio=ratio, max_symbols=max_symbols
            )
        for item, document in zip([*together, *alone], documents, strict=True):
            item.receive(document, self.vocabulary)

    def _compress_settings(self, *, capped: bool) -> CompressSettings:
        """Those of the compressor, so that what has a floor is measured when it is written."""
        chosen = self.settings.compress or self._compressor().settings
        chosen = chosen.replace(question=self._question, protect=self.settings.protect or None)
        if chosen.min_fidelity is None and self.settings.min_accuracy is not None:
            chosen = chosen.replace(min_fidelity=self.settings.min_accuracy)
        if capped and chosen.on_low_fidelity == "finer":
            chosen = chosen.replace(on_low_fidelity="raw")  # a cap leaves no room for more symbols
        return chosen

    def _floor(self, item: Item) -> float:
        """The share of tokens that must read back right, or the text stays."""
        if self.settings.min_accuracy is not None:
            return self.settings.min_accuracy
        if self.settings.compress is not None:
            return self.settings.compress.floor
        # A stored span is swapped without loading the compressor.
        return 0.0 if item.stored else self._compressor().settings.floor

    def _check_accuracy(self, item: Item) -> None:
        if item.document is None or item.kept or item.raw or not (floor := self._floor(item)):
            return
        accuracy = token_accuracy(item.document)
        if accuracy is None:
            item.stay("accuracy not measured")
        elif accuracy < floor:
            item.stay("low accuracy")

    def _record(self, item: Item, action: Action) -> dict[str, Flat]:
        if item.kept:
            return rewritten_record(item) if item.again else record_of(item.chunk.metadata)
        record: dict[str, Flat] = {ACTION: "raw" if item.raw else action, N_TOKENS: item.n_tokens}
        if item.reason:
            record[REASON] = item.reason
        if item.document is None:
            return record
        record[CODEC] = item.document.codec
        record[N_SYMBOLS] = item.document.n_symbols
        if item.document.has_literals:
            record[N_POSITIONS] = item.document.n_positions
        accuracy = token_accuracy(item.document)
        if accuracy is not None:
            record[ACCURACY] = round(accuracy, 6)
        record[SPAN] = item.document.to_compact()
        if self.settings.keep_text and not item.raw and action != "indexed":
            record[TEXT] = item.chunk.text
        return record
