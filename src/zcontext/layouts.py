"""What the readers are given: prompts as embeddings, spans laid out in front of their texts.

What it does not know: how text is generated or measured, how symbols are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.errors import ContextOverflowError
from zcontext.model import ZLanguageModel
from zcontext.passes import spread_positions
from zcontext.prompts import Piece
from zcontext.spans import ZDocument
from zcontext.vocabulary import Symbols


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
        spread = spread_positions(len(symbols), n_tokens) + m
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
        yield lay_out(model, memory, span.symbols, len(span.tokens), ends=span.ends)
        if document.memory:
            memory = (memory + span.symbols)[-document.memory :]
