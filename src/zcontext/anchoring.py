"""Where segments end when the text alone decides, wherever a window starts.

Every place in a text has a cost that follows from the tokens right around it, and the segments of
a window end where these costs sum to the least. This is content-defined chunking (as rsync cuts
files and winnowing chooses fingerprints: Schleimer, Wilkerson and Aiken 2003) as a shortest path.
Shortest paths that begin at different places soon run into each other, so windows that overlap
agree where segments end, and an edit moves only the ends near it. What this module does not know:
models, surprisal, tokenizers, phrases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.errors import ConfigError

SPREAD = 1 << 20
"""Costs that the tokens around a place draw by lot, 0 to this. Costs are integers: sums of them are
the same in every order and on every machine."""

ROOM = 2
"""Times its mean that a segment may be long where no other limit holds."""

_NEVER = 1 << 60
_MULTIPLIER = 0x45D9F3B  # under 2**27: times 32 bits it stays within int64


@dataclass(frozen=True, slots=True)
class Seams:
    """Where a text of a base's tokens parts easily.

    Attributes:
        opens: Whether a token begins something, rather than going on with a word or closing it,
            bool `[vocab]`.
        closes: 2 for a token that ends a sentence or a line, 1 for one that ends a clause, 0 for
            all others, int64 `[vocab]`.

    Raises:
        ConfigError: The two are not of one length.
    """

    opens: Tensor
    closes: Tensor

    def __post_init__(self) -> None:
        if self.opens.shape != self.closes.shape:
            raise ConfigError(
                f"seams of {len(self.opens)} and {len(self.closes)} tokens: give both of one base",
                field="closes",
                value=len(self.closes),
            )

    def openings(self, ids: Sequence[int]) -> Tensor:
        """Which of some tokens begin something, bool `[n]`."""
        return self.opens[torch.tensor(ids, dtype=torch.long)]


def end_costs(ids: Tensor, seams: Seams) -> Tensor:
    """What it costs to end a segment behind each token: a lot drawn by it and the next one.

    Within a word it costs as much more as lots differ, behind a sentence as much less, behind a
    clause half as much less, so that symbols stand for pieces that a reader of the text would see.

    Args:
        ids: Tokens, int64 `[n]`.
        seams: Of their base.

    Returns:
        int64 `[n]`, 0 and more. That of the last token means nothing, as nothing is known of the
        next one: the last segment ends there in any case.
    """
    following = torch.cat([ids[1:], ids[:1]])
    lots = _mixed(_mixed(ids + 1) + following) % SPREAD
    halves = 2 * (~seams.opens[following]).long() + 2 - seams.closes[ids]
    return lots + halves * (SPREAD // 2)


def _mixed(values: Tensor) -> Tensor:
    """Values of 32 bits, scattered over 32 bits (two rounds of multiply and shift)."""
    values = values & 0xFFFFFFFF
    for _ in range(2):
        values = ((values ^ (values >> 16)) * _MULTIPLIER) & 0xFFFFFFFF
    return values ^ (values >> 16)


def place_anchored(costs: Tensor, n_slots: int, *, most: int | None = None) -> Tensor:
    """The segments whose ends cost least in all, found exactly (Bellman 1957).

    Args:
        costs: Of ending behind each unit, int64 `[n]`.
        n_slots: Number of segments, 1 to n.
        most: Units of a segment at most. Where None is given, or so many segments cannot hold all
            units, it is twice the mean.

    Returns:
        int64 `[n_slots]`: the last unit of each segment; strictly increasing, the last one is
        n - 1. Of equally cheap ones that whose later segments are longer.

    Raises:
        ConfigError: There are fewer units than slots, or no slot or no unit at all.
    """
    n = len(costs)
    if not 1 <= n_slots <= n:
        raise ConfigError(
            f"{n} units cannot be cut into {n_slots} segments; give 1 to {n} slots",
            field="n_slots",
            value=n_slots,
        )
    if most is None or most * n_slots < n:
        most = -(-ROOM * n // n_slots)
    # A path is told by its excess: how many units more than one each its segments have. It has
    # `spare` of them at the end, and a segment adds 0 to most - 1.
    spare = n - n_slots
    most = min(most, spare + 1)
    least = torch.full((spare + most,), _NEVER)  # most - 1 places in front that no path comes from
    least[most - 1] = 0
    came = []
    for k in range(n_slots):
        found, at = least.unfold(0, most, 1).min(dim=-1)
        came.append(at.to(torch.int16))
        least[most - 1 :] = found + costs[k : k + spare + 1]
    ends, excess = [], spare
    for k in range(n_slots - 1, -1, -1):
        ends.append(excess + k)
        excess += int(came[k][excess]) - (most - 1)
    return torch.tensor(ends[::-1])
