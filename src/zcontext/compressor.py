"""ZCompressor: text in, documents of symbols out.

It cuts a text into windows, hands each a share of the document's budget, has the window written and
keeps the result in a store. What it does not know: how a window is written, what a symbol means.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zcontext.assurance import Assurance
from zcontext.bundle import load_bundle
from zcontext.bundles import DEFAULT_BUNDLE, find_bundle
from zcontext.config import CompressSettings, EmphasisName, WriterName
from zcontext.drafts import Draft, draft_of, emphasise_drafts
from zcontext.errors import ConfigError
from zcontext.model import ZLanguageModel
from zcontext.refocusing import reopened
from zcontext.spans import ZDocument, ZSpan
from zcontext.store import SpanStore, store_key
from zcontext.terms import can_refocus, focuses, in_force, writes_as
from zcontext.tokenization import text_tokenizer
from zcontext.vocabulary import ZVocabulary, utf8_bytes
from zcontext.writing import WindowWriter


class ZCompressor:
    """Compresses texts with one model.

    Same text, codec and settings give a byte-identical document, alone or among others. It can be
    used from several threads: the model is held for one pass at a time.

    Args:
        model: The model that writes.
        settings: Used where a call gives none.
        store: Where documents are kept and looked up; None keeps nothing.
        batch_size: Windows (of different documents) in one pass; None means 1, which fills a CPU;
            give more on a GPU. Passes of another size round differently: keep to one for a store.

    Raises:
        ConfigError: `batch_size` is below 1.
    """  # noqa: DOC502 - raised by the writer

    def __init__(
        self,
        model: ZLanguageModel,
        *,
        settings: CompressSettings | None = None,
        store: SpanStore | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.store = store
        self._settings = settings or CompressSettings()
        self._writer = WindowWriter(model, batch_size=1 if batch_size is None else batch_size)
        self._tokens = text_tokenizer(model.tokenizer)

    @classmethod
    def from_bundle(
        cls,
        bundle: str | os.PathLike[str] = DEFAULT_BUNDLE,
        *,
        settings: CompressSettings | None = None,
        store: SpanStore | None = None,
        batch_size: int | None = None,
        quantization: str = "nf4",
        device: str = "auto",
    ) -> ZCompressor:
        """A compressor on a bundle and the base it names; its `model` serves readers as well.

        Args:
            bundle: A folder, or the name of a bundle that ships.
            settings: Used where a call gives none.
            store: Where documents are kept.
            batch_size: Windows in one pass.
            quantization: Of the base: "nf4", "nf4-dequantised" or "none".
            device: "auto" or a torch device.

        Returns:
            The compressor.

        Raises:
            BundleError: There is no such bundle, or it is damaged or foreign.
        """  # noqa: DOC502 - raised by the steps
        model = load_bundle(find_bundle(bundle), quantization=quantization, device=device)
        return cls(model, settings=settings, store=store, batch_size=batch_size)

    @property
    def settings(self) -> CompressSettings:
        """Used where a call gives none."""
        return self._settings

    @property
    def codec(self) -> str:
        """Digest of the codec, 64 hex digits."""
        return self.model.codec

    @property
    def vocabulary(self) -> ZVocabulary:
        """The symbols it writes."""
        return self.model.vocabulary

    @property
    def refocuses(self) -> bool:
        """Whether `compress_together` writes stored documents again: codes are names, and focus."""
        return can_refocus(self.model)

    def count_tokens(self, text: str) -> int:
        """Base tokens of a text.

        Args:
            text: Any text; special tokens spelled in it are characters.

        Returns:
            The count.

        Raises:
            VocabularyError: The text holds a lone surrogate.
        """  # noqa: DOC502 - raised by the tokenizer
        return self._tokens.count(text)

    def compress(
        self,
        text: str,
        *,
        settings: CompressSettings | None = None,
        ratio: float | None = None,
        max_symbols: int | None = None,
        bits_per_symbol: float | None = None,
        depth: int | None = None,
        question: str | None = None,
        emphasis: EmphasisName | None = None,
        writer: WriterName | None = None,
    ) -> ZDocument:
        """One text as a document; keywords given replace those of `settings`.

        Args:
            text: The source. Text that spells symbols is treated as `on_symbols` says, and the
                document is then that of the text so treated.
            settings: How to compress; None means the compressor's own.
            ratio: Source tokens per symbol, over the document as a whole; 4 if there is no budget.
            max_symbols: Hard cap on the document's symbols.
            bits_per_symbol: Surprisal that one symbol stands for.
            depth: Codes per symbol.
            question: What will be asked of the text; read in front of it and not written.
            emphasis: "end" for a text that will be gone on with.
            writer: "one-pass", or "autoregressive", which decides itself how many symbols.

        Returns:
            The document; without spans for the empty text.

        Raises:
            ConfigError: A setting is out of range, the text longer than `max_tokens`, or the codec
                has no such writer.
            SymbolCollisionError: The text spells symbols and the settings say to refuse.
            VocabularyError: The text is not str, holds a lone surrogate, or nothing the base has
                a token for.
            StoreError: The store cannot be read or written.
        """  # noqa: DOC502 - some raised by the steps
        budget = {"ratio": ratio, "max_symbols": max_symbols, "bits_per_symbol": bits_per_symbol}
        chosen = self._chosen(
            settings, **budget, depth=depth, question=question, emphasis=emphasis, writer=writer
        )
        return self._compress_all([text], chosen)[0]

    def compress_many(
        self,
        texts: Sequence[str],
        *,
        settings: CompressSettings | None = None,
        ratio: float | None = None,
        max_symbols: int | None = None,
        bits_per_symbol: float | None = None,
        depth: int | None = None,
        writer: WriterName | None = None,
        progress: bool = False,
    ) -> list[ZDocument]:
        """One document per text, in order, byte-identical to compressing them one by one.

        Each goes to the store as soon as it is whole, so an interrupted job goes on where it was.

        Args:
            texts: The sources; equal ones are compressed once.
            settings: How to compress; None means the compressor's own.
            ratio: Source tokens per symbol, over each document as a whole.
            max_symbols: Hard cap on each document's symbols.
            bits_per_symbol: Surprisal that one symbol stands for.
            depth: Codes per symbol.
            writer: "one-pass" or "autoregressive".
            progress: Show a progress bar on standard error.

        Returns:
            The documents.

        Raises:
            ConfigError: A setting is out of range, or a text longer than `max_tokens`.
            SymbolCollisionError: A text spells symbols and the settings say to refuse.
            VocabularyError: A text is not str, holds a lone surrogate, or nothing the base has a
                token for.
            StoreError: The store cannot be read or written.
        """  # noqa: DOC502 - some raised by the steps
        budget = {"ratio": ratio, "max_symbols": max_symbols, "bits_per_symbol": bits_per_symbol}
        chosen = self._chosen(settings, **budget, depth=depth, writer=writer)
        if not progress:
            return self._compress_all(texts, chosen)
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as shown:
            bar = shown.add_task("compressing", total=sum(map(len, texts)))
            return self._compress_all(
                texts, chosen, advance=lambda n_chars: shown.advance(bar, n_chars)
            )

    def compress_together(
        self,
        texts: Sequence[str | ZDocument],
        *,
        question: str,
        settings: CompressSettings | None = None,
        ratio: float | None = None,
        depth: int | None = None,
    ) -> list[ZDocument]:
        """Texts that were found for one question, written for it under one budget.

        A text that answers takes symbols from those that do not: all together have the ratio, not
        each. A stored document is written again from what its codes name, and brings as many
        symbols as it has. The store is not used, as a document depends on those beside it.

        Args:
            texts: The sources, or documents that were written of them, in order.
            question: What will be asked of them.
            settings: How to compress; None means the compressor's own.
            ratio: Source tokens per symbol, over all that are texts.
            depth: Codes per symbol of what is text; a document keeps its own.

        Returns:
            One document per text; without the part "focus" those of `compress`, and documents as
            they are.

        Raises:
            ConfigError: A setting is out of range, a text longer than `max_tokens`, the budget is
                `max_symbols`, which is one document's, or a document's codes are no names.
            CodecMismatchError: Another codec wrote a document.
            SymbolCollisionError: A text spells symbols and the settings say to refuse.
            VocabularyError: A text is not str, holds a lone surrogate, or nothing the base has a
                token for.
        """  # noqa: DOC502 - some raised by the steps
        chosen = self._chosen(settings, ratio=ratio, depth=depth, question=question)
        if chosen.max_symbols is not None and any(isinstance(text, str) for text in texts):
            told = f"max_symbols={chosen.max_symbols} caps one document; give a ratio instead"
            raise ConfigError(told, field="max_symbols", value=chosen.max_symbols)
        opened = [self._opened(text, chosen) for text in texts]
        drafts = [each for each in opened if isinstance(each, Draft)]
        if focuses(chosen, self.model):
            emphasise_drafts(drafts, self._writer)
        return [each if isinstance(each, ZDocument) else self._finished(each) for each in opened]

    def _opened(self, text: str | ZDocument, settings: CompressSettings) -> Draft | ZDocument:
        """What is to be written; a document that stays as it is."""
        if isinstance(text, ZDocument):
            asked = self._question_ids(settings)
            return reopened(text, self.model, settings, question=asked) or text
        return self._draft(self._guarded(text, settings), settings, alone=False)

    def _finished(self, draft: Draft) -> ZDocument:
        held = Assurance(self.model, draft)
        while not draft.done:
            held.take(self._writer.write([draft.task()])[0])
        return held.finish()

    def stream(
        self,
        text: str,
        *,
        settings: CompressSettings | None = None,
        ratio: float | None = None,
        max_symbols: int | None = None,
        bits_per_symbol: float | None = None,
        depth: int | None = None,
    ) -> Iterator[ZSpan]:
        """The spans of `compress`, each as soon as it is written, without the store.

        Args:
            text: The source.
            settings: How to compress; None means the compressor's own.
            ratio: Source tokens per symbol, over the document as a whole.
            max_symbols: Hard cap on the document's symbols.
            bits_per_symbol: Surprisal that one symbol stands for.
            depth: Codes per symbol.

        Returns:
            The spans, in order; all at the end where the settings measure them, as what is lost
            can lie across two. Errors are raised here.

        Raises:
            ConfigError: A setting is out of range, or the text longer than `max_tokens`.
            SymbolCollisionError: The text spells symbols and the settings say to refuse.
            VocabularyError: The text is not str, holds a lone surrogate, or nothing the base has
                a token for.
        """  # noqa: DOC502 - some raised by the steps
        budget = {"ratio": ratio, "max_symbols": max_symbols, "bits_per_symbol": bits_per_symbol}
        chosen = self._chosen(settings, **budget, depth=depth)
        draft = self._draft(self._guarded(text, chosen), chosen)
        return self._spans(draft)

    def _spans(self, draft: Draft) -> Iterator[ZSpan]:
        held = Assurance(self.model, draft)
        given = 0
        while not draft.done:
            held.take(self._writer.write([draft.task()])[0])
            if not draft.settings.measures:
                yield from draft.spans[given:]
                given = len(draft.spans)
        yield from held.finish().spans[given:]

    def _chosen(self, settings: CompressSettings | None, **given: Any) -> CompressSettings:
        """Settings in force, every default filled in, checked against the model."""
        chosen = (settings or self._settings).replace(**given)
        return in_force(chosen, self.model, n_asked=len(self._question_ids(chosen)))

    def _question_ids(self, settings: CompressSettings) -> list[int]:
        return self._tokens.ids(settings.question + "\n\n") if settings.question else []

    def _guarded(self, text: str, settings: CompressSettings) -> str:
        utf8_bytes(text)
        return self.vocabulary.guard(text, on_symbols=settings.on_symbols)

    def _draft(self, text: str, settings: CompressSettings, *, alone: bool = True) -> Draft:
        draft = draft_of(
            text,
            self._tokens,
            settings=settings,
            vocabulary=self.vocabulary,
            mean_surprisal=self.model.config.mean_surprisal,
            question=self._question_ids(settings),
            cut=self.model.codebook.cut,
        )
        if alone and focuses(settings, self.model):
            emphasise_drafts([draft], self._writer)
        return draft

    def _compress_all(
        self,
        texts: Sequence[str],
        settings: CompressSettings,
        *,
        advance: Callable[[int], None] = lambda n_chars: None,
    ) -> list[ZDocument]:
        keys, written_by = [], writes_as(settings, self.model)
        waiting: dict[str, str] = {}
        for text in texts:
            guarded = self._guarded(text, settings)
            keys.append(store_key(codec=written_by, settings=settings, text=guarded))
            waiting.setdefault(keys[-1], guarded)
        found: dict[str, ZDocument] = {}
        kept = [] if self.store is None else self.store.get_many(list(waiting))
        for key, document in zip(waiting, kept, strict=False):
            if document is not None:
                found[key] = document
                advance(document.n_chars)
        missing = {key: text for key, text in waiting.items() if key not in found}
        for key, document in self._write_all(missing, settings, advance):
            if self.store is not None:
                self.store.put(key, document)
            found[key] = document
        return [found[key] for key in keys]

    def _write_all(
        self, texts: dict[str, str], settings: CompressSettings, advance: Callable[[int], None]
    ) -> Iterator[tuple[str, ZDocument]]:
        """Documents as they are finished, windows of several in one pass where shapes allow."""
        coming = iter(texts.items())
        open_drafts: dict[str, Assurance] = {}
        n_open = 1 if self._writer.batch_size == 1 else 4 * self._writer.batch_size
        while True:
            while len(open_drafts) < n_open and (entry := next(coming, None)) is not None:
                held = Assurance(self.model, self._draft(entry[1], settings))
                if held.draft.done:
                    yield entry[0], held.finish()
                else:
                    open_drafts[entry[0]] = held
            if not open_drafts:
                return
            tasks = {key: held.draft.task() for key, held in open_drafts.items()}
            # The oldest document decides, so that none waits forever.
            shape = self._writer.shape(next(iter(tasks.values())))
            together = [key for key, task in tasks.items() if self._writer.shape(task) == shape]
            together = together[: self._writer.batch_size]
            written = self._writer.write([tasks[key] for key in together])
            for key, window in zip(together, written, strict=True):
                held = open_drafts[key]
                if (span := held.take(window)) is not None:
                    advance(len(span.chars))
                if held.draft.done:
                    del open_drafts[key]
                    yield key, held.finish()
