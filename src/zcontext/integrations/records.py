"""The record of what was done to a chunk: key names, values, warnings, settings.

Everything a framework stores is flat (str, int, float), because vector stores refuse the rest.
Framework-free and free of torch; it decides nothing, `exchange` does.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from zcontext.budget import RATIOS
from zcontext.config import CompressSettings
from zcontext.errors import ConfigError
from zcontext.fragile import check_protect
from zcontext.spans import ZDocument

PREFIX: Final = "zcontext_"
"""All our metadata keys start with this, and all keys that start with it are ours."""
SPAN: Final = PREFIX + "span"
"""The stored span: `ZDocument.to_compact()`."""
ACTION: Final = PREFIX + "action"
"""What was done: an `Action`."""
REASON: Final = PREFIX + "reason"
"""Why text stayed text, or why a stored span was not used; absent if all went as asked."""
CODEC: Final = PREFIX + "codec"
N_TOKENS: Final = PREFIX + "n_tokens"
N_SYMBOLS: Final = PREFIX + "n_symbols"
ACCURACY: Final = PREFIX + "token_accuracy"
TEXT: Final = PREFIX + "text"
"""The source text, where `keep_text` asks for it."""
N_POSITIONS: Final = PREFIX + "n_positions"
"""Positions a reader spends where some are text: symbols and literals, or tokens of pruned text."""
KEPT: Final = PREFIX + "share_kept"
"""Share of the surprisal that pruned text has kept."""
LOST: Final = PREFIX + "lost"
"""Numbers, names, addresses and code that are not in pruned text: a JSON list."""
KEYS: Final = (
    *(SPAN, ACTION, REASON, CODEC, N_TOKENS, N_SYMBOLS, ACCURACY, TEXT),
    *(N_POSITIONS, KEPT, LOST),
)

Action = Literal["indexed", "swapped", "compressed", "refocused", "raw", "dropped", "pruned"]
Output = Literal["symbols", "text"]
Policy = Literal["refuse", "escape", "drop", "keep"]
Flat = str | int | float


class SpanWarning(UserWarning):
    """Something about spans that works, but not as it was meant to."""


class StaleSpanWarning(SpanWarning):
    """Stored spans were of no use, and their texts were compressed again."""


class UnreadableSymbolsWarning(SpanWarning):
    """A model that cannot read symbols was handed some."""


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """When text is exchanged for symbols, and for how many.

    Args:
        ratio: Tokens per symbol.
        max_symbols: Most symbols of one whole list of chunks, instead of a ratio.
        max_tokens: Most positions of one whole list of chunks when they are swapped: the best
            stay text, others become symbols, and those without room are dropped. `ratio` is then
            the lowest that symbols are planned at. Texts are indexed as without it.
        min_tokens: Shorter chunks stay text.
        min_accuracy: Chunks that read back worse than this share of tokens stay text.
        on_symbols: What to do with source text that spells symbols: "refuse" raises, "escape"
            and "drop" make it harmless, "keep" trusts well-formed symbols of this codec.
        keep_text: Keep the source text in the metadata when symbols take its place.
        compress: Further settings of the compressor; its budget holds if none is given here.
        query_aware: Write the texts for the question they were retrieved for, at query time and
            without stored spans, and what already is symbols again from these, where the codec's
            codes are names; texts are indexed as without it.
        output: "symbols", or "text" for readers that know none: shorter, readable text.
        protect: What is kept as text, besides what `compress` says; see `CompressSettings`.

    Raises:
        ConfigError: if a value is out of its range or two budgets are given.
    """

    ratio: float | None = None
    max_symbols: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 32
    min_accuracy: float | None = None
    on_symbols: Policy = "refuse"
    keep_text: bool = False
    compress: CompressSettings | None = None
    query_aware: bool = False
    output: Output = "symbols"
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        CompressSettings(ratio=self.ratio, max_symbols=self.max_symbols)  # checks both
        if self.max_tokens is not None:
            self._check_max_tokens()
        if type(self.min_tokens) is not int or self.min_tokens < 1:
            raise ConfigError(
                f"min_tokens={self.min_tokens!r}: give an integer of 1 or more.",
                field="min_tokens",
                value=self.min_tokens,
            )
        if self.min_accuracy is not None and not 0.0 <= self.min_accuracy <= 1.0:
            raise ConfigError(
                f"min_accuracy={self.min_accuracy!r}: give a share of tokens in 0..1, or None.",
                field="min_accuracy",
                value=self.min_accuracy,
            )
        if self.on_symbols not in get_args(Policy):
            raise ConfigError(
                f"on_symbols={self.on_symbols!r}: give one of {', '.join(get_args(Policy))}.",
                field="on_symbols",
                value=self.on_symbols,
            )
        if self.output not in get_args(Output) or (self.output == "text" and self.query_aware):
            raise ConfigError(
                f"output={self.output!r}, query_aware={self.query_aware}: give 'symbols', or "
                "'text' without query_aware.",
                field="output",
                value=self.output,
            )
        check_protect(self.protect)

    def question_of(self, query: str | None) -> str | None:
        """What texts are to be written for, given what was asked; None for any question."""
        return query if self.query_aware and query and query.strip() else None

    def _check_max_tokens(self) -> None:
        wrong = type(self.max_tokens) is not int or (self.max_tokens or 0) < 1
        if wrong or self.max_symbols is not None:
            raise ConfigError(
                f"max_tokens={self.max_tokens!r}: give an integer of 1 or more, and then no "
                "max_symbols.",
                field="max_tokens",
                value=self.max_tokens,
            )

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ratios at which `max_tokens` plans symbols."""
        if self.ratio is None:
            return RATIOS
        return (self.ratio, *(ratio for ratio in RATIOS if ratio > self.ratio))


@dataclass(frozen=True, slots=True)
class Chunk:
    """One retrieved piece of text as a framework hands it over.

    Args:
        text: Its text, without metadata.
        metadata: Its metadata; only our own keys are looked at.
        label: How to name it in messages, such as "document 2 (id='a7')".
        score: Its relevance, the higher the better; None if unknown.
    """

    text: str
    metadata: Mapping[Any, Any]
    label: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What becomes of a chunk.

    Args:
        text: Written symbols, or text.
        record: Our metadata, flat.
        document: The span, if one was written or found.
    """

    text: str
    record: dict[str, Flat]
    document: ZDocument | None = None

    def metadata(self, before: Mapping[Any, Any]) -> dict[Any, Any]:
        """A framework's metadata with our keys replaced by the record; a new dict."""
        return {**without_record(before), **self.record}


def is_ours(key: object) -> bool:
    """Whether a metadata key belongs to the record."""
    return isinstance(key, str) and key.startswith(PREFIX)


def without_record(metadata: Mapping[Any, Any]) -> dict[Any, Any]:
    """Metadata as it was before: without our keys."""
    return {key: value for key, value in metadata.items() if not is_ours(key)}


def record_of(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Only our keys."""
    return {key: value for key, value in metadata.items() if is_ours(key)}


def stored_span(metadata: Mapping[Any, Any]) -> ZDocument | None:
    """The span in a chunk's metadata, or None if there is none.

    Args:
        metadata: A framework's.

    Returns:
        The span.

    Raises:
        CorruptSpanError: if what stands there is not a whole, unaltered span.
    """
    value = metadata.get(SPAN)
    return None if value is None else ZDocument.from_compact(value)


def token_accuracy(document: ZDocument) -> float | None:
    """Share of tokens a document reads back right without errata; None if not measured."""
    right = 0.0
    for span in document.spans:
        if span.fidelity is None:
            return None
        right += span.fidelity.token_accuracy * len(span.tokens)
    return right / document.n_tokens if document.n_tokens else None


def warn_stale(stale: Sequence[str], *, n_chunks: int, stacklevel: int = 1) -> None:
    """Say that stored spans were of no use, and why.

    Args:
        stale: Which, and the reason of each.
        n_chunks: Chunks there were.
        stacklevel: 1 points at the caller of this function.
    """
    warnings.warn(
        f"Stored spans of {len(stale)} of {n_chunks} chunks could not be used and the texts were "
        f"compressed again ({'; '.join(stale[:3])}). Index them again with the bundle in use, "
        "after splitting; a store that cuts long metadata loses spans too.",
        StaleSpanWarning,
        stacklevel=stacklevel + 1,
    )


def warn_unreadable(model: str, *, skipped: bool = False, stacklevel: int = 1) -> None:
    """Say that a model cannot read symbols, and what to do about it.

    Args:
        model: How to name it.
        skipped: It was spared them; otherwise it was handed some.
        stacklevel: 1 points at the caller of this function.
    """
    happened = (
        f"{model} cannot read the Z-tokens of this bundle, so its messages stay as they are."
        if skipped
        else f"{model} was handed Z-tokens, which only the model that wrote them can read: to any "
        "other they are noise."
    )
    warnings.warn(
        f"{happened} Read them with ChatZContext or ZContextLLM on the same bundle, or take the "
        "zcontext part out of this pipeline.",
        UnreadableSymbolsWarning,
        stacklevel=stacklevel + 1,
    )
