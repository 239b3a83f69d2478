"""ZDecompressor: symbols in, the text they stand for out.

It lays out spans as the decompressor was trained on them and leaves the rest to the decoding loop.
What it does not know: how symbols are written, what a prompt is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from zcontext.config import DEFAULT_RATIO, GenerationSettings
from zcontext.errata import Errata
from zcontext.errors import (
    CodecMismatchError,
    ConfigError,
    ContextOverflowError,
    CorruptSpanError,
)
from zcontext.generation import Decoding, Prefill, generate
from zcontext.model import ZLanguageModel
from zcontext.spans import ZDocument, ZSpan
from zcontext.text_feed import TextFeed
from zcontext.tokenization import decoded
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


@dataclass(frozen=True, slots=True)
class _Job:
    """One text to be read back.

    Attributes:
        rows: A prompt for each span.
        errata: Of each span; empty if there are none at all.
        text_sha256: What the text must be; None if that is not known.
    """

    rows: tuple[Prefill, ...]
    errata: tuple[Errata, ...] = ()
    text_sha256: str | None = None

    def check(self, digest: str) -> None:
        """Raise CorruptSpanError unless the text is what it must be."""
        if self.text_sha256 not in (None, digest):
            raise CorruptSpanError(
                "the text read back from an exact document is not its source (SHA-256 "
                f"{digest[:12]}... instead of {(self.text_sha256 or '')[:12]}...): this model "
                "gives other scores than the one it was written with. Load the bundle with the "
                "base, quantization and dtype of then, or compress the source again"
            )


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
        A document written with `exact=True` gives its source, to the last character, and is
        checked. A span on its own is read without the symbols that stood before it; its errata
        are applied, and make it exact where it was written without memory.

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
            ConfigError: `n_tokens` is given for more than bare symbols, or below 1; or errata are
                to be applied to sampled text.
            ContextOverflowError: A span needs more positions than the base has.
            CorruptSpanError: Errata cannot be read, or what was to be exact is not.
        """  # noqa: DOC502 - some raised by the steps
        return self._texts([self._job(document, n_tokens, settings)], settings)[0]

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
            ConfigError: Errata are to be applied to sampled text.
            ContextOverflowError: A span needs more positions than the base has.
            CorruptSpanError: Errata cannot be read, or what was to be exact is not.
        """  # noqa: DOC502 - raised by the steps
        jobs = [self._job(document, None, settings) for document in documents]
        return self._texts(jobs, settings)

    def stream(
        self,
        document: Restorable,
        *,
        n_tokens: int | None = None,
        settings: GenerationSettings | None = None,
    ) -> Iterator[str]:
        """The text of `decompress`, piece by piece. Wrong input raises before the first piece.

        Args:
            document: What to read.
            n_tokens: Tokens that bare symbols stand for.
            settings: Temperature, top_p and seed; None is greedy.

        Returns:
            Pieces of text, none empty; whole spans where there are errata. That what was to be
            exact is not can only be known, and raised, behind the last one.

        Raises:
            CodecMismatchError: Another codec wrote the symbols.
            UnknownSymbolError: The symbols are deeper than the codec.
            ConfigError: `n_tokens` is given for more than bare symbols, or below 1; or errata are
                to be applied to sampled text.
            ContextOverflowError: A span needs more positions than the base has.
            CorruptSpanError: Errata cannot be read, or what was to be exact is not.
        """  # noqa: DOC502 - some raised by the steps
        job = self._job(document, n_tokens, settings)
        chosen = (settings or GenerationSettings()).replace(stop=())
        return self._exact_stream(job, chosen) if job.errata else self._stream(job.rows, chosen)

    def _stream(self, rows: Sequence[Prefill], settings: GenerationSettings) -> Iterator[str]:
        feed = TextFeed(self.model.tokenizer)
        for row in rows:
            decoding = Decoding(self.model, "decompress", [row], settings=settings)
            while not decoding.done:
                for emitted in decoding.step():
                    if emitted.token is not None and (text := feed.push(emitted.token)):
                        yield text
        if text := feed.finish():
            yield text

    def _exact_stream(self, job: _Job, settings: GenerationSettings) -> Iterator[str]:
        digest = sha256()
        for row, errata in zip(job.rows, job.errata, strict=True):
            (made,) = generate(self.model, "decompress", [row], settings=settings)
            text = errata.apply(decoded(self.model.tokenizer, made.ids))
            digest.update(text.encode("utf-8", "replace"))
            if text:
                yield text
        job.check(digest.hexdigest())

    def _texts(self, jobs: Sequence[_Job], settings: GenerationSettings | None) -> list[str]:
        chosen = (settings or GenerationSettings()).replace(stop=())
        places = [(at, n) for at, job in enumerate(jobs) for n in range(len(job.rows))]
        # Longest first: rows of one pass then end at about the same time.
        places.sort(key=lambda place: -jobs[place[0]].rows[place[1]].max_new_tokens)
        ids: dict[tuple[int, int], tuple[int, ...]] = {}
        for start in range(0, len(places), self._batch_size):
            together = places[start : start + self._batch_size]
            prompts = [jobs[at].rows[n] for at, n in together]
            results = generate(self.model, "decompress", prompts, settings=chosen)
            ids.update((place, r.ids) for place, r in zip(together, results, strict=True))
        tokenizer = self.model.tokenizer
        texts = []
        for at, job in enumerate(jobs):
            made = [ids[at, n] for n in range(len(job.rows))]
            if job.errata:
                spans = zip(job.errata, made, strict=True)
                text = "".join(errata.apply(decoded(tokenizer, row)) for errata, row in spans)
                job.check(sha256(text.encode("utf-8", "replace")).hexdigest())
            else:
                feed = TextFeed(tokenizer)
                pieces = [feed.push(token) for row in made for token in row]
                text = "".join([*pieces, feed.finish()])
            texts.append(text)
        return texts

    def _job(
        self, document: Restorable, n_tokens: int | None, settings: GenerationSettings | None
    ) -> _Job:
        """What is to be read, with its errata, checked."""
        rows = self._rows(document, n_tokens)
        spans: tuple[ZSpan, ...] = ()
        if not isinstance(document, Symbols):
            spans = document.spans if isinstance(document, ZDocument) else (document,)
        if not any(span.errata for span in spans):
            return _Job(tuple(rows))
        if settings is not None and settings.temperature > 0:
            raise ConfigError(
                f"temperature={settings.temperature} samples text, and errata correct the text "
                "that greedy decoding gives: leave it at 0, or decompress the bare symbols",
                field="temperature",
                value=settings.temperature,
            )
        errata = tuple(
            Errata.from_bytes(span.errata, n_tokens=len(span.tokens)) if span.errata else Errata()
            for span in spans
        )
        corrected = tuple(
            dataclasses.replace(row, corrections=dict(e.tokens))
            for row, e in zip(rows, errata, strict=True)
        )
        if isinstance(document, ZDocument) and document.exact:
            return _Job(corrected, errata, document.text_sha256)
        return _Job(corrected, errata)

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
