"""What the readers are given: prompts as embeddings, spans laid out in front of their texts.

What it does not know: how text is generated or measured, how symbols are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.errors import ContextOverflowError
from zcontext.hearing import Hearing, Voices
from zcontext.lexicon import SILENT
from zcontext.model import ZLanguageModel
from zcontext.passes import spread_positions
from zcontext.prompts import Piece
from zcontext.spans import ZDocument, ZSpan
from zcontext.vocabulary import Symbols
from zcontext.windows import Extent


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


def embed_pieces(model: ZLanguageModel, pieces: Sequence[Piece]) -> Tensor:
    """What a reader is given for a prompt.

    Args:
        model: The model.
        pieces: Token ids and symbols of its codec; one piece or more.

    Returns:
        `[n_positions, hidden]`, outside of any gradient.
    """
    rows = [
        embed_symbols(model, piece)
        if isinstance(piece, Symbols)
        else model.embed_tokens(torch.tensor([piece], dtype=torch.long))[0]
        for piece in pieces
    ]
    return torch.cat(rows).detach()


@dataclass(frozen=True, slots=True)
class SpanLayout:
    """Symbols in front of a text, as the decompressor was trained on them.

    Attributes:
        symbols: Embeddings of memory and span, `[n_memory + n_symbols, hidden]`.
        positions: Their positions: memory consecutive, the span's where segments end.
        n_memory: Symbols of memory; the start token stands at this position.
        n_tokens: Length of the text.
        voices: Which symbol speaks of which token, where that is known and the codec has a
            channel to hear it.
    """

    symbols: Tensor
    positions: Tensor
    n_memory: int
    n_tokens: int
    voices: Voices | None = None


def lay_out(
    model: ZLanguageModel,
    memory: Symbols,
    symbols: Symbols,
    n_tokens: int,
    *,
    ends: Sequence[int] | None = None,
    literals: Sequence[Extent] = (),
) -> SpanLayout:
    """Lay out one span.

    Args:
        model: The model that reads.
        memory: Symbols that stood before the span when it was written.
        symbols: Of the span.
        n_tokens: Tokens they stand for.
        ends: Where their segments end; None spreads them evenly.
        literals: Tokens of the span that are kept as text.

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
        spread = spread_positions(len(symbols), n_tokens) + m
    else:
        spread = torch.tensor(ends) + m
    embeddings = torch.cat([embed_symbols(model, memory), embed_symbols(model, symbols)])
    voices = None
    if model.channel is not None and ends is not None and len(symbols):
        voices = Hearing(model).voices(symbols, ends, n_tokens, literals=literals)
    return SpanLayout(embeddings, torch.cat([torch.arange(m), spread]), m, n_tokens, voices)


def ends_of_names(
    model: ZLanguageModel, symbols: Symbols, n_tokens: int | None = None
) -> tuple[int, ...] | None:
    """Where the segments of bare symbols end, if their codes tell.

    A symbol that has a code to spare names all of its segment; if none has left anything out, or
    all of them together name as many tokens as there are, each segment is as long as its names.

    Args:
        model: The model that reads.
        symbols: Of its codec.
        n_tokens: Tokens they stand for, if that is known.

    Returns:
        Ends, exclusive; None where something may have been left out, or codes are no names.
    """
    lexicon = model.codebook.lexicon
    if lexicon is None or not lexicon.complete or model.channel is None or not len(symbols):
        return None
    codes = torch.tensor(symbols.codes)
    lengths = lexicon.n_tokens_of(codes.to(model.device)).cpu()
    spare = codes.shape[1] == model.config.depth and bool((codes == SILENT).any(-1).all())
    total = int(lengths.sum())
    if not total or (not spare if n_tokens is None else total != n_tokens):
        return None
    return tuple(lengths.cumsum(0).tolist())


def lay_span(model: ZLanguageModel, memory: Symbols, span: ZSpan) -> SpanLayout:
    """Lay out a span of symbols.

    Args:
        model: The model that reads.
        memory: Symbols that stood before the span when it was written.
        span: Of its codec.

    Returns:
        The layout.

    Raises:
        ContextOverflowError: It needs more positions than the base has.
    """  # noqa: DOC502 - raised by lay_out
    literals = [literal.tokens for literal in span.literals]
    n_tokens = len(span.tokens)
    return lay_out(model, memory, span.symbols, n_tokens, ends=span.ends, literals=literals)


def span_layouts(model: ZLanguageModel, document: ZDocument) -> Iterator[SpanLayout]:
    """Lay out every span of a document, each behind the memory it was written with.

    Args:
        model: The model that reads.
        document: Of its codec.

    Yields:
        One layout per span, in order; nothing stands in that of a span that is text.

    Raises:
        ContextOverflowError: A span needs more positions than the base has.
    """  # noqa: DOC502 - raised by lay_out
    memory = Symbols((), document.size, document.codec[:4])
    for span in document.spans:
        if span.is_literal:
            nothing = memory[:0]
            yield SpanLayout(
                embed_symbols(model, nothing), torch.zeros(0).long(), 0, len(span.tokens)
            )
            continue
        yield lay_span(model, memory, span)
        if document.memory:
            memory = (memory + span.symbols)[-document.memory :]
