"""Where symbols go: surprisal in, slot positions out, under a budget for the whole document.

A slot stands at the end of its segment, and a segment ends each time the accumulated surprisal
crosses another `bits_per_symbol`: dense text is cut finer than predictable text. Where codes name
tokens, a segment ends when as many tokens as a symbol can name are in it, of those that are hardest
to guess. What this module does not know: models, text, windows. It sees one row of numbers at a
time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zcontext.errors import ConfigError

FLOOR_BITS = 0.5
"""Bits added to every token: even perfectly predictable text must be pointed at by some symbol."""


MOST_BITS = 3.0
"""Bits from which a token draws no more: a reader will not guess it, and to be named costs the same
for every token."""


FACT_BITS = 4.0
"""Bits that a number, a name or an address is taken to be harder to guess than a model says: a
reader who guesses it gets it wrong."""

FACT_WEIGHT = 1.0
"""What a token of a fact draws more of the budget: windows of many facts then get more symbols, and
those that are hard to guess no fewer than others (docs/development/log.md)."""


def weigh(surprisal: Tensor) -> Tensor:
    """The budget each token draws: its surprisal up to `MOST_BITS`, plus a small floor.

    Args:
        surprisal: Bits per token, `[n]`.

    Returns:
        float64 weights, `[n]`, all positive.
    """
    return surprisal.to(torch.float64).clamp(0.0, MOST_BITS) + FLOOR_BITS


def usual_weight(mean_surprisal: float) -> float:
    """What a token of ordinary text draws on average.

    Surprisal is taken to fall off exponentially, which comes within a tenth of what text draws.

    Args:
        mean_surprisal: Bits per token, before anything is cut off.

    Returns:
        The mean of `weigh`.
    """
    return mean_surprisal * -math.expm1(-MOST_BITS / mean_surprisal) + FLOOR_BITS


def count_slots(surprisal: Tensor, *, bits_per_symbol: float, n_facts: int = 0) -> int:
    """How many symbols a run of tokens earns at a given price.

    Args:
        surprisal: Bits per token, `[n]`.
        bits_per_symbol: Weight that one symbol stands for.
        n_facts: Tokens that belong to numbers, names and addresses; each draws `FACT_WEIGHT` more.

    Returns:
        A count from 1 to n; 0 for no tokens.

    Raises:
        ConfigError: The price is not positive.
    """
    if not bits_per_symbol > 0:
        raise ConfigError(
            f"bits_per_symbol must be positive, got {bits_per_symbol}",
            field="bits_per_symbol",
            value=bits_per_symbol,
        )
    n = surprisal.shape[0]
    if n == 0:
        return 0
    weight = float(weigh(surprisal).sum()) + FACT_WEIGHT * n_facts
    return max(1, min(n, math.ceil(weight / bits_per_symbol - 1e-9)))


def place_slots(surprisal: Tensor, n_slots: int, *, n_names: int | None = None) -> Tensor:
    """Cut tokens into segments of equal accumulated surprisal, or with equally many to be named.

    Args:
        surprisal: Bits per token, `[n]`.
        n_slots: Number of segments, 1 to n.
        n_names: Tokens that a symbol can name, where codes are names. Then every segment gets as
            many of the tokens that are hardest to guess as its symbol can name.

    Returns:
        int64 `[n_slots]`: the index of the last token of each segment; strictly increasing, the
        last one is n - 1.

    Raises:
        ConfigError: There are fewer tokens than slots, or no slot for some tokens.
    """
    n = surprisal.shape[0]
    if n == 0 and n_slots == 0:
        return torch.zeros(0, dtype=torch.long)
    if not 1 <= n_slots <= n:
        raise ConfigError(
            f"{n} tokens cannot be cut into {n_slots} segments; give 1 to {n} slots",
            field="n_slots",
            value=n_slots,
        )
    weights = weigh(surprisal) if n_names is None else hardest(surprisal, n_slots * n_names)
    cumulative = weights.cumsum(0)
    step = torch.arange(1, n_slots + 1, dtype=torch.float64)
    wanted = torch.searchsorted(cumulative, step * (cumulative[-1] / n_slots))
    order = torch.arange(n_slots)
    # Strictly increasing from the left: running maximum of (wanted - j), put back; then the same
    # bound from the right, so that enough tokens stay for the slots that follow.
    ends = (wanted - order).cummax(0).values + order
    ends = torch.minimum(ends, n - n_slots + order)
    ends[-1] = n - 1
    return ends


def hardest(surprisal: Tensor, count: int) -> Tensor:
    """Mark the tokens that are hardest to guess.

    Args:
        surprisal: Bits per token, `[n]`; of equals the earlier is marked.
        count: How many to mark.

    Returns:
        1 for these, 0 for all others, float64 `[n]`.
    """
    chosen = surprisal.argsort(descending=True, stable=True)[:count]
    return torch.zeros(len(surprisal), dtype=torch.float64).index_fill(0, chosen, 1.0)


def place_evenly(n: int, n_slots: int) -> Tensor:
    """Segments of equal length: the baseline that surprisal has to beat.

    Args:
        n: Number of tokens.
        n_slots: Number of segments, 1 to n.

    Returns:
        int64 `[n_slots]`, as `place_slots` returns it.

    Raises:
        ConfigError: As for `place_slots`.
    """
    return place_slots(torch.zeros(n), n_slots)


def segment_of(ends: Tensor, n: int) -> Tensor:
    """Which segment each token belongs to.

    Args:
        ends: Last token of every segment, `[..., k]`.
        n: Number of tokens.

    Returns:
        int64 `[..., n]`, values 0 to k - 1.
    """
    tokens = torch.arange(n, device=ends.device).expand(*ends.shape[:-1], n)
    return torch.searchsorted(ends.contiguous(), tokens.contiguous())


@dataclass(slots=True)
class DocumentBudget:
    """One document's budget of symbols, handed out window by window without a second reading.

    The price of a symbol starts from the calibrated mean surprisal and is corrected after every
    window, so that the whole document meets its total exactly while dense windows get more.

    Attributes:
        n_tokens: Tokens of the document.
        n_symbols: Symbols to hand out in all; None when only a price was given.
        bits_per_symbol: The fixed price; None when a total was given.
        mean_surprisal: Calibrated bits per token, before anything has been read.
        facts: Tokens of each window that belong to numbers, names and addresses, where these draw
            more.
        whole: Symbols that would name all of each window, where codes are names; as long as there
            are enough for all that are left, none gets fewer.
    """

    n_tokens: int
    n_symbols: int | None
    bits_per_symbol: float | None
    mean_surprisal: float
    facts: Sequence[int] = ()
    whole: Sequence[int] = ()
    _seen_tokens: int = field(default=0, init=False)
    _seen_weight: float = field(default=0.0, init=False)
    _facts_left: int = field(default=0, init=False)
    _whole_left: int = field(default=0, init=False)
    _given: int = field(default=0, init=False)

    PRIOR_TOKENS = 256
    """How many tokens of reading the calibrated mean is worth."""

    def __post_init__(self) -> None:
        self._facts_left, self._whole_left = sum(self.facts), sum(self.whole)

    @property
    def usual_weight(self) -> float:
        """What the document draws, as far as is known before it is read."""
        guessed = usual_weight(self.mean_surprisal)
        return self.n_tokens * guessed + FACT_WEIGHT * sum(self.facts)

    def take(self, surprisal: Tensor, *, windows_left: int) -> int:
        """Symbols for the next window.

        Args:
            surprisal: Bits per token of the window's target, `[n]`.
            windows_left: Windows that follow this one; each gets a symbol where the total allows.

        Returns:
            How many symbols to write, 1 to n (0 when the total is spent).
        """
        n, at = surprisal.shape[0], -windows_left - 1
        n_facts = self.facts[at] if self.facts else 0
        whole = self.whole[at] if self.whole else 0
        self._facts_left -= n_facts
        self._whole_left -= whole
        guessed = float(weigh(surprisal).sum())
        weight = guessed + FACT_WEIGHT * n_facts
        self._seen_tokens += n
        self._seen_weight += guessed
        if self.bits_per_symbol is not None or self.n_symbols is None:
            price = self.bits_per_symbol or math.inf
            count = count_slots(surprisal, bits_per_symbol=price, n_facts=n_facts)
            self._given += count
            return count
        left = self.n_symbols - self._given
        tokens_after = self.n_tokens - self._seen_tokens
        if windows_left == 0:
            count = left
        elif left <= windows_left:
            # Fewer symbols than windows: spread over the text, not spent on its beginning.
            due = math.ceil(self.n_symbols * self._seen_tokens / self.n_tokens) - self._given
            count = max(0, min(1, due))
            self._given += count
            return count
        else:
            prior = self.PRIOR_TOKENS * usual_weight(self.mean_surprisal)
            mean = (prior + self._seen_weight) / (self.PRIOR_TOKENS + self._seen_tokens)
            coming = mean * tokens_after + FACT_WEIGHT * self._facts_left
            count = round(left * weight / (weight + coming))
            if whole + self._whole_left <= left:
                count = min(max(count, whole), left - self._whole_left)
            count = max(count, 1)
        # Never so many that later windows starve, never so few that they cannot hold the rest.
        count = max(min(count, left - min(windows_left, left)), left - tokens_after)
        count = max(0, min(count, n, left))
        if count == 0 and left > 0:
            count = 1
        self._given += count
        return count
