"""Where codes fire: segments of texts, the codes their symbols hold, how the base sees them.

A *segment* is the run of tokens that one symbol was written for. A code *fires* on a segment whose
symbol holds it, at whatever stage and however often. Code 0 of a shared table says nothing and
never fires. What this module does not know: what any of it means
(`usage`, `likeness` and `codes` look at that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zcontext.config import CompressSettings
from zcontext.decompressor import SpanLayout
from zcontext.errors import ConfigError
from zcontext.lexicon import SILENT
from zcontext.model import ZLanguageModel
from zcontext.spans import SupportsCompress, ZDocument
from zcontext.tokenization import TokenizedText, text_mask, text_tokenizer
from zcontext.windows import Extent

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many steps are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that was compressed.

    Attributes:
        text: The source, with what spelled symbols escaped.
        tokens: Its tokens and their places.
        document: What was written.
    """

    text: str
    tokens: TokenizedText
    document: ZDocument

    def cut(self, start: int, end: int) -> str:
        """The characters of a run of tokens."""
        return self.text[self.tokens.char_at(start) : self.tokens.char_at(end)]


@dataclass(frozen=True, slots=True)
class Segment:
    """The run of tokens that one symbol was written for.

    Attributes:
        passage: Index of its text.
        span: Index of its span in the document.
        symbol: Index of its symbol in the span.
        tokens: Extent in the text's tokens.
    """

    passage: int
    span: int
    symbol: int
    tokens: Extent


@dataclass(frozen=True, slots=True)
class Firings:
    """All segments of some texts, and which codes fire on which.

    Attributes:
        passages: The texts.
        segments: In order.
        codes: int64 `[segments, depth]`, as written.
        states: The base's contextual state of each segment, float32 `[segments, hidden]`.
        owner: Segment of each firing, int64 `[firings]`; rising.
        key: Code of each firing, int64 `[firings]`: `table * size + code`.
    """

    passages: tuple[Passage, ...]
    segments: tuple[Segment, ...]
    codes: Tensor
    states: Tensor
    owner: Tensor
    key: Tensor


def fired(codes: Tensor, *, size: int, shared: bool) -> tuple[Tensor, Tensor]:
    """Which codes fire on which rows.

    Args:
        codes: int64 `[rows, depth]`.
        size: Codes per table.
        shared: All stages choose from one table; otherwise equal numbers at different stages are
            different codes.

    Returns:
        Row and key (`table * size + code`) of each firing, once per row, rows rising.
    """
    rows = torch.arange(len(codes)).unsqueeze(1).expand_as(codes)
    if shared:
        keys, heard = codes, codes != SILENT
    else:
        keys = codes + size * torch.arange(codes.shape[1])
        heard = torch.ones_like(codes, dtype=torch.bool)
    n_keys = size * max(1, codes.shape[1])
    pairs = (rows * n_keys + keys)[heard].sort().values
    pairs = pairs[torch.cat([pairs.new_ones(1, dtype=torch.bool), pairs.diff() > 0])[: len(pairs)]]
    return pairs // n_keys, pairs % n_keys


def write_passages(
    texts: Sequence[str],
    *,
    compressor: SupportsCompress,
    model: ZLanguageModel,
    settings: CompressSettings,
    max_tokens: int,
    progress: Progress = lambda label, done, total: None,
) -> tuple[Passage, ...]:
    """Compress texts, in order, until a number of tokens is reached.

    Args:
        texts: Any number; blank ones are passed over, the last one is cut where the tokens end.
        compressor: Writes them.
        model: Its model.
        settings: How to compress.
        max_tokens: Tokens looked at in all.
        progress: Told how far it is, in tokens.

    Returns:
        The texts with what was written.

    Raises:
        ConfigError: There is no text.
    """
    tokenizer, passages, left = text_tokenizer(model.tokenizer), [], max_tokens
    for text in texts:
        if left <= 0 or not text.strip():
            continue
        shown = model.vocabulary.guard(text, on_symbols="escape")
        tokens = tokenizer.locate(shown, max_tokens=4 * len(shown))
        if len(tokens) > left:
            end = left
            while end > 1 and end not in tokens:  # no character is split
                end -= 1
            shown = shown[: tokens.char_at(end)]
            tokens = tokenizer.locate(shown, max_tokens=4 * len(shown))
        if len(tokens):
            document = compressor.compress(shown, settings=settings)
            passages.append(Passage(shown, tokens, document))
        left -= max(1, len(tokens))
        progress("writing", max_tokens - max(0, left), max_tokens)
    if not passages:
        raise ConfigError(
            f"{len(texts)} texts hold nothing to look at; give a file with text in it",
            field="texts",
            value=len(texts),
        )
    return tuple(passages)


def gather(
    model: ZLanguageModel,
    passages: Sequence[Passage],
    *,
    progress: Progress = lambda label, done, total: None,
) -> Firings:
    """Segments, codes and states of what was written.

    Args:
        model: The model that wrote it.
        passages: At least one.
        progress: Told how far it is, in texts.

    Returns:
        The firings.
    """
    segments: list[Segment] = []
    codes: list[tuple[int, ...]] = []
    states: list[Tensor] = []
    for at, passage in enumerate(passages):
        for number, span in enumerate(passage.document.spans):
            if span.ends is None:  # no symbol was left for this window
                continue
            begin = span.tokens.start
            starts = (0, *span.ends[:-1])
            segments += [
                Segment(at, number, symbol, Extent(begin + a, begin + b))
                for symbol, (a, b) in enumerate(zip(starts, span.ends, strict=True))
            ]
            codes += span.symbols.codes
            ids = passage.tokens.ids[begin : span.tokens.end].tolist()
            states.append(segment_states(model, ids, span.ends))
        progress("reading with the base", at + 1, len(passages))
    table = torch.tensor(codes, dtype=torch.long)
    owner, key = fired(table, size=model.config.size, shared=model.config.shared)
    return Firings(tuple(passages), tuple(segments), table, torch.cat(states), owner, key)


@torch.no_grad()
def segment_states(model: ZLanguageModel, ids: Sequence[int], ends: Sequence[int]) -> Tensor:
    """How the plain base sees segments: the mean of its last layer's states on their tokens.

    Args:
        model: The model; its adapters are switched off meanwhile.
        ids: Tokens of a window; they are read behind the start token.
        ends: Where segments end, exclusive.

    Returns:
        float32 `[segments, hidden]`, on the CPU.
    """
    inputs = torch.tensor([[model.start_token, *ids]])
    with model.using(None):
        hidden = model.run(
            model.embed_tokens(inputs),
            positions=torch.arange(inputs.shape[1]).unsqueeze(0),
            mask=torch.ones_like(inputs),
        ).hidden[0, 1:]
    lengths = torch.tensor(ends) - torch.tensor([0, *ends[:-1]])
    owner = torch.repeat_interleave(torch.arange(len(ends)), lengths)
    summed = torch.zeros(len(ends), hidden.shape[-1])
    summed.index_add_(0, owner, hidden[: ends[-1]].float().cpu())
    return summed / lengths.unsqueeze(-1)


class Listener:
    """Reads spans teacher-forced: the likeliest token at each place, and what the right one costs.

    Args:
        model: The model that reads.
    """

    def __init__(self, model: ZLanguageModel) -> None:
        self.model = model
        self._text_only = text_mask(model.tokenizer, model.base_vocab).to(model.device)

    @torch.no_grad()
    def listen(
        self, layout: SpanLayout, ids: Sequence[int], *, without: tuple[int, Tensor] | None = None
    ) -> tuple[list[int], Tensor]:
        """One teacher-forced forward over a span.

        Args:
            layout: Of the span, behind its memory.
            ids: Its tokens.
            without: Take a vector out of a symbol first: (symbol, `[hidden]`).

        Returns:
            The likeliest token of text at each place, and the bits of the right one, `[n]`.
        """
        model, symbols = self.model, layout.symbols
        if without is not None:
            symbol, part = without
            symbols = symbols.clone()
            symbols[layout.n_memory + symbol] -= part.to(symbols.dtype)
        target = torch.tensor(list(ids))
        inputs = torch.cat([torch.tensor([model.start_token]), target[:-1]]).unsqueeze(0)
        with model.using("decompress"):
            states = model.restore_states(
                symbols.unsqueeze(0),
                layout.positions.unsqueeze(0),
                torch.ones(1, len(layout.positions), dtype=torch.long),
                inputs,
                torch.ones_like(inputs),
                offset=layout.n_memory,
            )[0]
            scores = model.logits(states).masked_fill(~self._text_only, -torch.inf)
        nats = nn.functional.cross_entropy(scores, target.to(scores.device), reduction="none")
        likeliest: list[int] = scores.argmax(-1).tolist()
        return likeliest, (nats / torch.log(torch.tensor(2.0))).cpu()
