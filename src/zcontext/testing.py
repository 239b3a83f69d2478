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

from zcontext.byte_spans import (
    SIZE,
    CharacterStarts,
    byte_extents,
    byte_span,
    exact_bytes,
    literal_span,
    read_bytes,
)
from zcontext.config import DEFAULT_WINDOW, CompressSettings, GenerationSettings
from zcontext.errors import ConfigError, ContextOverflowError
from zcontext.fragile import protected_places
from zcontext.literals import lay_windows, symbols_beside
from zcontext.pruning import PrunedText, prune_text
from zcontext.spans import (
    Answer,
    ChatMessage,
    Part,
    StopReason,
    ZDocument,
    ZSpan,
)
from zcontext.vocabulary import Symbols, ZVocabulary, utf8_bytes
from zcontext.windows import Extent, WindowPlan

NO_ANSWER: Final = "The context does not say."
_MARK: Final = b"\x00"
_SENTENCE = re.compile(r"[^\s.!?][^.!?\n]*[.!?]*")
_QUESTION = re.compile(r"(?:question|query)\s*:\s*(.+)", re.IGNORECASE)


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
        utf8_bytes(text)  # what is no text at all is refused before it is looked at
        text = self.vocabulary.guard(text, on_symbols=settings.on_symbols)
        data = utf8_bytes(text)
        _check_length(len(data), settings)
        depth = self.vocabulary.depth if settings.depth is None else settings.depth
        if depth > self.vocabulary.depth:
            raise ConfigError(
                f"depth={depth}: this codec has {self.vocabulary.depth} codes per symbol at most.",
                field="depth",
                value=depth,
            )
        literals = byte_extents(text, protected_places(text, settings.protect))
        n_literal = sum(map(len, literals))
        budget = self._budget(len(data), n_literal, settings)
        plan = WindowPlan(window=settings.window or DEFAULT_WINDOW, context=settings.context)
        spans: list[ZSpan] = []
        char = done = 0
        tag = self.vocabulary.tag
        for laid in lay_windows(plan, len(data), blocks=literals, allowed=CharacterStarts(data)):
            target = laid.window.target
            piece = data[target.start : target.end]
            chars = Extent(char, char + len(piece.decode("utf-8")))
            char = chars.end
            if not laid.n_free:
                spans.append(literal_span(piece.decode(), target, chars, tag=tag))
                continue
            # Shares of one budget: they add up to it whatever the windows are.
            n_free, before = len(data) - n_literal, done
            done += len(target)
            share = done * budget // n_free - before * budget // n_free
            span = byte_span(piece, share, depth, target, chars, tag=tag)
            if settings.exact:  # a mark in front: what was asked for is then known to be there
                span = replace(span, errata=_MARK + span.errata)
            spans.append(span)
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

    def _budget(self, n_tokens: int, n_literal: int, settings: CompressSettings) -> int:
        """Symbols for the bytes that are not kept as text."""
        n_free = n_tokens - n_literal
        if settings.max_symbols is not None:
            return symbols_beside(n_tokens, n_literal, max_symbols=settings.max_symbols)
        if settings.bits_per_symbol is not None:
            return min(math.ceil(8 * n_free / settings.bits_per_symbol), n_free)
        ratio = settings.ratio or self._default.ratio or 1.0
        wanted = math.ceil(n_tokens / ratio) - n_literal
        return min(n_free, max(1, wanted)) if n_literal else wanted

    def prune_many(
        self, texts: Sequence[str], *, settings: CompressSettings | None = None
    ) -> list[PrunedText]:
        """Texts cut down under the budget of the settings; a byte is worth 8 bits."""
        chosen = settings or self._default
        self.calls.append(ByteCall("prune_many", texts=tuple(texts), settings=chosen))
        return [self._prune(text, chosen) for text in texts]

    def _prune(self, text: str, settings: CompressSettings) -> PrunedText:
        utf8_bytes(text)
        text = self.vocabulary.guard(text, on_symbols=settings.on_symbols)
        starts = [at for at, character in enumerate(text) for _ in character.encode("utf-8")]
        _check_length(len(starts), settings)
        budget = self._budget(len(starts), 0, settings)
        count, bits = self.count_tokens, [8.0] * len(starts)
        return prune_text(
            text, starts=starts, bits=bits, budget=budget, count=count, protect=settings.protect
        )

    def decompress(
        self, document: ZDocument | Symbols, *, settings: GenerationSettings | None = None
    ) -> str:
        """The exact text of a document, or what bare symbols still hold of one."""
        symbols = document if isinstance(document, Symbols) else document.symbols
        self.calls.append(ByteCall("decompress", parts=(symbols,), settings=settings))
        self.vocabulary.check(symbols)
        if isinstance(document, Symbols):
            return read_bytes(document)
        return b"".join(map(exact_bytes, document.spans)).decode("utf-8")

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
        symbols = " ".join(read_bytes(part) for part in parts if isinstance(part, Symbols))
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


def _check_length(n_tokens: int, settings: CompressSettings) -> None:
    if n_tokens > settings.max_tokens:
        raise ConfigError(
            f"The text has {n_tokens:,} tokens, max_tokens is {settings.max_tokens:,}: raise it, "
            "or split the text.",
            field="max_tokens",
            value=settings.max_tokens,
        )
