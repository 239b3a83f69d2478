"""Which retrieved chunks a prompt has room for, and how finely: text, symbols, or nothing.

A reader has so many positions for all chunks of one question. `plan_budget` gives each chunk one
form: its text, symbols at some ratio, or none, so that the expected use of the whole is as large
as it can be and the positions are never more than allowed.

The value of a form is an assumption, stated here so that it can be replaced: a chunk is of use
with a chance in proportion to its score, and then to the share of it that survives its form,
`Retention`. Text keeps all. By default symbols lose the same share with every doubling of the
ratio (`log_retention`); `measured_retention` takes figures measured on a codec instead.

The plan is exact: a multiple-choice knapsack solved by dynamic programming over positions, in
integers. What this module does not know: texts, models, how a chunk becomes symbols.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from zcontext.config import MAX_RATIO, MIN_RATIO
from zcontext.errors import ConfigError
from zcontext.literals import symbols_beside

__all__ = [
    "RATIOS",
    "Candidate",
    "Choice",
    "Form",
    "Plan",
    "Retention",
    "log_retention",
    "measured_retention",
    "plan_budget",
]

RATIOS: Final = (2.0, 4.0, 8.0, 16.0)
"""Ratios symbols are planned at unless others are given: the range that codecs are trained on."""
LOSS_PER_DOUBLING: Final = 0.12
"""Share of a chunk's use lost with every doubling of the ratio; assumed, not measured."""
_CELLS: Final = 16_384
"""Larger budgets are planned in units of 1/16,384 of them, costs rounded up to whole units."""
_SCALE: Final = 10**12

Form = Literal["text", "symbols", "dropped"]
Retention = Callable[[float], float]
"""Share of a chunk's use, 0..1, that symbols keep at a ratio of source tokens per symbol."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk that asks for room.

    Args:
        n_tokens: Positions that its text takes.
        score: Its relevance, the higher the better; None if unknown.
        n_stored: Symbols of a document that is there already; None if there is none. Finer ones
            are then not planned, since writing them anew would have to run the model.
        compressible: Whether symbols may be written for it.
        n_literal: Tokens of it that stay text between newly written symbols.

    Raises:
        ConfigError: if a count is negative.
    """

    n_tokens: int
    score: float | None = None
    n_stored: int | None = None
    compressible: bool = True
    n_literal: int = 0

    def __post_init__(self) -> None:
        for name in ("n_tokens", "n_stored", "n_literal"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 0):
                raise ConfigError(
                    f"{name}={value!r}: give a count of 0 or more.", field=name, value=value
                )


@dataclass(frozen=True, slots=True)
class Choice:
    """What a chunk gets.

    Args:
        form: Its text, symbols, or nothing.
        n_positions: Positions it may take; for symbols, the number of them.
        share: Share of its use that is kept.
        stored: Whether these are the symbols that are there already.
    """

    form: Form
    n_positions: int
    share: float
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """One choice per chunk, in the order given.

    Args:
        choices: What each chunk gets.
        n_positions: Positions of all together, never more than the budget.
        expected_use: Sum of the shares kept, weighted by the chunks' scores (the best weighs 1).
    """

    choices: tuple[Choice, ...]
    n_positions: int
    expected_use: float


def log_retention(ratio: float) -> float:
    """The assumption made where nothing was measured: every doubling loses as much as the last."""
    return max(0.0, 1.0 - LOSS_PER_DOUBLING * math.log2(max(ratio, 1.0)))


def measured_retention(points: Sequence[tuple[float, float]]) -> Retention:
    """A retention from measured figures, such as F1 by ratio over F1 on the text.

    Between two points it is linear in the logarithm of the ratio; before the first and after the
    last it stays what it is there.

    Args:
        points: Pairs of a ratio and the share kept at it.

    Returns:
        The retention.

    Raises:
        ConfigError: if there is no point, a ratio is below 1 or given twice, a share is outside
            0..1, or a higher ratio keeps more than a lower one.
    """
    known = sorted((float(ratio), float(share)) for ratio, share in points)
    falling = all(a[0] < b[0] and a[1] >= b[1] for a, b in pairwise(known))
    fits = all(1.0 <= ratio < math.inf and 0.0 <= share <= 1.0 for ratio, share in known)
    if not (known and falling and fits):
        raise ConfigError(
            f"points={list(points)!r}: give one (ratio, share) or more, ratios of 1 or more and "
            "all different, shares in 0..1 that do not rise with the ratio.",
            field="points",
            value=points,
        )
    places = [math.log2(ratio) for ratio, _ in known]
    shares = [share for _, share in known]
    return lambda ratio: float(np.interp(math.log2(max(ratio, 1.0)), places, shares))


def plan_budget(
    candidates: Sequence[Candidate],
    *,
    max_tokens: int,
    ratios: Sequence[float] = RATIOS,
    retention: Retention = log_retention,
) -> Plan:
    """The forms of all chunks that make the most of a budget.

    What holds, and is tested: the positions never exceed the budget. No other plan has a larger
    expected use (up to 16,384 positions; beyond, costs are rounded up to 1/16,384 of the budget).
    So more budget never lowers the expected use of the whole; that of one chunk it may lower, where
    the room lets a better chunk have its text. Of two chunks with the same choices, the one that
    scores higher never gets the coarser form. The same input gives the same plan.

    Args:
        candidates: The chunks. Weights are their scores, where all have a positive one. Else a
            chunk's weight is one over its rank, by score, or by place in the list where some
            scores are unknown.
        max_tokens: Positions for all of them.
        ratios: Ratios at which symbols may be written.
        retention: What symbols keep at a ratio; values outside 0..1 are cut.

    Returns:
        The plan.

    Raises:
        ConfigError: if `max_tokens` is negative or a ratio is out of range.
    """
    if type(max_tokens) is not int or max_tokens < 0:
        raise ConfigError(
            f"max_tokens={max_tokens!r}: give 0 positions or more.",
            field="max_tokens",
            value=max_tokens,
        )
    for ratio in ratios:
        if not MIN_RATIO <= ratio <= MAX_RATIO:
            raise ConfigError(
                f"ratios={list(ratios)!r}: give ratios in {MIN_RATIO:g}..{MAX_RATIO:g}.",
                field="ratios",
                value=ratios,
            )
    ladders = [_ladder(candidate, ratios, retention) for candidate in candidates]
    weights = _weights([candidate.score for candidate in candidates])
    levels = _best_first(_solve(ladders, weights, max_tokens), ladders, weights)
    choices = tuple(ladder[level] for ladder, level in zip(ladders, levels, strict=True))
    return Plan(
        choices=choices,
        n_positions=sum(choice.n_positions for choice in choices),
        expected_use=math.fsum(
            weight * choice.share for weight, choice in zip(weights, choices, strict=True)
        ),
    )


def _ladder(
    candidate: Candidate, ratios: Sequence[float], retention: Retention
) -> tuple[Choice, ...]:
    """A chunk's forms, each with more positions and more use than the one before it."""
    n_tokens, n_stored = candidate.n_tokens, candidate.n_stored
    # Text and stored symbols come first, so that of two forms at one price they are kept.
    forms = [Choice("text", n_tokens, 1.0)]
    if n_stored is not None:
        share = retention(n_tokens / n_stored) if n_stored else 0.0
        forms.append(Choice("symbols", n_stored, min(max(share, 0.0), 1.0), stored=True))
    if candidate.compressible and n_tokens:
        finest = n_tokens if n_stored is None else n_stored
        for ratio in sorted(ratios):
            n_literal = min(candidate.n_literal, n_tokens)
            n_symbols = n_literal + symbols_beside(n_tokens, n_literal, ratio=ratio)
            if n_symbols < finest:
                share = min(max(retention(n_tokens / n_symbols), 0.0), 1.0)
                forms.append(Choice("symbols", n_symbols, share))
    ladder = [Choice("dropped", 0, 0.0)]
    for form in sorted(forms, key=lambda form: (form.n_positions, -form.share)):
        if form.share > ladder[-1].share:
            ladder.append(form)
    return tuple(ladder)


def _weights(scores: Sequence[float | None]) -> list[float]:
    """What each chunk counts for; the most relevant one counts 1."""
    known = [score for score in scores if score is not None and math.isfinite(score)]
    if len(known) < len(scores):
        return [1.0 / rank for rank in range(1, len(scores) + 1)]
    if all(score > 0 for score in known):
        return [score / max(known) for score in known]
    # Logits of rerankers and the like: only their order means something here.
    order = sorted(set(known), reverse=True)
    return [1.0 / (1 + order.index(score)) for score in known]


def _solve(ladders: Sequence[Sequence[Choice]], weights: Sequence[float], budget: int) -> list[int]:
    """The level of each chunk on its ladder, of largest total value within the budget."""
    budget = min(budget, sum(ladder[-1].n_positions for ladder in ladders))
    unit = max(1, -(-budget // _CELLS))
    room = budget // unit
    best: npt.NDArray[np.int64] = np.zeros(room + 1, dtype=np.int64)  # by positions allowed
    taken: list[npt.NDArray[np.int8]] = []
    for ladder, weight in zip(ladders, weights, strict=True):
        before, best = best, best.copy()
        levels = np.zeros(room + 1, dtype=np.int8)
        for level in range(1, len(ladder)):
            cost = -(-ladder[level].n_positions // unit)
            if cost > room:
                break
            value = before[: room + 1 - cost] + _value(weight, ladder[level].share, level)
            better = value > best[cost:]
            best[cost:][better] = value[better]
            levels[cost:][better] = level
        taken.append(levels)
    chosen: list[int] = []
    for ladder, levels in zip(reversed(ladders), reversed(taken), strict=True):
        level = int(levels[room])
        room -= -(-ladder[level].n_positions // unit)
        chosen.append(level)
    return chosen[::-1]


def _value(weight: float, share: float, level: int) -> int:
    """A form's value as an integer, so that sums are exact; a finer form is always worth more."""
    return round(weight * share * _SCALE) + level


def _best_first(
    levels: Sequence[int], ladders: Sequence[Sequence[Choice]], weights: Sequence[float]
) -> list[int]:
    """The levels of chunks with equal ladders, the highest to the one that weighs most.

    Costs stay what they are, and by the rearrangement inequality no value is lost: this only
    settles ties.
    """
    alike: dict[tuple[Choice, ...], list[int]] = {}
    for at, ladder in enumerate(ladders):
        alike.setdefault(tuple(ladder), []).append(at)
    result = list(levels)
    for places in alike.values():
        finest = sorted((levels[at] for at in places), reverse=True)
        heaviest = sorted(places, key=lambda at: (-weights[at], at))
        for at, level in zip(heaviest, finest, strict=True):
            result[at] = level
    return result
