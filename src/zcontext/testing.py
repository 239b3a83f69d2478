"""ByteCodec: compresses and reads without a model, for tests and documentation.

It stands wherever a compressor, a decompressor or a reader is asked for, answers at once, and
shows afterwards exactly what arrived (`calls`). A token is a UTF-8 byte. A symbol holds the first
`depth` bytes of its segment; bytes that find no room become errata. Up to `depth` tokens per
symbol it is therefore lossless, and beyond that exact through errata, at any ratio.

Floor 0, standard library only. It knows no language: its answer to a question is the sentence of
the context that shares most words with it.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from zcontext.config import DEFAULT_WINDOW, CompressSettings, GenerationSettings
from zcontext.errors import ConfigError, ContextOverflowError
from zcontext.spans import Answer, ChatMessage, Fidelity, Part, StopReason, ZDocument, ZSpan
from zcontext.vocabulary import Symbols, ZVocabulary, utf8_bytes
from zcontext.windows import Extent, WindowPlan

SIZE: Final = 256
NO_ANSWER: Final = "The context does not say."
_PAD: Final = 0xFF  # never a byte of UTF-8
_MARK: Final = b"\x00"
_SENTENCE = re.compile(r"[^\s.!?][^.!?\n]*[.!?]*")
_QUESTION = re.compile(r"(?:question|query)\s*:\s*(.+)", re.IGNORECASE)
_NAME = re.compile(r"\w*\d\w*|\b[A-Z]\w+")


@dataclass(frozen=True, slots=True)
class ByteCall:
    """One call that a ByteCodec answered.

    Args:
        method: Name of the method.
        texts: The texts to compress, or the text asked about.
        parts: The prompt, or the symbols to decompress.
        settings: The settings in force.
    """

    method: str
    texts: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    settings: CompressSettings | GenerationSettings | None = None

    @property
    def n_symbols(self) -> int:
        """Symbols that arrived in `parts`."""
        return sum(len(part) for part in self.parts if isinstance(part, Symbols))


class ByteCodec:
    """A weightless `SupportsCompress`, `SupportsRead` and `SupportsDecompress`.

    It refuses what a real codec refuses, with the same errors: settings out of range and texts over
    `max_tokens` (ConfigError), lone surrogates (VocabularyError), text that spells symbols
    (SymbolCollisionError), symbols of another codec (CodecMismatchError) and prompts that leave no
    position for an answer (ContextOverflowError).

    Args:
        depth: Most bytes per symbol, 1..8.
        name: Codecs of different names have different digests and refuse each other's symbols.
        ratio: Tokens per symbol where a call gives no budget.
        context_length: Most positions a reader takes.

    Raises:
        VocabularyError: if `depth` is out of range.
        ConfigError: if `ratio` is out of range.
    """

    def __init__(
        self,
        *,
        depth: int = 8,
        name: str = "bytes",
        ratio: float = 4.0,
        context_length: int = 8192,
    ) -> None:
        self.codec = sha256(f"zcontext.ByteCodec.{name}".encode()).hexdigest()
        self.vocabulary = ZVocabulary(codec=self.codec, depth=depth, size=SIZE)
        self.context_length = context_length
        self.calls: list[ByteCall] = []
        self._default = CompressSettings(ratio=ratio)

    @property
    def settings(self) -> CompressSettings:
        """Used where a call gives none."""
        return self._default

    def compress(
        self,
        text: str,
        *,
        settings: CompressSettings | None = None,
        ratio: float | None = None,
        max_symbols: int | None = None,
        bits_per_symbol: float | None = None,
        depth: int | None = None,
    ) -> ZDocument:
        """One text as a document; a byte counts as 8 bits of surprisal."""
        chosen = (settings or self._default).replace(
            ratio=ratio, max_symbols=max_symbols, bits_per_symbol=bits_per_symbol, depth=depth
        )
        self.calls.append(ByteCall("compress", texts=(text,), settings=chosen))
        return self._write(text, chosen)

    def compress_many(
        self,
        texts: Sequence[str],
        *,
        settings: CompressSettings | None = None,
        ratio: float | None = None,
        max_symbols: int | None = None,
        bits_per_symbol: float | None = None,
        depth: int | None = None,
        progress: bool = False,
    ) -> list[ZDocument]:
        """One `compress` per text, in order; `progress` is taken and shows nothing."""
        chosen = (settings or self._default).replace(
            ratio=ratio, max_symbols=max_symbols, bits_per_symbol=bits_per_symbol, depth=depth
        )
        self.calls.append(ByteCall("compress_many", texts=tuple(texts), settings=chosen))
        return [self._write(text, chosen) for text in texts]

    def count_tokens(self, text: str) -> int:
        """UTF-8 bytes of a text."""
        return len(utf8_bytes(text))

    def _write(self, text: str, settings: CompressSettings) -> ZDocument:
        text = self.vocabulary.guard(text, on_symbols=settings.on_symbols)
        data = utf8_bytes(text)
        if len(data) > settings.max_tokens:
            raise ConfigError(
                f"The text has {len(data):,} tokens, max_tokens is {settings.max_tokens:,}: raise "
                "it, or split the text.",
                field="max_tokens",
                value=settings.max_tokens,
            )
        depth = self.vocabulary.depth if settings.depth is None else settings.depth
        if depth > self.vocabulary.depth:
            raise ConfigError(
                f"depth={depth}: this codec has {self.vocabulary.depth} codes per symbol at most.",
                field="depth",
                value=depth,
            )
        budget = self._budget(len(data), settings)
        plan = WindowPlan(window=settings.window or DEFAULT_WINDOW, context=settings.context)
        spans: list[ZSpan] = []
        char = 0
        for window in plan.cover(len(data), allowed=_CharacterStarts(data)):
            start, end = window.target.start, window.target.end
            # Shares of one budget: they add up to it whatever the windows are.
            share = end * budget // len(data) - start * budget // len(data)
            n_chars = len(data[start:end].decode("utf-8"))
            chars = Extent(char, char + n_chars)
            span = self._span(data[start:end], share, depth, window.target, chars)
            if settings.exact:  # a mark in front: what was asked for is then known to be there
                span = replace(span, errata=_MARK + span.errata)
            spans.append(span)
            char += n_chars
        return ZDocument(
            spans=tuple(spans),
            codec=self.codec,
            n_tokens=len(data),
            n_chars=len(text),
            n_bytes=len(data),
            text_sha256=sha256(data).hexdigest(),
            depth=depth,
            size=SIZE,
        )

    def _budget(self, n_tokens: int, settings: CompressSettings) -> int:
        if settings.max_symbols is not None:
            return min(settings.max_symbols, n_tokens)
        if settings.bits_per_symbol is not None:
            return min(math.ceil(8 * n_tokens / settings.bits_per_symbol), n_tokens)
        return math.ceil(n_tokens / (settings.ratio or self._default.ratio or 1.0))

    def _span(self, data: bytes, n: int, depth: int, tokens: Extent, chars: Extent) -> ZSpan:
        codes: list[tuple[int, ...]] = []
        errata = b"" if n else data
        for start, end in _segments(len(data), n):
            piece = data[start:end]
            codes.append(tuple(piece[:depth].ljust(depth, bytes([_PAD]))))
            errata += piece[depth:]
        symbols = Symbols(tuple(codes), SIZE, self.vocabulary.tag)
        lost: tuple[str, ...] = ()
        if errata:
            readable = set(_NAME.findall(_read(symbols)))
            lost = tuple(sorted(set(_NAME.findall(data.decode())) - readable))
        accuracy = 1.0 - len(errata) / len(data)
        fidelity = Fidelity(accuracy, 8.0 * len(errata), lost)
        return ZSpan(symbols, tokens, chars, errata, fidelity)

    def decompress(
        self, document: ZDocument | Symbols, *, settings: GenerationSettings | None = None
    ) -> str:
        """The exact text of a document, or what bare symbols still hold of one."""
        symbols = document if isinstance(document, Symbols) else document.symbols
        self.calls.append(ByteCall("decompress", parts=(symbols,), settings=settings))
        self.vocabulary.check(symbols)
        if isinstance(document, Symbols):
            return _read(document)
        return b"".join(map(_exact, document.spans)).decode("utf-8")

    def decompress_many(
        self,
        documents: Sequence[ZDocument | Symbols],
        *,
        settings: GenerationSettings | None = None,
    ) -> list[str]:
        """One text per document, in order."""
        return [self.decompress(document, settings=settings) for document in documents]

    def count(self, parts: Sequence[Part]) -> int:
        """Positions: one per byte of text, one per symbol."""
        return len(self.token_ids(parts))

    def token_ids(self, parts: Sequence[Part]) -> list[int]:
        """Bytes of text as they are, and 256 plus the first code for each symbol."""
        ids: list[int] = []
        for part in parts:
            if isinstance(part, Symbols):
                self.vocabulary.check(part)
                ids.extend(SIZE + code[0] for code in part.codes)
            else:
                ids.extend(utf8_bytes(self.vocabulary.guard(part)))
        return ids

    def complete(
        self, parts: Sequence[Part], *, settings: GenerationSettings | None = None
    ) -> Answer:
        """The sentence of the prompt that shares most words with the question in it.

        The question is what follows the last "Question:" or "Query:", else the last line of text.
        Sentences that arrived as symbols are preferred to those that arrived as text.

        Args:
            parts: The prompt.
            settings: How much to generate and where to stop; the sampling is ignored.

        Returns:
            The answer; `NO_ANSWER` if no sentence shares a word with the question.
        """
        text = "\n".join(part for part in parts if isinstance(part, str))
        found = _QUESTION.findall(text)
        lines = [line for line in text.splitlines() if line.strip()]
        question = str(found[-1] if found else lines[-1] if lines else "").strip()
        return self._answer("complete", question, parts, settings)

    def stream(
        self, parts: Sequence[Part], *, settings: GenerationSettings | None = None
    ) -> Iterator[str]:
        """The text of `complete`, word by word."""
        return iter(re.findall(r"\s*\S+|\s+\Z", self.complete(parts, settings=settings).text))

    def chat(
        self, messages: Sequence[ChatMessage], *, settings: GenerationSettings | None = None
    ) -> Answer:
        """`complete` of all messages, each on a line of its own."""
        return self.complete(_flat(messages), settings=settings)

    def stream_chat(
        self, messages: Sequence[ChatMessage], *, settings: GenerationSettings | None = None
    ) -> Iterator[str]:
        """The text of `chat`, word by word."""
        return self.stream(_flat(messages), settings=settings)

    def ask(
        self,
        question: str,
        context: Sequence[Part],
        *,
        settings: GenerationSettings | None = None,
    ) -> Answer:
        """The sentence of the context that shares most words with the question."""
        return self._answer("ask", question, [*context, f"\n{question}"], settings)

    def _answer(
        self, method: str, question: str, parts: Sequence[Part], settings: GenerationSettings | None
    ) -> Answer:
        started = time.perf_counter()
        chosen = settings or GenerationSettings()
        self.calls.append(ByteCall(method, (question,), tuple(parts), chosen))
        n_prompt = self.count(parts)
        if n_prompt >= self.context_length:
            raise ContextOverflowError(
                f"The prompt takes {n_prompt:,} positions of {self.context_length:,} and leaves "
                "none for an answer: compress more, or give fewer documents."
            )
        symbols = " ".join(_read(part) for part in parts if isinstance(part, Symbols))
        plain = "\n".join(part for part in parts if isinstance(part, str)).replace(question, "\n")
        text = _closest(question, symbols) or _closest(question, plain) or NO_ANSWER
        limit = min(chosen.max_new_tokens, self.context_length - n_prompt)
        text, reason = _cut(text, limit=limit, stop=chosen.stop)
        n_symbols = sum(len(part) for part in parts if isinstance(part, Symbols))
        return Answer(
            text=text,
            stop_reason=reason,
            n_prompt_tokens=n_prompt - n_symbols,
            n_prompt_symbols=n_symbols,
            n_output_tokens=len(text.encode()),
            seconds=time.perf_counter() - started,
        )


@dataclass(frozen=True, slots=True)
class _CharacterStarts:
    """The byte offsets at which a character starts, as a container."""

    data: bytes

    def __contains__(self, offset: object) -> bool:
        return isinstance(offset, int) and self.data[offset] & 0xC0 != 0x80


def _segments(n_bytes: int, n_symbols: int) -> Iterator[tuple[int, int]]:
    for k in range(n_symbols):
        yield k * n_bytes // n_symbols, (k + 1) * n_bytes // n_symbols


def _read(symbols: Symbols) -> str:
    data = bytes(byte for code in symbols.codes for byte in code if byte != _PAD)
    return data.decode("utf-8", "replace")


def _exact(span: ZSpan) -> bytes:
    """The bytes of a span: each segment's from its symbol, then from the errata."""
    if not len(span.symbols):
        return span.errata[-len(span.tokens) :]
    pieces: list[bytes] = []
    segments = list(_segments(len(span.tokens), len(span.symbols)))
    n_kept = [
        min(len(code), end - start)
        for (start, end), code in zip(segments, span.symbols.codes, strict=True)
    ]
    at = len(span.errata) - (len(span.tokens) - sum(n_kept))  # behind the mark, if there is one
    for (start, end), kept, code in zip(segments, n_kept, span.symbols.codes, strict=True):
        rest = end - start - kept
        pieces.append(bytes(code[:kept]) + span.errata[at : at + rest])
        at += rest
    return b"".join(pieces)


def _flat(messages: Sequence[ChatMessage]) -> list[Part]:
    parts: list[Part] = []
    for message in messages:
        parts.extend(["\n", *message.parts] if parts else message.parts)
    return parts


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 2}


def _closest(question: str, text: str) -> str:
    """The first of the sentences that share most words with the question; '' if none does."""
    wanted = _words(question)
    best, most = "", 0
    for sentence in _SENTENCE.findall(text):
        shared = len(wanted & _words(sentence))
        if shared > most:
            best, most = sentence.strip(), shared
    return best


def _cut(text: str, *, limit: int, stop: Sequence[str]) -> tuple[str, StopReason]:
    """What generation would have written: up to a stop sequence, or to `limit` bytes."""
    ends = [at for at in (text.find(sequence) for sequence in stop) if at >= 0]
    stopped = text[: min(ends)] if ends else text
    if len(stopped.encode()) > limit:
        return text.encode()[:limit].decode("utf-8", "ignore"), "length"
    return stopped, "stop" if ends else "end"
