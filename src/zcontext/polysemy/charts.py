"""Three plots as SVG text: a curve on logarithmic axes, two histograms, bars with their spread.

They stand in a page as they are: no scripts, no fonts or styles from elsewhere; every mark says its
numbers on hover and every plot has a text alternative. What it does not know: what is plotted.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Final

WIDTH: Final = 460
HEIGHT: Final = 270
LEFT, RIGHT, TOP, BOTTOM = 68, 20, 32, 44
# Blue and orange keep apart in every common kind of colour blindness.
COLOURS: Final = ("#2b66a3", "#d9730d")
INK, FAINT = "#14202e", "#cfd8e3"
N_BINS = 40


def log_curve(points: Sequence[tuple[float, float]], *, label: str, x: str, y: str) -> str:
    """A curve on two logarithmic axes.

    Args:
        points: Positive coordinates, in order.
        label: What it shows, for who cannot see it.
        x: Name of the horizontal axis.
        y: Name of the vertical axis.

    Returns:
        An svg element.
    """
    if not points:
        return _frame(label, [_note("nothing to show")], x, y)
    top = [max(1, math.ceil(math.log10(max(p[axis] for p in points)))) for axis in (0, 1)]

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return _across(math.log10(point[0]) / top[0]), _up(math.log10(point[1]) / top[1])

    marks = [_tick_x(10**k, k / top[0]) for k in range(top[0] + 1)]
    marks += [_tick_y(10**k, k / top[1]) for k in range(top[1] + 1)]
    line = " ".join("{:.1f},{:.1f}".format(*place(point)) for point in points)
    marks.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[0]}" stroke-width="2"/>')
    for point in points:
        cx, cy = place(point)
        marks.append(
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2.5" fill="{COLOURS[0]}">'
            f"{_title(f'{x} {point[0]:,g}: {point[1]:,g}')}</circle>"
        )
    return _frame(label, marks, x, y)


def histograms(
    series: Sequence[tuple[str, Sequence[float]]], *, label: str, x: str, low: float, high: float
) -> str:
    """Up to two distributions over one another, each as shares of its own values.

    Args:
        series: Names and values.
        label: What it shows.
        x: Name of the horizontal axis.
        low: Left end of the axis, moved to a round number; values beyond count into the outermost
            bin.
        high: Right end.

    Returns:
        An svg element.
    """
    step = _round_up((high - low) / 6)
    low = math.floor(low / step + 1e-9) * step
    n_steps = int((high - low) / step + 1e-9)
    shares = [_binned(values, low, high) for _, values in series]
    top = _round_up(max((max(row) for row in shares), default=1.0))
    marks = [_tick_x(low + step * k, step * k / (high - low)) for k in range(n_steps + 1)]
    marks += [_tick_y(top * k / 2, k / 2) for k in range(3)]
    width = (WIDTH - LEFT - RIGHT) / N_BINS
    for (name, _), row, colour in zip(series, shares, COLOURS, strict=False):
        for at, share in enumerate(row):
            if share:
                a = low + (high - low) * at / N_BINS
                b = low + (high - low) * (at + 1) / N_BINS
                y = _up(share / top)
                marks.append(
                    f'<rect x="{_across(at / N_BINS):.1f}" y="{y:.1f}" width="{width:.1f}" '
                    f'height="{_up(0) - y:.1f}" fill="{colour}" fill-opacity="0.55">'
                    f"{_title(f'{name}, {a:.2f} to {b:.2f}: {share:.1%}')}</rect>"
                )
    return _frame(label, [*marks, *_legend([name for name, _ in series])], x, "share of codes")


def bars(
    groups: Sequence[tuple[str, Sequence[tuple[str, float, float]]]],
    *,
    label: str,
    x: str = "",
    y: str,
    high: float,
) -> str:
    """Bars in groups, each with a whisker one standard deviation long to both sides.

    Args:
        groups: Name of each group and its bars: name, height, deviation; up to two.
        label: What it shows.
        x: Name of the horizontal axis.
        y: Name of the vertical axis.
        high: Top of the axis, moved up to a round number.

    Returns:
        An svg element.
    """
    high = _round_up(high)
    marks = [_tick_y(high * k / 4, k / 4) for k in range(5)]
    names: dict[str, None] = {}
    slot = 1 / max(1, len(groups))
    for at, (group, items) in enumerate(groups):
        marks.append(_label(_across((at + 0.5) * slot), HEIGHT - BOTTOM + 18, group))
        for k, (name, value, deviation) in enumerate(items):
            names[name] = None
            width = slot * 0.7 / max(1, len(items))
            left = _across(at * slot + slot * 0.15 + k * width)
            wide = width * (WIDTH - LEFT - RIGHT) * 0.9
            top = _up(min(1.0, value / high))
            reach = [
                _up(min(1.0, max(0.0, v / high))) for v in (value - deviation, value + deviation)
            ]
            colour = COLOURS[list(names).index(name) % len(COLOURS)]
            marks.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" '
                f'height="{_up(0) - top:.1f}" fill="{colour}">'
                f"{_title(f'{group}, {name}: {value:.3f} +- {deviation:.3f}')}</rect>"
            )
            middle = left + wide / 2
            if deviation:
                marks.append(_line(middle, reach[0], middle, reach[1], INK))
    legend = _legend(list(names)) if len(names) > 1 else []
    return _frame(label, [*marks, *legend], x, y)


# -- pieces -------------------------------------------------------------------------------------


def _frame(label: str, marks: Sequence[str], x: str, y: str) -> str:
    axes = _line(LEFT, _up(0), WIDTH - RIGHT, _up(0), INK) + _line(LEFT, TOP, LEFT, _up(0), INK)
    middle = (TOP + HEIGHT - BOTTOM) / 2
    names = _label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x) + (
        f'<text x="14" y="{middle}" text-anchor="middle" fill="{INK}" '
        f'transform="rotate(-90 14 {middle})">{html.escape(y)}</text>'
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}" '
        f'font-family="system-ui, sans-serif" font-size="12">{axes}{"".join(marks)}{names}</svg>'
    )


def _round_up(value: float) -> float:
    """The next of 1, 2, 4 and 5 times a power of ten; 1 for nothing."""
    if value <= 0:
        return 1.0
    scale: float = 10.0 ** math.floor(math.log10(value))
    return next(k * scale for k in (1, 2, 4, 5, 10) if k * scale >= value * (1 - 1e-9))


def _across(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _up(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _label(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">'
        f"{html.escape(text)}</text>"
    )


def _tick_x(value: float, share: float) -> str:
    x = _across(share)
    return _line(x, _up(0), x, _up(0) + 4, INK) + _label(x, _up(0) + 17, f"{round(value, 9):,.6g}")


def _tick_y(value: float, share: float) -> str:
    y = _up(share)
    grid = _line(LEFT, y, WIDTH - RIGHT, y, FAINT) if share else ""
    return grid + _label(LEFT - 6, y + 4, f"{round(value, 9):,.6g}", anchor="end")


def _title(text: str) -> str:
    return f"<title>{html.escape(text)}</title>"


def _note(text: str) -> str:
    return _label(WIDTH / 2, HEIGHT / 2, text)


def _legend(names: Sequence[str]) -> list[str]:
    marks = []
    for at, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        x, y = LEFT + 150 * at, TOP - 24
        marks.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/>')
        marks.append(_label(x + 16, y + 9, name, anchor="start"))
    return marks


def _binned(values: Sequence[float], low: float, high: float) -> list[float]:
    counts = [0] * N_BINS
    for value in values:
        counts[max(0, min(N_BINS - 1, int((value - low) / (high - low) * N_BINS)))] += 1
    return [count / max(1, len(values)) for count in counts]
