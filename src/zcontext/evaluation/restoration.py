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
from zcontext.errors import ConfigError
from zcontext.evaluation.excerpts import TextWindow, other_window
from zcontext.evaluation.judge import Judge, Shown
from zcontext.spans import SupportsCompress, SupportsDecompress, ZDocument


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
        self._plain: dict[int, float] = {}

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
        windows = [self.windows[item] for item in items]
        ids = [window.ids for window in windows]
        started = time.perf_counter()
        documents = self._write(items, ratio, depth)
        compressing = (time.perf_counter() - started) / len(items)
        plain = self._plain_bits(items)
        shown = [shown_of(document) for document in documents]
        right = self.judge.restored(ids, shown)
        others = map(shown_of, self._write([self._others[k] for k in items], ratio, depth))
        misled = [_misled(own, other) for own, other in zip(shown, others, strict=True)]
        wrong = self.judge.restored(ids, misled)
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
            longest = max(len(self.windows[k].ids) for k in missing)
            settings = CompressSettings(ratio=ratio, depth=depth, window=max(8, longest))
            texts = [self.windows[k].text for k in missing]
            written = self.compressor.compress_many(texts, settings=settings)
            for k, document in zip(missing, written, strict=True):
                self._documents[k, ratio, depth] = document
        return [self._documents[k, ratio, depth] for k in items]

    def _plain_bits(self, items: Sequence[int]) -> list[float]:
        missing = [k for k in items if k not in self._plain]
        if missing:
            found = self.judge.plain_bits([self.windows[k].ids for k in missing])
            self._plain.update(zip(missing, found, strict=True))
        return [self._plain[k] for k in items]


def without_errata(document: ZDocument) -> ZDocument:
    """The document as its symbols alone tell it: corrections removed.

    Args:
        document: Any document.

    Returns:
        A copy whose decompression is not exact.
    """
    spans = tuple(dataclasses.replace(span, errata=b"") for span in document.spans)
    return dataclasses.replace(document, spans=spans)


def shown_of(document: ZDocument) -> Shown:
    """What the decompressor is shown of a window.

    Args:
        document: Of one window.

    Returns:
        Its symbols and their places.

    Raises:
        ConfigError: The window was cut in two; one pass cannot read it.
    """
    if len(document.spans) != 1:
        raise ConfigError(
            f"a window of {document.n_tokens} tokens was written as {len(document.spans)} spans; "
            "give window_tokens that the compressor writes in one",
            field="window_tokens",
            value=document.n_tokens,
        )
    return Shown(document.symbols, document.spans[0].ends)


def _misled(own: Shown, other: Shown) -> Shown:
    """The other window's symbols at the places of one's own, so that only the codes are wrong."""
    alike = len(own.symbols) == len(other.symbols)
    return Shown(other.symbols, own.ends if alike else other.ends)
