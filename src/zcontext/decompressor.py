"""ZDecompressor: symbols in, the text they stand for out.

It lays out spans as the decompressor was trained on them and leaves the rest to the decoding loop.
What it does not know: how symbols are written, what a prompt is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.config import DEFAULT_RATIO, GenerationSettings
from zcontext.errors import CodecMismatchError, ConfigError, ContextOverflowError
from zcontext.generation import Decoding, Prefill, generate
from zcontext.model import ZLanguageModel
from zcontext.spans import ZDocument, ZSpan
from zcontext.text_feed import TextFeed
from zcontext.vocabulary import Symbols

Restorable = ZDocument | ZSpan | Symbols


def embed_symbols(model: ZLanguageModel, symbols: Symbols) -> Tensor:
    """What a reader is given for symbols.

    Args:
        model: The model.
        symbols: Of its codec.

    Returns:
        `[n_symbols, hidden]`.
    """
    if not len(symbols):
        return torch.zeros(0, model.hidden_size, device=model.device, dtype=model.base.dtype)
    with torch.no_grad():
        return model.embed_codes(torch.tensor(symbols.codes).unsqueeze(0))[0]


@dataclass(frozen=True, slots=True)
class SpanLayout:
    """Symbols in front of a text, as the decompressor was trained on them.

    Attributes:
        symbols: Embeddings of memory and span, `[n_memory + n_symbols, hidden]`.
        positions: Their positions: memory consecutive, the span's where segments end.
        n_memory: Symbols of memory; the start token stands at this position.
        n_tokens: Length of the text.
    """

    symbols: Tensor
    positions: Tensor
    n_memory: int
    n_tokens: int


def lay_out(
    model: ZLanguageModel,
    memory: Symbols,
    symbols: Symbols,
    n_tokens: int,
    *,
    ends: Sequence[int] | None = None,
) -> SpanLayout:
    """Lay out one span.

    Args:
        model: The model that reads.
        memory: Symbols that stood before the span when it was written.
        symbols: Of the span.
        n_tokens: Tokens they stand for.
        ends: Where their segments end; None spreads them evenly.

    Returns:
        The layout.

    Raises:
        ContextOverflowError: It needs more positions than the base has.
    """
    m = len(memory)
    if m + 1 + n_tokens > model.context_length:
        raise ContextOverflowError(
            f"a span of {n_tokens:,} tokens behind {m:,} symbols of memory needs "
            f"{m + 1 + n_tokens:,} positions, the base has {model.context_length:,}; compress "
            "with a smaller window"
        )
    if ends is None:
        spread = model.spread_positions(len(symbols), n_tokens) + m
    else:
        spread = torch.tensor(ends) + m
    embeddings = torch.cat([embed_symbols(model, memory), embed_symbols(model, symbols)])
    return SpanLayout(embeddings, torch.cat([torch.arange(m), spread]), m, n_tokens)


def span_layouts(model: ZLanguageModel, document: ZDocument) -> Iterator[SpanLayout]:
    """Lay out every span of a document, each behind the memory it was written with.

    Args:
        model: The model that reads.
        document: Of its codec.

    Yields:
        One layout per span, in order.

    Raises:
        ContextOverflowError: A span needs more positions than the base has.
    """  # noqa: DOC502 - raised by lay_out
    memory = Symbols((), document.size, document.codec[:4])
    for span in document.spans:
        yield lay_out(model, memory, span.symbols, len(span.tokens), ends=span.ends)
        if document.memory:
            memory = (memory + span.symbols)[-document.memory :]


class ZDecompressor:
    """Says again what symbols stand for.

    Args:
        model: The model that reads.
        batch_size: Spans in one pass.

    Raises:
        ConfigError: `batch_size` is below 1.
    """

    def __init__(self, model: ZLanguageModel, *, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise ConfigError(
                f"batch_size must be 1 or more spans, got {batch_size}",
                field="batch_size",
                value=batch_size,
            )
        self.model = model
        self._batch_size = batch_size

    def decompress(
        self,
        document: Restorable,
        *,
        n_tokens: int | None = None,
        settings: GenerationSettings | None = None,
    ) -> str:
        """The text of a document, a span or bare symbols.

        A document or span says how many tokens it stands for, and exactly so many are generated.
        A span on its own is read without the symbols that stood before it.

        Args:
            document: What to read.
            n_tokens: Tokens that bare symbols stand for; without it, four for each symbol are
                assumed and the model ends the text itself.
            settings: Temperature, top_p and seed; None is greedy. Nothing else applies.

        Returns:
            The text.

        Raises:
            CodecMismatchError: Another codec wrote the symbols.
            UnknownSymbolError: The symbols are deeper than the codec.
            ConfigError: `n_tokens` is given for more than bare symbols, or below 1.
            ContextOverflowError: A span needs more positions than the base has.
        """  # noqa: DOC502 - some raised by the steps
        return self._texts([self._rows(document, n_tokens)], settings)[0]

    def decompress_many(
        self,
        documents: Sequence[Restorable],
        *,
        settings: GenerationSettings | None = None,
    ) -> list[str]:
        """One text per document, in order; spans of all documents share passes.

        Args:
            documents: What to read.
            settings: Temperature, top_p and seed; None is greedy.

        Returns:
            The texts.

        Raises:
            CodecMismatchError: Another codec wrote some of the symbols.
            UnknownSymbolError: Some symbols are deeper than the codec.
            ContextOverflowError: A span needs more positions than the base has.
        """  # noqa: DOC502 - raised by the steps
        return self._texts([self._rows(document, None) for document in documents], settings)

    def stream(
        self,
        document: Restorable,
        *,
        n_tokens: int | None = None,
        settings: GenerationSettings | None = None,
    ) -> Iterator[str]:
        """The text of `decompress`, piece by piece. Errors are raised before the first piece.

        Args:
            document: What to read.
            n_tokens: Tokens that bare symbols stand for.
            settings: Temperature, top_p and seed; None is greedy.

        Returns:
            Pieces of text, none empty.

        Raises:
            CodecMismatchError: Another codec wrote the symbols.
            UnknownSymbolError: The symbols are deeper than the codec.
            ConfigError: `n_tokens` is given for more than bare symbols, or below 1.
            ContextOverflowError: A span needs more positions than the base has.
        """  # noqa: DOC502 - some raised by the steps
        rows = self._rows(document, n_tokens)
        chosen = (settings or GenerationSettings()).replace(stop=())
        return self._stream(rows, chosen)

    def _stream(self, rows: list[Prefill], settings: GenerationSettings) -> Iterator[str]:
        feed = TextFeed(self.model.tokenizer)
        for row in rows:
            decoding = Decoding(self.model, "decompress", [row], settings=settings)
            while not decoding.done:
                for emitted in decoding.step():
                    if emitted.token is not None and (text := feed.push(emitted.token)):
                        yield text
        if text := feed.finish():
            yield text

    def _texts(
        self, documents: Sequence[list[Prefill]], settings: GenerationSettings | None
    ) -> list[str]:
        chosen = (settings or GenerationSettings()).replace(stop=())
        places = [(at, n) for at, rows in enumerate(documents) for n in range(len(rows))]
        # Longest first: rows of one pass then end at about the same time.
        places.sort(key=lambda place: -documents[place[0]][place[1]].max_new_tokens)
        ids: dict[tuple[int, int], tuple[int, ...]] = {}
        for start in range(0, len(places), self._batch_size):
            together = places[start : start + self._batch_size]
            prompts = [documents[at][n] for at, n in together]
            results = generate(self.model, "decompress", prompts, settings=chosen)
            ids.update((place, r.ids) for place, r in zip(together, results, strict=True))
        texts = []
        for at, rows in enumerate(documents):
            feed = TextFeed(self.model.tokenizer)
            pieces = [feed.push(token) for n in range(len(rows)) for token in ids[at, n]]
            texts.append("".join([*pieces, feed.finish()]))
        return texts

    def _rows(self, document: Restorable, n_tokens: int | None) -> list[Prefill]:
        """One prompt per span, checked."""
        model, vocabulary = self.model, self.model.vocabulary
        if not isinstance(document, Symbols) and n_tokens is not None:
            raise ConfigError(
                f"n_tokens={n_tokens} is for bare symbols; a {type(document).__name__} knows its "
                "own length",
                field="n_tokens",
                value=n_tokens,
            )
        if n_tokens is not None and n_tokens < 1:
            raise ConfigError(
                f"n_tokens must be 1 or more, got {n_tokens}", field="n_tokens", value=n_tokens
            )
        if isinstance(document, ZDocument):
            if document.codec != model.codec:
                raise CodecMismatchError(
                    f"the document was written by codec {document.codec[:12]}..., this model is "
                    f"{model.codec[:12]}...; load the bundle that wrote it, or compress the text "
                    "again"
                )
            vocabulary.check(document.symbols)
            return [self._row(layout, forced=True) for layout in span_layouts(model, document)]
        symbols = document.symbols if isinstance(document, ZSpan) else document
        ends = document.ends if isinstance(document, ZSpan) else None
        vocabulary.check(symbols)
        if isinstance(document, ZSpan):
            n_tokens = len(document.tokens)
        elif n_tokens is None and not len(symbols):
            return []
        length = n_tokens or round(DEFAULT_RATIO * len(symbols))
        nothing = Symbols((), vocabulary.size, vocabulary.tag)
        layout = lay_out(model, nothing, symbols, length, ends=ends)
        return [self._row(layout, forced=n_tokens is not None)]

    def _row(self, layout: SpanLayout, *, forced: bool) -> Prefill:
        model, m, n = self.model, layout.n_memory, layout.n_tokens
        start = model.embed_tokens(torch.tensor([[model.start_token]]))[0].detach()
        return Prefill(
            embeddings=torch.cat([layout.symbols, start]),
            positions=torch.cat([layout.positions, torch.tensor([m])]),
            next_position=m + 1,
            max_new_tokens=n if forced else min(2 * n, model.context_length - m - 1),
            forced=forced,
        )
