"""ZDecompressor: symbols in, the text they stand for out.

It lays out spans as the decompressor was trained on them and leaves the rest to the decoding loop.
What it does not know: how symbols are written, what a prompt is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch

from zcontext.config import DEFAULT_RATIO, GenerationSettings
from zcontext.errata import Errata
from zcontext.errors import ConfigError, CorruptSpanError
from zcontext.generation import Decoding, Prefill, generate
from zcontext.layouts import (
    SpanLayout,
    embed_symbols,
    ends_of_names,
    lay_out,
    lay_span,
    span_layouts,
)
from zcontext.model import ZLanguageModel
from zcontext.spans import ZDocument, ZSpan
from zcontext.text_feed import TextFeed
from zcontext.tokenization import decoded, special_ids, text_tokenizer
from zcontext.vocabulary import Symbols

__all__ = [
    "Restorable",
    "SpanLayout",
    "ZDecompressor",
    "embed_symbols",
    "lay_out",
    "span_layouts",
]

Restorable = ZDocument | ZSpan | Symbols
_Reading = Prefill | tuple[int, ...] | str


@dataclass(frozen=True, slots=True)
class _Job:
    """One text to be read back.

    Attributes:
        rows: A prompt for each span, or its tokens where the codes spell them out, or its text.
        errata: Of each span; empty if there are none at all.
        text_sha256: What the text must be; None if that is not known.
    """

    rows: tuple[_Reading, ...]
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
        self._special = special_ids(model.tokenizer)

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
            n_tokens: Tokens that bare symbols stand for; without it, and where their names do not
                tell, four for each symbol are assumed and the model ends the text itself.
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

    def _stream(self, rows: Sequence[_Reading], settings: GenerationSettings) -> Iterator[str]:
        feed = TextFeed(self.model.tokenizer)
        for row in rows:
            if isinstance(row, str):
                yield feed.finish() + row
                feed = TextFeed(self.model.tokenizer)
                continue
            if isinstance(row, tuple):
                yield from filter(None, map(feed.push, row))
                continue
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
            if isinstance(row, str):
                text = row
            else:
                if isinstance(row, Prefill):
                    (made,) = generate(self.model, "decompress", [row], settings=settings)
                    row = made.ids
                text = errata.apply(decoded(self.model.tokenizer, row))
            digest.update(text.encode("utf-8", "replace"))
            if text:
                yield text
        job.check(digest.hexdigest())

    def _texts(self, jobs: Sequence[_Job], settings: GenerationSettings | None) -> list[str]:
        chosen = (settings or GenerationSettings()).replace(stop=())
        prompts = {
            (at, n): row
            for at, job in enumerate(jobs)
            for n, row in enumerate(job.rows)
            if isinstance(row, Prefill)
        }
        # Longest first: rows of one pass then end at about the same time.
        places = sorted(prompts, key=lambda place: -prompts[place].max_new_tokens)
        ids: dict[tuple[int, int], tuple[int, ...]] = {}
        for start in range(0, len(places), self._batch_size):
            together = places[start : start + self._batch_size]
            rows = [prompts[place] for place in together]
            results = generate(self.model, "decompress", rows, settings=chosen)
            ids.update((place, r.ids) for place, r in zip(together, results, strict=True))
        texts = []
        for at, job in enumerate(jobs):
            made = [
                ids[at, n] if isinstance(row, Prefill) else row for n, row in enumerate(job.rows)
            ]
            text = self._text(made, job.errata)
            if job.errata:
                job.check(sha256(text.encode("utf-8", "replace")).hexdigest())
            texts.append(text)
        return texts

    def _text(self, made: Sequence[tuple[int, ...] | str], errata: Sequence[Errata]) -> str:
        """What was generated and what is text, in order, corrected."""
        tokenizer = self.model.tokenizer
        pieces: list[str] = []
        if errata:
            for each, row in zip(errata, made, strict=True):
                pieces.append(row if isinstance(row, str) else each.apply(decoded(tokenizer, row)))
            return "".join(pieces)
        feed = TextFeed(tokenizer)
        for row in made:
            if isinstance(row, str):
                pieces += [feed.finish(), row]
                feed = TextFeed(tokenizer)
            else:
                pieces += [feed.push(token) for token in row]
        return "".join([*pieces, feed.finish()])

    def _job(
        self, document: Restorable, n_tokens: int | None, settings: GenerationSettings | None
    ) -> _Job:
        """What is to be read, with its errata, checked."""
        sampled = settings is not None and settings.temperature > 0
        rows = self._rows(document, n_tokens, sampled=sampled)
        spans: tuple[ZSpan, ...] = ()
        if not isinstance(document, Symbols):
            spans = document.spans if isinstance(document, ZDocument) else (document,)
        exact = isinstance(document, ZDocument) and document.exact and bool(spans)
        if not exact and not any(span.errata for span in spans):
            return _Job(tuple(rows))
        if settings is not None and sampled:
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
        corrected = tuple(_corrected(row, e) for row, e in zip(rows, errata, strict=True))
        if isinstance(document, ZDocument) and exact:
            return _Job(corrected, errata, document.text_sha256)
        return _Job(corrected, errata)

    def _rows(self, document: Restorable, n_tokens: int | None, *, sampled: bool) -> list[_Reading]:
        """One prompt per span, or its text; checked."""
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
            document.check_codec(model.codec)
            vocabulary.check(document.symbols)
            layouts = zip(document.spans, span_layouts(model, document), strict=True)
            return [self._span_row(span, layout, sampled=sampled) for span, layout in layouts]
        if isinstance(document, ZSpan) and document.is_literal:
            return [document.literals[0].text]
        nothing = Symbols((), vocabulary.size, vocabulary.tag)
        if isinstance(document, ZSpan):
            vocabulary.check(document.symbols)
            layout = lay_span(model, nothing, document)
            return [self._span_row(document, layout, sampled=sampled)]
        vocabulary.check(document)
        if n_tokens is None and not len(document):
            return []
        ends = ends_of_names(model, document, n_tokens)
        known = ends[-1] if ends else n_tokens
        n = known or round(DEFAULT_RATIO * len(document))
        layout = lay_out(model, nothing, document, n, ends=ends)
        spelled = None if sampled else self._spelled(layout, {})
        return [spelled or self._row(layout, forced=known is not None)]

    def _span_row(self, span: ZSpan, layout: SpanLayout, *, sampled: bool) -> _Reading:
        """The prompt of a span, whose literals stand in its text whatever the model says."""
        if span.is_literal:
            return span.literals[0].text
        row = self._row(layout, forced=True)
        plain = text_tokenizer(self.model.tokenizer)
        known: dict[int, int] = {}
        for literal in span.literals:
            ids = plain.ids(literal.text)
            if len(ids) != len(literal.tokens):
                raise CorruptSpanError(
                    f"the literal {literal.text[:20]!r} is {len(ids)} tokens of this base, the "
                    f"span says {len(literal.tokens)}: it was altered, or written with another "
                    "tokenizer. Compress the source text again"
                )
            known.update(zip(range(literal.tokens.start, literal.tokens.end), ids, strict=True))
        spelled = None if sampled else self._spelled(layout, known)
        return spelled or dataclasses.replace(row, corrections=known)

    def _spelled(self, layout: SpanLayout, known: Mapping[int, int]) -> tuple[int, ...] | None:
        """The tokens, if codes spell out all that is not known: certain, and no pass of the model.

        Args:
            layout: Of a span or of bare symbols.
            known: Tokens that are kept as text, by place.
        """
        if layout.voices is None:
            return None
        tokens = [known.get(at, token) for at, token in enumerate(layout.voices.spelled())]
        found = tuple(token for token in tokens if token is not None)
        return found if len(found) == len(tokens) and self._special.isdisjoint(found) else None

    def _row(self, layout: SpanLayout, *, forced: bool) -> Prefill:
        model, m, n = self.model, layout.n_memory, layout.n_tokens
        start = model.embed_tokens(torch.tensor([[model.start_token]]))[0].detach()
        return Prefill(
            embeddings=torch.cat([layout.symbols, start]),
            positions=torch.cat([layout.positions, torch.tensor([m])]),
            next_position=m + 1,
            max_new_tokens=n if forced else min(2 * n, model.context_length - m - 1),
            forced=forced,
            voices=layout.voices,
        )


def _corrected(row: _Reading, errata: Errata) -> _Reading:
    """A reading whose wrong tokens are replaced."""
    if isinstance(row, str):
        return row
    if isinstance(row, tuple):
        right = dict(errata.tokens)
        return tuple(right.get(at, token) for at, token in enumerate(row))
    return dataclasses.replace(row, corrections={**row.corrections, **dict(errata.tokens)})
