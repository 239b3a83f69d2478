"""Windows around text that is kept: which windows are text, and where text stands in others.

A long literal (a table, a block of code) is windows of its own, and the windows beside it break
there. A short one (a number, a name) stays inside its window, so that the writer reads sentences
and not scraps, and symbols are written for the tokens around it.

Floor 0, standard library only. It counts in tokens, and knows neither text nor models.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from zcontext.config import MAX_RATIO
from zcontext.errors import ConfigError
from zcontext.windows import Extent, Window, WindowPlan

_BLOCKS: Final = WindowPlan(window=8192)


def beside(n_tokens: int, literals: Sequence[Extent]) -> list[int]:
    """Tokens that are not kept as text.

    Args:
        n_tokens: How many there are.
        literals: What is kept.

    Returns:
        Their places, rising.
    """
    kept = {at for each in literals for at in range(each.start, each.end)}
    return [at for at in range(n_tokens) if at not in kept]


@dataclass(frozen=True, slots=True)
class LaidWindow:
    """A window and the text in its target that stays.

    Attributes:
        window: What one pass reads.
        literals: Tokens kept as text, from the target's start, in order.
    """

    window: Window
    literals: tuple[Extent, ...] = ()

    @property
    def free(self) -> list[int]:
        """Tokens that symbols are written for, from the target's start."""
        return beside(len(self.window.target), self.literals)

    @property
    def n_free(self) -> int:
        """Tokens that symbols are written for."""
        return len(self.window.target) - sum(map(len, self.literals))


@dataclass(frozen=True, slots=True)
class _Allowed:
    """Where a run of tokens may be cut: where the document may, and through no literal."""

    allowed: Container[int] | None
    start: int
    literals: Sequence[Extent]

    def __contains__(self, token: object) -> bool:
        if not isinstance(token, int):
            return False
        at = self.start + token
        if self.allowed is not None and at not in self.allowed:
            return False
        before = bisect_left(self.literals, at, key=lambda each: each.start) - 1
        return before < 0 or self.literals[before].end <= at


def token_extents(
    places: Sequence[tuple[int, int]], starts: Sequence[int]
) -> list[tuple[Extent, tuple[int, int]]]:
    """The tokens of some places in a text that was tokenised piece by piece, cut at these places.

    Args:
        places: Character ranges, in order, none touching another.
        starts: Character at which each token starts, never falling.

    Returns:
        Tokens and characters of each place; those without a token are left out.
    """
    found = []
    for begin, end in places:
        tokens = Extent(bisect_left(starts, begin), bisect_left(starts, end))
        if len(tokens):
            found.append((tokens, (begin, end)))
    return found


def lay_windows(
    plan: WindowPlan,
    n_tokens: int,
    *,
    blocks: Sequence[Extent] = (),
    inline: Sequence[Extent] = (),
    cuts: Sequence[int] = (),
    allowed: Container[int] | None = None,
) -> tuple[LaidWindow, ...]:
    """Windows that cover a document exactly once, around its literals.

    Args:
        plan: How runs between blocks are cut; no window reads across a block.
        n_tokens: Length of the document.
        blocks: Literals that are windows of their own, in order.
        inline: Literals that stay inside windows, in order; none is cut.
        cuts: As for `WindowPlan.cover`.
        allowed: As for `WindowPlan.cover`.

    Returns:
        The windows, in order.

    Raises:
        WindowError: if no allowed cut lies within reach of a window.
    """  # noqa: DOC502 - raised by the plan
    laid: list[LaidWindow] = []
    at = 0
    for block in (*blocks, Extent(n_tokens, n_tokens)):
        first, last = bisect_right(cuts, at), bisect_left(cuts, block.start)
        windows = plan.cover(
            block.start - at,
            cuts=[cut - at for cut in cuts[first:last]],
            allowed=_Allowed(allowed, at, inline),
        )
        laid += [
            LaidWindow(window, _inside(inline, window.target))
            for window in _shifted(windows, at, len(laid))
        ]
        pieces = _BLOCKS.cover(len(block), allowed=_Allowed(allowed, block.start, ()))
        laid += [
            LaidWindow(window, (Extent(0, len(window.target)),))
            for window in _shifted(pieces, block.start, len(laid))
        ]
        at = block.end
    return tuple(laid)


def _shifted(windows: Sequence[Window], by: int, index: int) -> Iterator[Window]:
    for window in windows:
        context = Extent(window.context.start + by, window.context.end + by)
        target = Extent(window.target.start + by, window.target.end + by)
        yield Window(context, target, index + window.index)


def _inside(literals: Sequence[Extent], target: Extent) -> tuple[Extent, ...]:
    first = bisect_left(literals, target.start, key=lambda each: each.start)
    last = bisect_left(literals, target.end, key=lambda each: each.start)
    return tuple(
        Extent(each.start - target.start, each.end - target.start) for each in literals[first:last]
    )


def symbols_beside(
    n_tokens: int, n_literal: int, *, ratio: float | None = None, max_symbols: int | None = None
) -> int:
    """How many symbols a budget of positions leaves beside the text that is kept.

    A ratio is met where it can be: text that is kept stays, and the rest is never written at more
    than the highest ratio there is. A hard cap is always met.

    Args:
        n_tokens: Tokens of the document.
        n_literal: Of these, kept as text.
        ratio: Source tokens per position.
        max_symbols: Most positions.

    Returns:
        Symbols for the tokens that are not kept, at most one for each.

    Raises:
        ConfigError: The text that is kept leaves no room under `max_symbols`.
    """
    n_free = n_tokens - n_literal
    if max_symbols is not None:
        if max_symbols < n_literal + min(n_free, 1):
            raise ConfigError(
                f"max_symbols={max_symbols} has no room for the {n_literal:,} tokens that protect "
                f"keeps as text, and {n_free:,} more; raise it to {n_literal + min(n_free, 1):,} "
                "or more, or protect less",
                field="max_symbols",
                value=max_symbols,
            )
        return min(n_free, max_symbols - n_literal)
    wanted = int(n_tokens / (ratio or 1.0) + 1e-9) - n_literal
    return min(n_free, max(wanted, int(n_free / MAX_RATIO), 1))
