"""How a long text is cut: extents, windows and the plan that lays windows over a document.

Floor 0, standard library only. It counts in token indices and knows neither text nor tokenizer:
the caller says where sentences end (`cuts`) and where a cut would split a character (`allowed`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import pairwise

from zcontext.errors import WindowError


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """A half-open range of indices, `start` included and `end` not.

    Raises:
        WindowError: if the bounds are not integers with 0 <= start <= end.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if not (_is_count(self.start) and _is_count(self.end) and self.start <= self.end):
            raise WindowError(
                f"Extent({self.start!r}, {self.end!r}) is not a range: "
                "give integers with 0 <= start <= end."
            )

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Window:
    """What one forward pass reads: a context it has seen before, then the target it writes.

    Args:
        context: Tokens read again so that the target is understood; may be empty.
        target: Tokens that symbols are written for; never empty.
        index: Place of the window in its document, from 0.

    Raises:
        WindowError: if the context does not end where the target starts, the target is empty, or
            the index is negative.
    """

    context: Extent
    target: Extent
    index: int

    def __post_init__(self) -> None:
        if self.context.end != self.target.start:
            raise WindowError(
                f"Window {self.index}: context ends at {self.context.end} but target starts at "
                f"{self.target.start}; the context must end where the target starts."
            )
        if not len(self.target):
            raise WindowError(f"Window {self.index}: the target is empty; leave the window out.")
        if not _is_count(self.index):
            raise WindowError(f"Window index {self.index!r} is not a number from 0 up.")

    @property
    def n_tokens(self) -> int:
        """Tokens read: context and target together."""
        return len(self.context) + len(self.target)


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Lays windows over a document.

    A window reads at most `window` tokens. Every window but the first reads `context` of them
    again from the left of its target, so its target has at most `window - context`.

    Args:
        window: Most tokens read in one forward pass, context included.
        context: Tokens of the previous windows read again.

    Raises:
        WindowError: if `window` is below 1 or `context` is not in 0..window-1.
    """

    window: int = 512
    context: int = 0

    def __post_init__(self) -> None:
        if not _is_count(self.window) or self.window < 1:
            raise WindowError(f"window={self.window!r} tokens: give an integer of 1 or more.")
        if not _is_count(self.context) or self.context >= self.window:
            raise WindowError(
                f"context={self.context!r} tokens leaves no room for a target in a window of "
                f"{self.window}: give an integer in 0..{self.window - 1}."
            )

    @classmethod
    def sliding(cls, *, window: int, stride: int) -> WindowPlan:
        """Windows that move on by a stride: each but the first writes the last `stride` tokens.

        Args:
            window: Tokens read in one forward pass.
            stride: Tokens by which the next window starts later, and which it writes.

        Returns:
            The plan with `window - stride` tokens of context.

        Raises:
            WindowError: if `stride` is not in 1..window.
        """
        if not _is_count(stride) or not 1 <= stride <= window:
            raise WindowError(
                f"stride={stride!r} tokens: give an integer in 1..{window}, the window's length."
            )
        return cls(window=window, context=window - stride)

    @classmethod
    def paper(cls) -> WindowPlan:
        """The setting of arXiv 2603.25340: windows of 1,024 tokens at a stride of 256."""
        return cls.sliding(window=1024, stride=256)

    @property
    def stride(self) -> int:
        """Tokens that every window but the first writes at most: window less context."""
        return self.window - self.context

    def overlapping(self, n_tokens: int) -> tuple[Extent, ...]:
        """The windows as what they read, each to be written whole and apart from the others.

        Neighbours share `context` tokens, so their symbols for these can be compared.

        Args:
            n_tokens: Length of the document.

        Returns:
            Extents that start every `stride` tokens; the last one ends with the document.

        Raises:
            WindowError: if `n_tokens` is negative.
        """
        if not _is_count(n_tokens):
            raise WindowError(f"n_tokens={n_tokens!r}: give an integer of 0 or more.")
        n_more = -(-max(0, n_tokens - self.window) // self.stride)
        starts = range(0, n_more * self.stride + 1, self.stride) if n_tokens else ()
        return tuple(Extent(at, min(n_tokens, at + self.window)) for at in starts)

    def cover(
        self,
        n_tokens: int,
        *,
        cuts: Sequence[int] | None = None,
        allowed: Container[int] | None = None,
    ) -> tuple[Window, ...]:
        """Windows whose targets cover 0..n_tokens exactly once, in order.

        Args:
            n_tokens: Length of the document.
            cuts: Token indices, rising, where a target would best end (sentence ends). The last
                one in the second half of a window is taken; without one the cut is hard.
            allowed: Token indices where a cut splits no character. No window ends anywhere else
                (the end of the document is always allowed).

        Returns:
            The windows; none for an empty document.

        Raises:
            WindowError: if `n_tokens` is negative, `cuts` are not rising, or no allowed cut lies
                within reach of a window.
        """
        if not _is_count(n_tokens):
            raise WindowError(f"n_tokens={n_tokens!r}: give an integer of 0 or more.")
        marks = () if cuts is None else cuts
        if any(a > b for a, b in pairwise(marks)):
            raise WindowError("cuts must be rising token indices: sort them first.")
        windows: list[Window] = []
        start = 0
        while start < n_tokens:
            context = min(self.context, start)
            limit = start + self.window - context
            end = n_tokens if limit >= n_tokens else _cut(start, limit, marks, allowed)
            windows.append(Window(Extent(start - context, start), Extent(start, end), len(windows)))
            start = end
        return tuple(windows)


def _cut(start: int, limit: int, cuts: Sequence[int], allowed: Container[int] | None) -> int:
    """Where the target that starts at `start` and may reach `limit` ends."""
    half = start + (limit - start) // 2
    at = bisect_right(cuts, limit)
    while at > 0 and cuts[at - 1] > half:
        if allowed is None or cuts[at - 1] in allowed:
            return cuts[at - 1]
        at -= 1
    if allowed is None:
        return limit
    for end in range(limit, start, -1):
        if end in allowed:
            return end
    raise WindowError(
        f"Tokens {start}..{limit} hold no place to cut without splitting a character: "
        f"use a window with room for more than {limit - start} target tokens."
    )
