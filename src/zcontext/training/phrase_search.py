"""Which runs of tokens are worth a code of their own, found in a corpus.

Candidates are the runs that repeat most. Those are kept that a text is really cut into, for a run
may always be part of a longer one. What this module does not know: codebooks, models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from zcontext.phrases import LONGEST, Phrase, cut_starts

SPARE = 3
"""Candidates that are tried out for every phrase that is kept."""


def find_phrases(tokens: NDArray[np.uint16], count: int, *, unit: int = 512) -> list[Phrase]:
    """Runs of tokens that save most names where they are used.

    Args:
        tokens: A corpus.
        count: Phrases wanted.
        unit: Tokens that are cut at once.

    Returns:
        Phrases of 2 to `LONGEST` tokens, those that save most first; fewer where the corpus repeats
        fewer.
    """
    candidates = _repeated(tokens, SPARE * count)
    for wanted in (2 * count, count):
        used: Counter[Phrase] = Counter()
        known = set(candidates)
        for start in range(0, len(tokens), unit):
            row = tokens[start : start + unit].tolist()
            used.update(_cut(row, cut_starts(row, known)))
        candidates = _most_saving(used, wanted)
    return candidates


def _cut(ids: Sequence[int], starts: Sequence[bool]) -> Iterable[Phrase]:
    edges = [*(at for at, here in enumerate(starts) if here), len(ids)]
    return (tuple(ids[a:b]) for a, b in pairwise(edges) if b - a > 1)


def _repeated(tokens: NDArray[np.uint16], count: int) -> list[Phrase]:
    """The runs that would save most if each were used wherever it stands."""
    found: Counter[Phrase] = Counter()
    for size in range(2, LONGEST + 1):
        packed = np.zeros(max(0, len(tokens) - size + 1), dtype=np.uint64)
        for at in range(size):
            packed = packed << np.uint64(16) | tokens[at : at + len(packed)].astype(np.uint64)
        runs, times = np.unique(packed, return_counts=True)
        often = np.argsort(-times, kind="stable")[:count]
        for run, many in zip(runs[often].tolist(), times[often].tolist(), strict=True):
            if many > 1:
                places = range(16 * (size - 1), -1, -16)
                found[tuple((run >> place) & 0xFFFF for place in places)] = many
    return _most_saving(found, count)


def _most_saving(used: Counter[Phrase], count: int) -> list[Phrase]:
    saved = {phrase: times * (len(phrase) - 1) for phrase, times in used.items()}
    return sorted(saved, key=lambda phrase: (-saved[phrase], phrase))[:count]
