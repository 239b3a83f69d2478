"""What travels between the parts: prompts, answers, and who can compress, read and decompress.

Engines, adapters for frameworks and tests meet in the Protocols of this module and need not know
each other: `ZCompressor` and `zcontext.testing.ByteCodec` are both a `SupportsCompress`.

Floor 0, standard library only. The values themselves live in `documents` and are offered here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, get_args, runtime_checkable

from zcontext.documents import ZDocument
from zcontext.errors import SpanError
from zcontext.symbols import Symbols
from zcontext.vocabulary import ZVocabulary
from zcontext.zspan import Fidelity, LiteralText, ZSpan

if TYPE_CHECKING:
    from zcontext.config import CompressSettings, GenerationSettings
    from zcontext.pruning import PrunedText

__all__ = [
    "QUESTION_PROMPT",
    "Answer",
    "ChatMessage",
    "Fidelity",
    "LiteralText",
    "Part",
    "StopReason",
    "SupportsCompress",
    "SupportsDecompress",
    "SupportsPrune",
    "SupportsRead",
    "ZDocument",
    "ZSpan",
    "written_parts",
]

Part = str | Symbols
"""A piece of a prompt: ordinary text, or symbols. A symbol is never spelled inside a str."""


def written_parts(vocabulary: ZVocabulary, parts: Sequence[Part]) -> str:
    """Parts as one string, which `ZVocabulary.split` takes apart again.

    Args:
        vocabulary: Of the codec that wrote the symbols.
        parts: As `ZDocument.parts` has them: texts are neither blank nor next to each other.

    Returns:
        Written symbols and texts, nothing between them.

    Raises:
        CodecMismatchError: if symbols come from another codec.
        UnknownSymbolError: if they are deeper than the codec's.
    """  # noqa: DOC502 - raised by the vocabulary
    return "".join(part if isinstance(part, str) else vocabulary.render(part) for part in parts)


UNKNOWN: Final = "unknown"
"""What a reader answers when the context does not say."""

QUESTION_PROMPT: Final = (
    "Context:\n{context}\n\nQuestion: {question}\nAnswer in a few words, from the context alone. "
    "If it does not say, answer: unknown."
)
"""The user message that readers are trained on, with `{context}` and `{question}` to be filled in.

`ask` fills it in by itself; for templates of your own give other names with `str.format`, as
`QUESTION_PROMPT.format(context="{context}", question="{input}")`.
"""

StopReason = Literal["end", "length", "stop"]
"""Why generation ended: the model's end token, the token limit, or a stop sequence."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reader generated.

    Args:
        text: The generated text, without the stop sequence.
        stop_reason: Why it ended.
        n_prompt_tokens: Base tokens in the prompt.
        n_prompt_symbols: Symbols in the prompt.
        n_output_tokens: Base tokens generated.
        seconds: Time it took.

    Raises:
        SpanError: if the stop reason is unknown or a number is negative.
    """

    text: str
    stop_reason: StopReason
    n_prompt_tokens: int
    n_prompt_symbols: int
    n_output_tokens: int
    seconds: float

    def __post_init__(self) -> None:
        if self.stop_reason not in get_args(StopReason):
            raise SpanError(
                f"stop_reason={self.stop_reason!r}: give one of {', '.join(get_args(StopReason))}."
            )
        for name in ("n_prompt_tokens", "n_prompt_symbols", "n_output_tokens", "seconds"):
            if getattr(self, name) < 0:
                raise SpanError(f"{name}={getattr(self, name)!r}: a count or time is 0 or more.")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation.

    Args:
        role: "system", "user", "assistant", or what the base's chat template knows.
        parts: Its content, text and symbols in order.

    Raises:
        SpanError: if the role is empty or a part is neither str nor Symbols.
    """

    role: str
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or not self.role:
            raise SpanError(f"role={self.role!r}: give a non-empty str such as 'user'.")
        if not isinstance(self.parts, tuple):
            raise SpanError(f"parts is a {type(self.parts).__name__}: give a tuple of parts.")
        for part in self.parts:
            if not isinstance(part, str | Symbols):
                raise SpanError(f"a part is a {type(part).__name__}: give str or Symbols.")


@runtime_checkable
class SupportsCompress(Protocol):
    """Writes documents of symbols."""

    @property
    def vocabulary(self) -> ZVocabulary:
        """The symbols it writes."""

    @property
    def codec(self) -> str:
        """Digest of its codec, 64 hex digits."""

    @property
    def settings(self) -> CompressSettings:
        """Used where a call gives none."""

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
        """One text as a document; keywords given replace those of `settings`."""

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
        """One document per text, in order, equal to compressing them one by one."""

    def count_tokens(self, text: str) -> int:
        """Base tokens of a text."""


@runtime_checkable
class SupportsFocus(Protocol):
    """Writes texts that were found for one question, so that they share one budget."""

    @property
    def refocuses(self) -> bool:
        """Whether documents are written again for the question; they stay as they are if not."""

    def compress_together(
        self,
        texts: Sequence[str | ZDocument],
        *,
        question: str,
        settings: CompressSettings | None = None,
        ratio: float | None = None,
        depth: int | None = None,
    ) -> list[ZDocument]:
        """One document per text, or per document that was stored, in order.

        Those that answer the question take symbols from the others; a stored document brings those
        that it has.
        """


@runtime_checkable
class SupportsRead(Protocol):
    """Generates text from prompts of text and symbols."""

    @property
    def vocabulary(self) -> ZVocabulary:
        """The symbols it reads."""

    @property
    def codec(self) -> str:
        """Digest of its codec, 64 hex digits."""

    @property
    def context_length(self) -> int:
        """Most positions, prompt and answer together."""

    def complete(
        self, parts: Sequence[Part], *, settings: GenerationSettings | None = None
    ) -> Answer:
        """What follows the parts."""

    def stream(
        self, parts: Sequence[Part], *, settings: GenerationSettings | None = None
    ) -> Iterator[str]:
        """The text of `complete`, piece by piece; a generator may return the `Answer`."""

    def chat(
        self, messages: Sequence[ChatMessage], *, settings: GenerationSettings | None = None
    ) -> Answer:
        """The assistant's next turn."""

    def stream_chat(
        self, messages: Sequence[ChatMessage], *, settings: GenerationSettings | None = None
    ) -> Iterator[str]:
        """The text of `chat`, piece by piece; a generator may return the `Answer`."""

    def ask(
        self,
        question: str,
        context: Sequence[Part],
        *,
        settings: GenerationSettings | None = None,
    ) -> Answer:
        """The answer to a question about a context."""

    def count(self, parts: Sequence[Part]) -> int:
        """Positions the parts take: one per base token, one per symbol."""

    def token_ids(self, parts: Sequence[Part]) -> list[int]:
        """Ids for counters: base ids for text, one id beyond them per symbol."""


@runtime_checkable
class SupportsDecompress(Protocol):
    """Turns symbols back into text."""

    def decompress(
        self, document: ZDocument | Symbols, *, settings: GenerationSettings | None = None
    ) -> str:
        """The text of a document (exact where errata say so) or of bare symbols."""

    def decompress_many(
        self,
        documents: Sequence[ZDocument | Symbols],
        *,
        settings: GenerationSettings | None = None,
    ) -> list[str]:
        """One text per document, in order."""


@runtime_checkable
class SupportsPrune(Protocol):
    """Cuts texts down to readable texts, for readers that know no symbols."""

    def prune_many(
        self, texts: Sequence[str], *, settings: CompressSettings | None = None
    ) -> list[PrunedText]:
        """One pruned text per text, in order, each within the budget of the settings."""

    def count_tokens(self, text: str) -> int:
        """Base tokens of a text."""
