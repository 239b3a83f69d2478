"""Runs of tokens that have one code, and how a text is cut into them.

Where codes are names, a run of tokens that text repeats (" of the", ", and the") is worth a name as
much as a rare token is: a symbol then says more tokens with as many codes. A text is cut into the
fewest names (as in unigram segmentation, Kudo 2018, with every name costing the same). What this
module does not know: how phrases are found, embeddings, slots, models.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set

LONGEST = 4
"""Tokens of a phrase at most."""

Phrase = tuple[int, ...]


def cut_starts(
    ids: Sequence[int], phrases: Collection[Phrase], breaks: Set[int] = frozenset()
) -> list[bool]:
    """Cut a text into the fewest phrases; single tokens are phrases always.

    Args:
        ids: The tokens.
        phrases: Those of two tokens or more.
        breaks: Places that no phrase reaches across, each the first token behind the break.

    Returns:
        For each token whether a phrase starts there. Of equally few the cut whose later phrases
        are longer.
    """
    n = len(ids)
    fewest, length = [0] * (n + 1), [1] * (n + 1)
    reach = 0  # the last break
    for end in range(1, n + 1):
        if end - 1 in breaks:
            reach = end - 1
        best, best_length = n + 1, 1
        for size in range(min(LONGEST, end - reach), 0, -1):
            count = fewest[end - size] + 1
            if count < best and (size == 1 or tuple(ids[end - size : end]) in phrases):
                best, best_length = count, size
        fewest[end], length[end] = best, best_length
    starts, end = [False] * n, n
    while end:
        end -= length[end]
        starts[end] = True
    return starts
