"""How much of a text its symbols hold: bits against the rate bound, and free-running quality.

Windows of equal length are compressed at several ratios. Printed together for each: h (the plain
base's bits per token), c (the decompressor's, behind the symbols), the bound on h - c and the share
of it used, what wrong symbols cost, and what free-running decoding brings back. It meets engines
through their Protocols and the model through a `Judge`; it reads and writes no file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zcontext.config import CompressSettings
from zcontext.errors import ConfigError
from zcontext.evaluation.excerpts import TextWindow
from zcontext.evaluation.judge import Judge
from zcontext.evaluation.metrics import (
    Estimate,
    bootstrap,
    corpus_bleu,
    kept_share,
    rouge_l,
    token_accuracy,
)
from zcontext.evaluation.progress import Progress, silent
from zcontext.evaluation.restoration import Restorer, WindowRecord
from zcontext.fragile import fragile_places
from zcontext.spans import SupportsCompress, SupportsDecompress

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
        progress: Told after every batch.

    Returns:
        The report.
    """
    restorer = Restorer(windows, compressor=compressor, decompressor=decompressor, judge=judge)
    total = len(windows) * len(settings.ratios)
    rows, done = [], 0
    for ratio in settings.ratios:
        records: list[WindowRecord] = []
        for start in range(0, len(windows), settings.batch):
            items = range(start, min(start + settings.batch, len(windows)))
            records += restorer.measure(items, ratio=ratio, depth=settings.depth)
            done += len(items)
            progress(f"ratio {ratio:g}", done, total)
        rows.append(row_of(windows, records, ratio=ratio, judge=judge, seed=settings.seed))
    return ReconstructReport(settings, len(windows), compressor.codec, tuple(rows))


def row_of(
    windows: Sequence[TextWindow],
    records: Sequence[WindowRecord],
    *,
    ratio: float,
    judge: Judge,
    seed: int = 0,
) -> ReconstructRow:
    """The figures of one ratio.

    Args:
        windows: What was compressed.
        records: What came back, in the same order.
        ratio: The ratio asked for.
        judge: Counts the tokens of what was decoded freely.
        seed: Of the bootstrap.

    Returns:
        The figures.
    """
    return ReconstructRow(
        ratio=ratio,
        depth=max(record.depth for record in records),
        compress_seconds=sum(record.compress_seconds for record in records),
        decompress_seconds=sum(record.decompress_seconds for record in records),
        **_bit_figures(records, seed),
        **_text_figures(windows, [record.text for record in records], judge, seed),
    )


def _bit_figures(records: Sequence[WindowRecord], seed: int) -> dict[str, Any]:
    n_tokens = sum(record.n_tokens for record in records)
    # Windows are of one length, so the mean over windows is the mean over tokens. What names the
    # places of segments is told to the decompressor too, so it counts.
    bound = sum(record.stored_bits for record in records) / n_tokens
    placed = bound - sum(record.code_bits for record in records) / n_tokens
    gains = [record.h - record.c for record in records]
    share = bootstrap(gains, statistic=lambda gain: gain / bound, seed=seed)
    return {
        "effective_ratio": n_tokens / sum(record.n_symbols for record in records),
        "bound": bound,
        "placement": placed,
        "h": bootstrap([record.h for record in records], seed=seed),
        "c": bootstrap([record.c for record in records], seed=seed),
        "bound_share": share,
        "beats_bound": share.low > 1.0,
        "shuffled_gap": bootstrap([record.wrong - record.c for record in records], seed=seed),
        "forced_accuracy": bootstrap([record.accuracy for record in records], seed=seed),
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
