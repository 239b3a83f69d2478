"""What a text needs before it is read: which tokens are facts, how many symbols name all of it.

A reader restores what no symbol names by guessing, which goes wrong at numbers and names however
easy they look. What this module does not know: budgets, surprisal, models.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zcontext.fragile import fragile_places
from zcontext.literals import LaidWindow

Cut = Callable[[Tensor], Tensor | None]
"""Tells where the phrases start that codes can name, as `Codebook.cut`: bool `[batch, n]`, or None
where codes are no names."""


def fact_tokens(text: str, starts: Sequence[int]) -> Tensor:
    """Which tokens belong to a number, a name or an address.

    Args:
        text: Any text.
        starts: Character at which each of its tokens starts, never falling.

    Returns:
        bool `[len(starts)]`.
    """
    facts = torch.zeros(len(starts), dtype=torch.bool)
    for begin, end in fragile_places(text):
        # The token that a fact begins in may begin before it, several in one character.
        opened = starts[max(0, bisect_right(starts, begin) - 1)] if starts else 0
        facts[bisect_left(starts, opened) : bisect_left(starts, end)] = True
    return facts


def count_facts(facts: Tensor, windows: Sequence[LaidWindow]) -> tuple[int, ...]:
    """How many tokens of facts symbols are written for.

    Args:
        facts: Of a document, bool `[n]`.
        windows: How it is laid out; those without a token to write are left out.

    Returns:
        A count for each window.
    """
    targets = [(facts[laid.window.target.start :], laid.free) for laid in windows if laid.n_free]
    return tuple(int(found[free].sum()) for found, free in targets)


def symbols_to_name(
    ids: Sequence[int], windows: Sequence[LaidWindow], cut: Cut, *, depth: int
) -> tuple[int, ...]:
    """Symbols that name every phrase of each window.

    Args:
        ids: Tokens of a document.
        windows: How it is laid out; those without a token to write are left out.
        cut: Where phrases start.
        depth: Names of one symbol.

    Returns:
        A count for each window; nothing where codes are no names.
    """
    found = []
    for laid in windows:
        if not laid.n_free:
            continue
        start = laid.window.target.start
        starts = cut(torch.tensor([[ids[start + at] for at in laid.free]]))
        if starts is None:
            return ()
        found.append(-(-int(starts.sum()) // depth))
    return tuple(found)
