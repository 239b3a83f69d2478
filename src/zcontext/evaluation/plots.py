"""Pictures of a report: rate and distortion, retention against ratio, time against length.

matplotlib is loaded when a picture is made, without a display. It knows the form of a report.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from zcontext.errors import MissingDependencyError, StoreError
from zcontext.evaluation.summary import comparisons

RATE, RETENTION, TIME = "rate-distortion.png", "retention.png", "time.png"
SIZE = (7.4, 4.2)
BESIDE: Final[dict[str, Any]] = {
    "frameon": False,
    "fontsize": "small",
    "loc": "center left",
    "bbox_to_anchor": (1, 0.5),
}
"""A legend of many lines, to the right of them."""
STYLES = (
    ("symbols", "-"),
    ("refocused", "-."),
    ("asked", "--"),
    ("recent", "--"),
    ("truncated", ":"),
)


def draw_plots(report: dict[str, Any], folder: str | Path) -> list[str]:
    """Draw whatever the report has figures for.

    Args:
        report: The report.
        folder: Where pictures go.

    Returns:
        Names of the files written.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        StoreError: The folder cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "plots need matplotlib: pip install 'zcontext[eval]'", extra="eval"
        ) from error
    written = []
    for name, draw in ((RATE, _rate), (RETENTION, _retention), (TIME, _time)):
        # Not pyplot, which keeps figures and a backend for the whole process.
        figure = Figure(figsize=SIZE, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        drawn, path = draw(report, figure.add_subplot()), Path(folder, name)
        try:
            if drawn:
                path.parent.mkdir(parents=True, exist_ok=True)
                # No version or date inside: the same figures give the same file.
                canvas.print_png(str(path), metadata={"Software": None})
                written.append(name)
            else:  # an earlier report's would pass for this one's
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {name} into {folder}: {error}") from error
    return written


def _rate(report: dict[str, Any], axes: Any) -> bool:
    """Bits saved per token over bits stored per token, one line per depth."""
    lines: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for task in report["tasks"]:
        if task["task"].startswith("reconstruct"):
            for row in task["rows"]:
                lines[task["task"].removeprefix("reconstruct").strip(), row["depth"]].append(row)
    rows = [row for of in lines.values() for row in of]
    if not rows:
        return False
    most = max(row["bound"] for row in rows) * 1.1
    plain = max(row["h"]["value"] for row in rows)
    axes.plot([0, most], [0, most], color="black", linewidth=1, label="rate bound")
    axes.axhline(plain, color="grey", linewidth=1, linestyle=":", label="h, plain base")
    for (n_tokens, depth), of in lines.items():
        of.sort(key=lambda row: row["bound"])
        x = [row["bound"] for row in of]
        y = [row["h"]["value"] - row["c"]["value"] for row in of]
        # The interval of the share is that of h - c over the bound.
        ends = [[row["bound_share"][end] * row["bound"] for row in of] for end in ("low", "high")]
        codes = "1 code" if depth == 1 else f"{depth} codes"
        _line(axes, x, y, ends, label=f"{codes} per symbol, windows of {n_tokens}")
        for row, at, height in zip(of, x, y, strict=True):
            axes.annotate(
                f"{row['ratio']:g}x", (at, height), textcoords="offset points", xytext=(4, 4)
            )
    axes.set(
        xlabel="bits stored per source token",
        ylabel="bits saved per source token, h - c",
        title="Rate and distortion",
        xlim=(0, most),
        ylim=(min(0.0, *axes.get_ylim()), min(most, plain * 1.5)),
    )
    axes.legend(frameon=False)
    return True


def _retention(report: dict[str, Any], axes: Any) -> bool:
    """Retention over ratio by task and kind: of several depths the first, of readers the better."""
    drawn = False
    for number, (task, rows) in enumerate(comparisons(report)):
        colour = f"C{number % 10}"
        for kind, style in STYLES:
            seen: dict[float, dict[str, Any]] = {}
            for row in rows:
                kept, best = row["retention"], seen.get(row["ratio"])
                if row["kind"] != kind or not kept or kept["value"] is None:
                    continue
                if best is None or (kind == "truncated" and kept["value"] > best["value"]):
                    seen[row["ratio"]] = kept
            if not seen:
                continue
            drawn = True
            x = sorted(seen)
            y = [seen[ratio]["value"] for ratio in x]
            label = task["task"] if kind == "symbols" else None
            if kind != "truncated":
                ends = [[seen[ratio][end] for ratio in x] for end in ("low", "high")]
                _line(axes, x, y, ends, label=label, color=colour, linestyle=style)
            else:
                axes.plot(x, y, linestyle=style, color=colour, alpha=0.6)
    if drawn:
        axes.axhline(1, color="black", linewidth=1)
        axes.axhline(0, color="grey", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set(
            xlabel="source tokens per position",
            ylabel="retention: 0 no context, 1 raw control",
            title="Retention (dashed: for the task, -. of what is stored; dotted: cut)",
            ylim=(-0.5, 1.5),
        )
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.legend(**BESIDE)
    return drawn


def _time(report: dict[str, Any], axes: Any) -> bool:
    """Seconds to the first token over source tokens: raw, and symbols that are new or stored."""
    rows = report.get("run", {}).get("times") or []
    if not rows:
        return False
    draw_times(rows, axes)
    return True


def draw_times(rows: Sequence[dict[str, Any]], axes: Any) -> None:
    """Draw the time to the first token against length.

    Args:
        rows: As `timing.time_length` makes them, shortest first.
        axes: Of matplotlib.
    """
    lengths = [row["n_tokens"] for row in rows]
    for name, style in (("raw", "k-"), ("raw_cached", "k:")):
        seconds = [row[name]["first_token_seconds"] for row in rows]
        label = "raw text" if name == "raw" else "raw text, prefix kept"
        axes.plot(lengths, seconds, style, marker="o", label=label)
    for at, span in enumerate(rows[0]["spans"]):
        for name, style in (("cold", "--"), ("stored", "-"), ("cached", ":")):
            seconds = [row["spans"][at][name]["first_token_seconds"] for row in rows]
            label = f"symbols@{span['ratio']:g}, {name}"
            axes.plot(lengths, seconds, style, color=f"C{at}", marker=".", label=label)
    axes.set(
        xlabel="source tokens",
        ylabel="seconds to the first token",
        title="Time (cold: compressed first; stored; cached: prefix kept)",
        yscale="log",
    )
    axes.legend(**BESIDE)


def _line(axes: Any, x: list[float], y: list[float], ends: list[list[Any]], **style: Any) -> None:
    below = [_span(value, low) for value, low in zip(y, ends[0], strict=True)]
    above = [_span(high, value) for value, high in zip(y, ends[1], strict=True)]
    axes.errorbar(x, y, yerr=[below, above], marker="o", capsize=3, **style)


def _span(more: Any, less: Any) -> float:
    """How far two numbers are apart; 0 where one of them is not known."""
    if more is None or less is None or not math.isfinite(more - less):
        return 0.0
    return max(0.0, float(more - less))


def relative(names: Iterable[str], folder: str) -> list[str]:
    """Paths of pictures as a page elsewhere sees them.

    Args:
        names: Of the files.
        folder: Where they are, as seen from the page.

    Returns:
        Paths with forward slashes.
    """
    return [f"{folder.rstrip('/')}/{name}" for name in names]
