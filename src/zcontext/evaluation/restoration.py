"""Windows brought back from their symbols: what one batch of them gives, window by window.

Bits with the right symbols and with another window's, tokens right, and the text decoded freely. It
meets engines through their Protocols and the model through a `Judge`; it makes no averages.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from zcontext.config import CompressSettings
from zcontext.evaluation.excerpts import TextWindow, other_window
from zcontext.evaluation.judge import Forced, Judge, Shown
from zcontext.spans import SupportsCompress, SupportsDecompress, ZDocument
from zcontext.windows import Extent

Pieces = tuple[tuple[int, ...], ...]
"""The tokens of a window, span by span."""


@dataclass(frozen=True, slots=True)
class Told:
    """One span of a window.

    Attributes:
        tokens: Which of the window's tokens it stands for.
        shown: What the decompressor is shown of them.
    """

    tokens: Extent
    shown: Shown


@dataclass(frozen=True, slots=True)
class WindowRecord:
    """One window at one ratio.

    Attributes:
        h: Bits per token of the plain base.
        c: Bits per token of the decompressor behind the symbols.
        wrong: The same behind another window's symbols.
        accuracy: Tokens right, each predicted from the right ones before it.
        text: Decoded freely from the symbols alone.
        n_tokens: Tokens of the window.
        n_symbols: Its symbols.
        depth: Codes per symbol.
        stored_bits: Bits of codes and places.
        code_bits: Bits of the codes alone.
        compress_seconds: Its share of the batch's time.
        decompress_seconds: Its share of the batch's time.
    """

    h: float
    c: float
    wrong: float
    accuracy: float
    text: str
    n_tokens: int
    n_symbols: int
    depth: int
    stored_bits: float
    code_bits: float
    compress_seconds: float
    decompress_seconds: float

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> WindowRecord:
        """What `to_json` wrote.

        Args:
            line: One line of JSON.

        Returns:
            The record.
        """
        return cls(**json.loads(line))


class Restorer:
    """Compresses windows and brings them back.

    Args:
        windows: From `cut_windows`.
        compressor: Writes the symbols.
        decompressor: Restores text from them, freely.
        judge: The same model, teacher-forced.
    """

    def __init__(
        self,
        windows: Sequence[TextWindow],
        *,
        compressor: SupportsCompress,
        decompressor: SupportsDecompress,
        judge: Judge,
    ) -> None:
        self.windows = list(windows)
        self.judge = judge
        self.compressor = compressor
        self._decompressor = decompressor
        self._others = other_window(windows)
        self._documents: dict[tuple[int, float, int | None], ZDocument] = {}
        self._plain: dict[tuple[int, tuple[int, ...]], float] = {}

    def measure(
        self, items: Sequence[int], *, ratio: float, depth: int | None
    ) -> list[WindowRecord]:
        """Measure some windows.

        Args:
            items: Their numbers.
            ratio: Source tokens per symbol.
            depth: Codes per symbol; None means the codec's own.

        Returns:
            One record each.
        """
        started = time.perf_counter()
        documents = self._write(items, ratio, depth)
        compressing = (time.perf_counter() - started) / len(items)
        shown = [shown_of(document) for document in documents]
        ids = [self._cut(item, of) for item, of in zip(items, shown, strict=True)]
        plain = [self._plain_bits(item, of) for item, of in zip(items, ids, strict=True)]
        right = self._restored(ids, shown)
        others = map(shown_of, self._write([self._others[k] for k in items], ratio, depth))
        misled = [_misled(own, other) for own, other in zip(shown, others, strict=True)]
        wrong = self._restored(ids, misled)
        started = time.perf_counter()
        texts = self._decompressor.decompress_many([without_errata(d) for d in documents])
        restoring = (time.perf_counter() - started) / len(items)
        return [
            WindowRecord(
                h=plain[k],
                c=right[k].bits,
                wrong=wrong[k].bits,
                accuracy=right[k].accuracy,
                text=texts[k],
                n_tokens=document.n_tokens,
                n_symbols=document.n_symbols,
                depth=document.depth,
                stored_bits=document.bits,
                code_bits=document.symbols.bits,
                compress_seconds=compressing,
                decompress_seconds=restoring,
            )
            for k, document in enumerate(documents)
        ]

    def _write(self, items: Sequence[int], ratio: float, depth: int | None) -> list[ZDocument]:
        missing = [k for k in dict.fromkeys(items) if (k, ratio, depth) not in self._documents]
        if missing:
            settings = CompressSettings(ratio=ratio, depth=depth)
            texts = [self.windows[k].text for k in missing]
            written = self.compressor.compress_many(texts, settings=settings)
            for k, document in zip(missing, written, strict=True):
                self._documents[k, ratio, depth] = document
        return [self._documents[k, ratio, depth] for k in items]

    def _cut(self, item: int, shown: Sequence[Told]) -> Pieces:
        ids = self.windows[item].ids
        return tuple(ids[told.tokens.start : told.tokens.end] for told in shown)

    def _plain_bits(self, item: int, pieces: Pieces) -> float:
        """Of the same pieces that the decompressor restores, or h and c could not be compared."""
        key = (item, tuple(map(len, pieces)))
        if key not in self._plain:
            self._plain[key] = _mean(self.judge.plain_bits(pieces), pieces)
        return self._plain[key]

    def _restored(self, pieces: Sequence[Pieces], shown: Sequence[Sequence[Told]]) -> list[Forced]:
        """Windows behind what is shown for their spans, all spans together."""
        flat = self.judge.restored(
            [piece for of in pieces for piece in of], [told.shown for of in shown for told in of]
        )
        found, at = [], 0
        for of in pieces:
            spans = flat[at : at + len(of)]
            at += len(of)
            bits = _mean([span.bits for span in spans], of)
            found.append(Forced(bits, _mean([span.accuracy for span in spans], of)))
        return found


def _mean(values: Sequence[float], pieces: Pieces) -> float:
    """A mean over tokens, of means over pieces of them."""
    return sum(v * len(p) for v, p in zip(values, pieces, strict=True)) / sum(map(len, pieces))


def without_errata(document: ZDocument) -> ZDocument:
    """The document as its symbols alone tell it: corrections removed.

    Args:
        document: Any document.

    Returns:
        A copy whose decompression is not exact.
    """
    spans = tuple(dataclasses.replace(span, errata=b"") for span in document.spans)
    return dataclasses.replace(document, spans=spans)


def shown_of(document: ZDocument) -> tuple[Told, ...]:
    """What the decompressor is shown of a window, span by span.

    Args:
        document: Of one window; one that is longer than the codec's own has several spans.

    Returns:
        Symbols and their places, and which tokens they stand for.
    """
    return tuple(Told(span.tokens, Shown(span.symbols, span.ends)) for span in document.spans)


def _misled(own: Sequence[Told], other: Sequence[Told]) -> list[Told]:
    """The other window's symbols at the places of one's own, so that only the codes are wrong."""
    found = []
    for at, mine in enumerate(own):
        theirs = other[at % len(other)].shown.symbols
        # Spans of another number of symbols have no places in this one: they are spread evenly.
        ends = mine.shown.ends if len(theirs) == len(mine.shown.symbols) else None
        found.append(Told(mine.tokens, Shown(theirs, ends)))
    return found
