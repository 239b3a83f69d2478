"""What a document would lose: a teacher-forced reading of its symbols against its text.

One forward per span shows the token that greedy decoding would choose at every place, each after
the right ones before it: the share that is right, the bits that are missing, and which numbers,
names, addresses and pieces of code of the source would not come back as they are. What it does not
know: windows, budgets, how a loss is made good.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor, nn

from zcontext.documents import joined_parts
from zcontext.errors import SpanError
from zcontext.fragile import losable_places
from zcontext.hearing import heard
from zcontext.layouts import SpanLayout, span_layouts
from zcontext.model import ZLanguageModel
from zcontext.spans import Fidelity, Part, ZDocument, ZSpan
from zcontext.tokenization import TokenizedText, text_mask, text_tokenizer
from zcontext.vocabulary import utf8_bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """A teacher-forced reading of one span.

    Attributes:
        right: Per token, whether the most likely one was it.
        bits: Per token, its surprisal given the symbols and the tokens before it.
        margins: Per token, its score (logit) over that of the best other one; below 0 where
            another was more likely.
    """

    right: tuple[bool, ...]
    bits: tuple[float, ...]
    margins: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Share of tokens right."""
        return sum(self.right) / len(self.right)

    @classmethod
    def of_text(cls, n_tokens: int) -> Reading:
        """The reading of text that is kept: nothing of it can be missed."""
        return cls((True,) * n_tokens, (0.0,) * n_tokens, (math.inf,) * n_tokens)

    def sparing(self, span: ZSpan) -> Reading:
        """The reading of a span whose literals stand there whatever the model says."""
        if not span.literals:
            return self
        right, bits, margins = list(self.right), list(self.bits), list(self.margins)
        for literal in span.literals:
            kept = Reading.of_text(len(literal.tokens))
            place = slice(literal.tokens.start, literal.tokens.end)
            right[place], bits[place], margins[place] = kept.right, kept.bits, kept.margins
        return Reading(tuple(right), tuple(bits), tuple(margins))


def read_span(model: ZLanguageModel, layout: SpanLayout, ids: Sequence[int]) -> Reading:
    """Read one span against its tokens, in one forward.

    Args:
        model: The model that reads.
        layout: Of the span, behind its memory.
        ids: Its tokens.

    Returns:
        The reading.
    """
    text_only = text_mask(model.tokenizer, model.base_vocab)
    tokens = torch.tensor([list(ids)])
    inputs = torch.cat([torch.tensor([[model.start_token]]), tokens[:, :-1]], dim=1)
    with model.using("decompress"), torch.no_grad():
        states = model.restore_states(
            layout.symbols.unsqueeze(0),
            layout.positions.unsqueeze(0),
            torch.ones(1, len(layout.positions), dtype=torch.long),
            inputs,
            torch.ones_like(inputs),
            offset=layout.n_memory,
        )[0]
        scores = model.logits(states).masked_fill(~text_only.to(model.device), -torch.inf)
        scores = heard(model, layout.voices, scores, tokens[0])
        target = tokens[0].to(model.device)
        nats: Tensor = nn.functional.cross_entropy(scores, target, reduction="none")
        # A token that no text is decoded to (an "unknown") costs as much as naming it.
        nats = nats.masked_fill(nats.isinf(), math.log(model.base_vocab))
        right = scores.argmax(-1) == target
        own = scores.gather(-1, target.unsqueeze(-1))
        others = scores.scatter(-1, target.unsqueeze(-1), -torch.inf)
        margins = own.squeeze(-1) - others.amax(-1)
    bits = (nats / math.log(2.0)).tolist()
    return Reading(tuple(right.tolist()), tuple(bits), tuple(margins.tolist()))


def read_spans(
    model: ZLanguageModel, document: ZDocument, tokens: TokenizedText
) -> Iterator[Reading]:
    """Read every span of a document against its tokens.

    Args:
        model: The model that reads.
        document: Of its codec.
        tokens: Of the document's text.

    Yields:
        One reading per span, in order.
    """
    for span, layout in zip(document.spans, span_layouts(model, document), strict=True):
        if span.is_literal:
            yield Reading.of_text(len(span.tokens))
        else:
            ids = tokens.ids[span.tokens.start : span.tokens.end]
            yield read_span(model, layout, ids).sparing(span)


def measure_fidelity(model: ZLanguageModel, document: ZDocument, text: str) -> ZDocument:
    """A document whose spans say how well they read back.

    Args:
        model: The model that reads.
        document: What was written.
        text: The text it stands for.

    Returns:
        The same document with the fidelity of every span.

    Raises:
        CodecMismatchError: Another codec wrote the document.
        SpanError: The document does not stand for this text.
    """  # noqa: DOC502 - some raised by the checks
    document.check_codec(model.codec)
    _check_source(document, text)
    tokens = text_tokenizer(model.tokenizer).locate(
        text, max_tokens=max(1, document.n_tokens), breaks=literal_edges(document, text)
    )
    return with_fidelity(document, text, tokens, list(read_spans(model, document, tokens)))


def with_fidelity(
    document: ZDocument, text: str, tokens: TokenizedText, readings: Sequence[Reading]
) -> ZDocument:
    """A document whose spans say how well they read back, from readings of them.

    Args:
        document: What was written.
        text: The text it stands for.
        tokens: Of the text.
        readings: One per span.

    Returns:
        The same document with the fidelity of every span.
    """
    right = [flag for reading in readings for flag in reading.right]
    lost: list[list[str]] = [[] for _ in document.spans]
    starts = [span.chars.start for span in document.spans]
    for begin, end in losable_places(text):
        first = max(0, bisect_right(tokens.starts, begin) - 1)
        while first > 0 and tokens.starts[first - 1] == tokens.starts[first]:
            first -= 1
        last = bisect_right(tokens.starts, end - 1)
        if not all(right[first:last]):
            lost[bisect_right(starts, begin) - 1].append(text[begin:end])
    spans = tuple(
        dataclasses.replace(span, fidelity=_fidelity(reading, tuple(dict.fromkeys(items))))
        for span, reading, items in zip(document.spans, readings, lost, strict=True)
    )
    return dataclasses.replace(document, spans=spans)


def literal_edges(document: ZDocument, text: str) -> list[int]:
    """The characters at which a document's text was parted around its literals.

    Args:
        document: What was written.
        text: The text it stands for.

    Returns:
        Starts and ends of literals, rising.

    Raises:
        SpanError: A literal is not what stands in the text at its place.
    """
    edges: list[int] = []
    for span in document.spans:
        for literal in span.literals:
            begin = span.chars.start + literal.char
            end = begin + len(literal.text)
            if text[begin:end] != literal.text:
                raise SpanError(
                    f"the document keeps {literal.text[:20]!r} at character {begin:,}, where its "
                    f"text has {text[begin:end][:20]!r}; compress the text again"
                )
            if edges and edges[-1] == begin:  # one literal, too long for one span
                edges[-1] = end
            else:
                edges += [begin, end]
    return edges


def overall_fidelity(document: ZDocument) -> Fidelity:
    """The fidelity of a document, from that of its spans.

    Args:
        document: As `measure_fidelity` returns it.

    Returns:
        Tokens right over all tokens, all bits missing, everything lost; 1, 0 and nothing for the
        empty document.

    Raises:
        SpanError: Some span was not measured.
    """
    right = bits = 0.0
    lost: dict[str, None] = {}
    for at, span in enumerate(document.spans):
        if span.fidelity is None:
            raise _unmeasured(at)
        right += span.fidelity.token_accuracy * len(span.tokens)
        bits += span.fidelity.bits_missing
        lost.update(dict.fromkeys(span.fidelity.lost))
    share = right / document.n_tokens if document.n_tokens else 1.0
    return Fidelity(min(1.0, share), bits, tuple(lost))


def _fidelity(reading: Reading, lost: tuple[str, ...]) -> Fidelity:
    return Fidelity(reading.accuracy, max(0.0, sum(reading.bits)), lost)


def readable_parts(document: ZDocument, text: str, *, floor: float) -> tuple[Part, ...]:
    """What to put in a prompt for a document: its parts, and the text of spans below a floor.

    Args:
        document: With the fidelity of every span.
        text: The text it stands for.
        floor: Share of tokens that must read back right, 0 to 1.

    Returns:
        Symbols and texts, literals among them, in order; neighbours of one kind are one part.

    Raises:
        SpanError: The document does not stand for this text, or some span was not measured.
    """
    _check_source(document, text)
    parts: list[Part] = []
    for at, span in enumerate(document.spans):
        if span.fidelity is None:
            raise _unmeasured(at)
        if span.fidelity.token_accuracy < floor:
            parts.append(text[span.chars.start : span.chars.end])
        else:
            parts += span.parts
    return joined_parts(parts)


def _unmeasured(at: int) -> SpanError:
    return SpanError(
        f"span {at} was not measured; compress with min_fidelity, or pass the document to "
        "measure_fidelity"
    )


def _check_source(document: ZDocument, text: str) -> None:
    if sha256(utf8_bytes(text)).hexdigest() != document.text_sha256:
        raise SpanError(
            f"the document of {document.n_chars:,} characters does not stand for this text of "
            f"{len(text):,}; give the text it was made from, with what spelled symbols escaped "
            "or dropped as it was then (ZVocabulary.guard)"
        )
