"""The pointer of the autoregressive writer: how far a window is written, and where a segment ends.

A pointer moves in bits of surprisal, not in tokens: at equal pace it takes few tokens where text is
dense and many where it is predictable. Where codes are names it steps from phrase to phrase, and
the bits of its window lie on the phrases that can be named. It moves forward only, and whoever
follows it gets ends that rise strictly and a last one that closes the window. What it does not
know: who sets the pace, which code names what.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zcontext.naming import phrases_of
from zcontext.segmentation import hardest, usual_weight, weigh

ROUNDING = 1e-9
"""What rounding may make of nothing: bits by which a place seems to lie behind an end that it lies
on, or what a whole number of names seems to lack."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a window is to be written in.

    Attributes:
        bits_per_symbol: Surprisal that one symbol is to stand for; a wish.
        most: Symbols at most; a law.
    """

    bits_per_symbol: float
    most: int


def price_of(ratio: float, *, mean_surprisal: float) -> float:
    """The bits that a symbol stands for at a ratio, in text of ordinary density.

    Args:
        ratio: Source tokens a symbol.
        mean_surprisal: Calibrated bits a token.

    Returns:
        Bits a symbol.
    """
    return ratio * usual_weight(mean_surprisal)


@dataclass(slots=True)
class Allowance:
    """What is asked of the windows of one document, while the writer decides itself how many.

    Attributes:
        n_tokens: Tokens of the document, those kept as text left out.
        price: Bits that a symbol is to stand for; None follows from `n_symbols`.
        n_symbols: Symbols that the document is to have.
        capped: Whether it may not have more.
        mean_surprisal: Calibrated bits a token.
    """

    n_tokens: int
    price: float | None
    n_symbols: int
    capped: bool
    mean_surprisal: float
    _seen: int = field(default=0, init=False)
    _spent: int = field(default=0, init=False)

    def next(self, n_tokens: int, *, windows_left: int) -> Request:
        """What the next window is asked for.

        Every window at the same price, so that dense ones take more. Under a cap, what is left of
        it sets the price, and windows to come keep a symbol each where it reaches that far.

        Args:
            n_tokens: Tokens of the window.
            windows_left: Windows that follow it.

        Returns:
            The request.
        """
        if not self.capped:
            ratio = self.n_tokens / max(1, self.n_symbols)
            return Request(self.price or self.at(ratio), n_tokens)
        left = self.n_symbols - self._spent
        most = left - windows_left
        if left <= windows_left:
            # Fewer symbols than windows: spread over the text, not spent on its beginning.
            due = math.ceil(self.n_symbols * (self._seen + n_tokens) / self.n_tokens)
            most = max(0, min(1, due - self._spent))
        ratio = max(1.0, (self.n_tokens - self._seen) / max(1, left))
        return Request(self.at(ratio), min(n_tokens, most))

    def at(self, ratio: float) -> float:
        """The price at a ratio."""
        return price_of(ratio, mean_surprisal=self.mean_surprisal)

    def spend(self, n_symbols: int, *, n_tokens: int) -> None:
        """Take note of what a window was written in."""
        self._spent += n_symbols
        self._seen += n_tokens


@dataclass(frozen=True, slots=True)
class Phrasing:
    """What a pointer is told of a window where codes are names.

    Attributes:
        starts: Where phrases start, bool `[n]`, on the CPU; none reaches across a stop.
        n_names: Phrases that a symbol can name.
    """

    starts: Tensor
    n_names: int


class Pointer:
    """Goes through the tokens of one window, or through its phrases.

    Led at the pace asked for through phrases, it goes as the one-pass writer places its slots: each
    symbol gets equally many of those that are hardest to guess, which are as many as the symbols
    expected can name. Where that is all of them, no pace leads a segment further than its symbol
    can name.

    Args:
        surprisal: Of the tokens to be written, bits, `[n]`; on the CPU.
        request: What they are to be written in.
        stops: Tokens that no segment reaches across, in order: where runs between literals end.
        phrasing: Where codes are names; no segment ends within a phrase.

    Attributes:
        steps: Its own bits of each token, or phrase, `[n_steps]`.
    """

    def __init__(
        self,
        surprisal: Tensor,
        request: Request,
        *,
        stops: Sequence[int] = (),
        phrasing: Phrasing | None = None,
    ) -> None:
        self.n_tokens = len(surprisal)
        weights = weigh(surprisal)
        self.total = float(weights.cumsum(0)[-1]) if self.n_tokens else 0.0
        self._most = request.most
        # Asked for more symbols than it may have, it spreads what it may have over the window.
        self.price = max(request.bits_per_symbol, self.total / max(1, request.most))
        self._behind = list(range(1, self.n_tokens + 1))  # tokens up to the end of each step
        self._furthest = self.n_tokens
        if phrasing is not None:
            last, bits = phrases_of(surprisal, phrasing.starts)
            self._behind = (last + 1).tolist()
            n_named = int(phrasing.n_names * max(1.0, self.total / self.price) + ROUNDING)
            if len(bits) <= n_named:
                self._furthest = phrasing.n_names
            weights = hardest(bits, n_named)
            weights = weights * (self.total / weights.sum())
        self.steps = weights  # bits of each
        # Bits up to the end of each step; a sum of shares may be a hair more than the whole.
        self._reached = weights.cumsum(0).clamp_max(self.total)
        self._stops = [bisect_right(self._behind, stop) for stop in stops]
        self._at = 0
        self.place = 0.0
        self.held = False  # whether the last segment ends before its pace led to
        self.ends: list[int] = []
        self.stopped = self.n_tokens == 0 or request.most < 1

    @property
    def n_steps(self) -> int:
        """Tokens, or phrases: segments at most."""
        return len(self._behind)

    @property
    def begin(self) -> int:
        """Tokens that are behind it."""
        return self.ends[-1] if self.ends else 0

    @property
    def n_left(self) -> float:
        """Symbols that the rest would take at the price asked for."""
        return max(0.0, self.total - self.place) / self.price

    def advance(self, pace: float) -> None:
        """Go on by one segment.

        Args:
            pace: Bits of it over those asked for.
        """
        share = pace * self.price
        place, end, self.held = self.place + share, self.n_steps, False
        if len(self.ends) + 1 < self._most:
            if self.total - place >= share / 2:
                stood = int(torch.searchsorted(self._reached, place - ROUNDING))
                end = min(max(stood, self._at) + 1, end)
            limits = [
                self._at + self._furthest,
                *self._stops[bisect_right(self._stops, self._at) :],
            ]
            self.held = min(limits) < end
            if self.held:
                end = min(limits)
                place = max(self.place, min(place, float(self._reached[end - 1])))
        self.place = self.total if end == self.n_steps else place
        self._at = end
        self.ends.append(self._behind[end - 1])
        self.stopped = end == self.n_steps

    def close(self) -> None:
        """END was chosen for the segment it has just been led to: the one before closes."""
        self.ends.pop()
        self.ends[-1] = self.n_tokens
        self.stopped = True
