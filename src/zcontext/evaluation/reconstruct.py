"""How much of a text its symbols hold: bits against the rate bound, and free-running quality.

Windows of equal length are compressed at several ratios. Printed together for each: h (the plain
base's bits per token), c (the decompressor's, behind the symbols), the bound on h - c and the share
of it used, what wrong symbols cost, and what free-running decoding brings back. It meets engines
through their Protocols and the model through a `Judge`; it reads and writes no file.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from zcontext.config import CompressSettings
from zcontext.errors import ConfigError
from zcontext.evaluation.excerpts import TextWindow, other_window
from zcontext.evaluation.judge import Forced, Judge, Shown
from zcontext.evaluation.metrics import (
    Estimate,
    bootstrap,
    corpus_bleu,
    kept_share,
    rouge_l,
    token_accuracy,
)
from zcontext.evaluation.progress import Progress, silent
from zcontext.fidelity import fragile_places
from zcontext.spans import SupportsCompress, SupportsDecompress, ZDocument

RATIOS = (2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True, slots=True)
class ReconstructSettings:
    """What is measured.

    Attributes:
        ratios: Source tokens per symbol, one row of the report each.
        window_tokens: Length of a window.
        limit: Windows measured at most, drawn from all.
        seed: Of the draw and of the bootstrap.
        depth: Codes per symbol; None means the codec's own depth.
        batch: Windows compressed and restored together.

    Raises:
        ConfigError: A value is out of its range.
    """

    ratios: tuple[float, ...] = RATIOS
    window_tokens: int = 100
    limit: int = 200
    seed: int = 0
    depth: int | None = None
    batch: int = 16

    def __post_init__(self) -> None:
        for name, least, most in (
            ("window_tokens", 8, 8192),
            ("limit", 2, 1_000_000),
            ("batch", 1, 4096),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(
                    f"{name} must be {least} to {most:,}, got {value}", field=name, value=value
                )
        if not self.ratios:
            raise ConfigError("give at least one ratio", field="ratios", value=self.ratios)
        for ratio in self.ratios:
            CompressSettings(ratio=ratio, depth=self.depth)


@dataclass(frozen=True, slots=True)
class ReconstructRow:
    """The figures of one ratio.

    Attributes:
        ratio: The ratio asked for.
        effective_ratio: Source tokens / symbols, as it came out.
        depth: Codes per symbol.
        bound: Most bits per token that what is stored can carry: codes, and the places of segments.
        placement: The part of the bound that places take.
        h: Bits per token of the plain base.
        c: Bits per token of the decompressor behind the symbols.
        bound_share: (h - c) / bound.
        shuffled_gap: Bits per token lost when the symbols are those of another window.
        forced_accuracy: Tokens right, each predicted from the right ones before it.
        free_accuracy: Tokens right at their place, decoded freely from the symbols alone.
        bleu: Free-running BLEU-4, 0 to 100.
        rouge_l: Free-running ROUGE-L, 0 to 1.
        facts_kept: Numbers and names of the source found in the free-running text; None if the
            source has none.
        beats_bound: The interval of the share lies above 1: a bug (leak, memorised text).
        compress_seconds: Time for all windows.
        decompress_seconds: Time for all windows.
    """

    ratio: float
    effective_ratio: float
    depth: int
    bound: float
    placement: float
    h: Estimate
    c: Estimate
    bound_share: Estimate
    shuffled_gap: Estimate
    forced_accuracy: Estimate
    free_accuracy: Estimate
    bleu: Estimate
    rouge_l: Estimate
    facts_kept: Estimate | None
    beats_bound: bool
    compress_seconds: float
    decompress_seconds: float


@dataclass(frozen=True, slots=True)
class ReconstructReport:
    """All figures of one run.

    Attributes:
        settings: What was measured.
        n_windows: Windows measured.
        codec: Digest of the codec.
        rows: One per ratio.
    """

    settings: ReconstructSettings
    n_windows: int
    codec: str
    rows: tuple[ReconstructRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"task": "reconstruct", **dataclasses.asdict(self)}


def reconstruct(
    windows: Sequence[TextWindow],
    *,
    compressor: SupportsCompress,
    decompressor: SupportsDecompress,
    judge: Judge,
    settings: ReconstructSettings,
    progress: Progress = silent,
) -> ReconstructReport:
    """Measure windows at every ratio.

    Args:
        windows: From `cut_windows`.
        compressor: Writes the symbols.
        decompressor: Restores text from them, freely.
        judge: The same model, teacher-forced.
        settings: What is measured.
        progress: Told after every step.

    Returns:
        The report.
    """
    total = 1 + 4 * len(settings.ratios)
    plain = judge.plain_bits([w.ids for w in windows])
    progress("plain base", 1, total)
    rows = []
    for k, ratio in enumerate(settings.ratios):

        def step(what: str, done: int, *, ratio: float = ratio, k: int = k) -> None:
            progress(f"ratio {ratio:g}: {what}", 1 + 4 * k + done, total)

        rows.append(
            _measure(ratio, windows, plain, compressor, decompressor, judge, settings, step)
        )
    return ReconstructReport(settings, len(windows), compressor.codec, tuple(rows))


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


def _measure(
    ratio: float,
    windows: Sequence[TextWindow],
    plain: Sequence[float],
    compressor: SupportsCompress,
    decompressor: SupportsDecompress,
    judge: Judge,
    settings: ReconstructSettings,
    step: Callable[[str, int], None],
) -> ReconstructRow:
    chosen = CompressSettings(
        ratio=ratio, depth=settings.depth, window=max(8, settings.window_tokens)
    )
    started = time.perf_counter()
    documents: list[ZDocument] = []
    for batch in _batches(windows, settings.batch):
        documents += compressor.compress_many([w.text for w in batch], settings=chosen)
    compress_seconds = time.perf_counter() - started
    step("compressed", 1)

    ids = [window.ids for window in windows]
    shown = [shown_of(document) for document in documents]
    right = judge.restored(ids, shown)
    step("teacher-forced", 2)
    others = [shown[j] for j in other_window(windows)]
    wrong = judge.restored(ids, [_misled(a, b) for a, b in zip(shown, others, strict=True)])
    step("shuffled", 3)

    started = time.perf_counter()
    texts: list[str] = []
    for documents_of_batch in _batches(documents, settings.batch):
        texts += decompressor.decompress_many([without_errata(d) for d in documents_of_batch])
    decompress_seconds = time.perf_counter() - started
    step("decompressed", 4)

    bits = _bit_figures(plain, right, wrong, documents, settings.seed)
    return ReconstructRow(
        ratio=ratio,
        depth=max(document.depth for document in documents),
        compress_seconds=compress_seconds,
        decompress_seconds=decompress_seconds,
        **bits,
        **_text_figures(windows, texts, judge, settings.seed),
    )


def _bit_figures(
    plain: Sequence[float],
    right: Sequence[Forced],
    wrong: Sequence[Forced],
    documents: Sequence[ZDocument],
    seed: int,
) -> dict[str, Any]:
    n_tokens = sum(document.n_tokens for document in documents)
    # Windows are of one length, so the mean over windows is the mean over tokens. What names the
    # places of segments is told to the decompressor too, so it counts.
    bound = sum(document.bits for document in documents) / n_tokens
    placed = bound - sum(document.symbols.bits for document in documents) / n_tokens
    gains = [h - forced.bits for h, forced in zip(plain, right, strict=True)]
    share = bootstrap(gains, statistic=lambda gain: gain / bound, seed=seed)
    return {
        "effective_ratio": n_tokens / sum(document.n_symbols for document in documents),
        "bound": bound,
        "placement": placed,
        "h": bootstrap(plain, seed=seed),
        "c": bootstrap([f.bits for f in right], seed=seed),
        "bound_share": share,
        "beats_bound": share.low > 1.0,
        "shuffled_gap": bootstrap(
            [w.bits - r.bits for w, r in zip(wrong, right, strict=True)], seed=seed
        ),
        "forced_accuracy": bootstrap([f.accuracy for f in right], seed=seed),
    }


def _text_figures(
    windows: Sequence[TextWindow], texts: Sequence[str], judge: Judge, seed: int
) -> dict[str, Any]:
    sources = [window.text for window in windows]
    accuracy = [
        token_accuracy(judge.encode(text)[0], window.ids)
        for text, window in zip(texts, windows, strict=True)
    ]
    kept = [
        share
        for text, source in zip(texts, sources, strict=True)
        if (share := kept_share(text, [source[a:b] for a, b in fragile_places(source)])) is not None
    ]
    return {
        "free_accuracy": bootstrap(accuracy, seed=seed),
        "bleu": corpus_bleu(texts, sources),
        "rouge_l": bootstrap(rouge_l(texts, sources), seed=seed),
        "facts_kept": bootstrap(kept, seed=seed) if kept else None,
    }


def _batches(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
