"""Reports as tables for a terminal and as JSON on disk. It measures nothing."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.table import Table

from zcontext.errors import StoreError
from zcontext.evaluation.metrics import Estimate
from zcontext.evaluation.qa import QAReport
from zcontext.evaluation.reconstruct import ReconstructReport


def reconstruct_table(report: ReconstructReport) -> Table:
    """The figures of a reconstruction run.

    Args:
        report: The run.

    Returns:
        One column per ratio.
    """
    settings = report.settings
    table = Table(
        title=f"Reconstruction: {report.n_windows} windows of {settings.window_tokens} tokens, "
        f"codec {report.codec[:8]}",
        caption="value [95 % bootstrap interval]; bits are per source token",
    )
    table.add_column("ratio")
    for row in report.rows:
        table.add_column(f"{row.ratio:g}", justify="right", no_wrap=True)
    lines: list[tuple[str, list[str]]] = [
        ("effective ratio", [f"{row.effective_ratio:.2f}" for row in report.rows]),
        ("depth", [str(row.depth) for row in report.rows]),
        ("h: bits, plain base", [_cell(row.h, 2) for row in report.rows]),
        ("c: bits with symbols", [_cell(row.c, 2) for row in report.rows]),
        ("bound on h - c", [f"{row.bound:.2f}" for row in report.rows]),
        ("  of it, places", [f"{row.placement:.2f}" for row in report.rows]),
        ("share of the bound", [_cell(row.bound_share) for row in report.rows]),
        ("shuffled gap, bits", [_cell(row.shuffled_gap, 2) for row in report.rows]),
        ("tokens right, forced", [_cell(row.forced_accuracy) for row in report.rows]),
        ("tokens right, free", [_cell(row.free_accuracy) for row in report.rows]),
        ("BLEU-4, free", [_cell(row.bleu, 1) for row in report.rows]),
        ("ROUGE-L, free", [_cell(row.rouge_l) for row in report.rows]),
        ("numbers and names kept", [_cell(row.facts_kept) for row in report.rows]),
        ("seconds to compress", [f"{row.compress_seconds:.1f}" for row in report.rows]),
        ("seconds to decompress", [f"{row.decompress_seconds:.1f}" for row in report.rows]),
    ]
    for label, cells in lines:
        table.add_row(label, *cells)
    return table


def bugs(report: ReconstructReport) -> list[str]:
    """What cannot be true in a report.

    Args:
        report: The run.

    Returns:
        One sentence per ratio whose figures beat the rate bound.
    """
    return [
        f"ratio {row.ratio:g}: h - c uses {row.bound_share.value:.2f} of the bound. Symbols cannot "
        "carry more than it: this is a bug (text that leaks past the symbols, or was memorised)"
        for row in report.rows
        if row.beats_bound
    ]


def qa_table(report: QAReport) -> Table:
    """The figures of a question-answering run.

    Args:
        report: The run.

    Returns:
        One line per condition.
    """
    table = Table(
        title=f"Question answering: {report.n_rows} questions, codec {report.codec[:8]}",
        caption="value [95 % bootstrap interval]; retention = (F1 - none) / (raw - none)",
    )
    table.add_column("condition")
    for name in ("positions", "EM", "F1", "F1 / F1 none", "retention"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.figures:
        table.add_row(
            row.condition,
            f"{row.n_positions:.0f}",
            _cell(row.exact_match),
            _cell(row.f1),
            _cell(row.gain, 2, none=""),
            _cell(row.retention, 2, none=""),
        )
    return table


def _cell(estimate: Estimate | None, digits: int = 3, *, none: str = "-") -> str:
    return none if estimate is None else estimate.format(digits)


def write_json(report: dict[str, Any], path: str | Path) -> None:
    """Write a report under a temporary name, then rename it. Infinite figures become null.

    Args:
        report: From `to_dict`.
        path: The file.

    Raises:
        StoreError: It cannot be written.
    """
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    text = json.dumps(finite(report), indent=2, ensure_ascii=False) + "\n"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, target)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink()
        raise StoreError(
            f"cannot write {path}: {error}; free space or give another path"
        ) from error


def finite(value: Any) -> Any:
    """A value as JSON can hold it: a ratio over nothing is null.

    Args:
        value: Numbers and texts in lists and tables.

    Returns:
        A copy whose numbers are finite.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
