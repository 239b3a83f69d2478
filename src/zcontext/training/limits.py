"""Where segments end and what that leaves unsaid, for a codec whose codes are names.

A segment of more phrases than a symbol has codes names those that are hardest to guess. Move its
end, and one phrase passes from a symbol to the next: it may take another's name there, and leave
its own to a third. Where a segment ends is rounded and which phrases are named is a choice, so
nothing of this has a gradient; here is its difference. What this module does not know: readers,
losses.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.composing import Passage, Path
from zcontext.naming import phrases_of
from zcontext.training.objective import BITS


@dataclass(frozen=True, slots=True)
class Phrases:
    """The phrases of one window.

    Attributes:
        hardness: By which they are chosen to be named, bits.
        costs: What each costs a reader where it is not named.
        steps: How far the pointer has to move on to take each in; 0 where that costs nothing.
    """

    hardness: Sequence[float]
    costs: list[float]
    steps: Sequence[float]

    def by_hardness(self, segment: Sequence[int]) -> list[int]:
        """The phrases of a segment as a symbol names them, the hardest to guess first."""
        return sorted(segment, key=lambda each: -self.hardness[each])

    def unsaid(self, segment: Sequence[int], depth: int) -> float:
        """What the phrases of a segment cost that its symbol does not name, nats."""
        return sum(self.costs[each] for each in self.by_hardness(segment)[depth:])


@torch.no_grad()
def slopes_of_ends(passage: Passage, path: Path, nats: Tensor, *, depth: int) -> Tensor:
    """What more is left unsaid if the pointer stands further on behind a slot.

    Of a move to either side, the one that leaves less unsaid tells; 0 where none does.

    Args:
        passage: The windows; their codes are names.
        path: Through them.
        nats: What each token costs its reader, `[batch, n]`; of a phrase that is named, what the
            writer finds it hard to guess stands for what it would cost without its name.
        depth: Codes per symbol.

    Returns:
        Nats of a window for each bit of the pointer's, `[batch, k]`.
    """
    found = torch.zeros(path.ends.shape)
    pointers = passage.pointers(depth=depth)
    counts, ends = path.written.sum(1).tolist(), path.ends.tolist()
    movable = (~path.held).tolist()
    for row, (bits, pointer) in enumerate(zip(passage.surprisal, pointers, strict=True)):
        assert passage.starts is not None
        last, hardness = phrases_of(bits, passage.starts[row, : len(bits)])
        sums = nats[row, : len(bits)].detach().double().cpu().cumsum(0)[last]
        costs = torch.diff(sums, prepend=sums.new_zeros(1))
        segments = _segments(last.tolist(), ends[row][: counts[row]])
        phrases = Phrases(hardness.tolist(), costs.tolist(), pointer.steps.tolist())
        for segment in segments:
            for each in phrases.by_hardness(segment)[:depth]:
                phrases.costs[each] = phrases.hardness[each] / BITS
        for k, (left, right) in enumerate(itertools.pairwise(segments)):
            if movable[row][k]:
                found[row, k] = _slope(phrases, left, right, depth)
    return found.to(nats)


def _segments(last: Sequence[int], ends: Sequence[int]) -> list[list[int]]:
    """The phrases of each segment."""
    segments: list[list[int]] = [[] for _ in ends]
    at = 0
    for phrase, token in enumerate(last):
        while at < len(ends) - 1 and token > ends[at]:
            at += 1
        segments[at].append(phrase)
    return segments


def _slope(phrases: Phrases, left: list[int], right: list[int], depth: int) -> float:
    """Of the end between two segments."""
    before = phrases.unsaid(left, depth) + phrases.unsaid(right, depth)
    best = 0.0
    whole = left + right
    costly = [at for at, each in enumerate(whole) if phrases.steps[each] > 0]
    on = min((at for at in costly if at >= len(left)), default=len(whole))
    back = max((at for at in costly if at < len(left)), default=0)
    for cut, sign in ((on + 1, 1), (back, -1)):
        if 0 < cut < len(whole):
            passed = whole[min(cut, len(left)) : max(cut, len(left))]
            after = phrases.unsaid(whole[:cut], depth) + phrases.unsaid(whole[cut:], depth)
            change = (after - before) / sum(phrases.steps[each] for each in passed)
            if change < -abs(best):
                best = sign * change
    return best
