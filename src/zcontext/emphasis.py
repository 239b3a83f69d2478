"""Which tokens of a document get a symbol each, because a question is about them or they come last.

Where it is known what a text is for, a budget is better spent unevenly: the tokens that an answer
may stand in, or the end of what will be gone on with, are written one a symbol, which a reader
takes like text, or two a symbol where that is worth it, and the rest much coarser than was asked
for. The document as a whole keeps its ratio. What this module does not know: models, text, where
the relevance of a token comes from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise

import torch
from torch import Tensor

from zcontext.config import CodecConfig
from zcontext.naming import place_symbols
from zcontext.segmentation import weigh

COARSENESS = 8.0
"""Tokens per symbol of what is not emphasised, over the ratio of the document."""

REACH = 5
"""Tokens on each side of a relevant one that share its relevance: an answer is read with what
stands beside it."""

HALO = 40
"""Tokens on each side that share a tenth of it, and less the farther they are."""

BRIDGED = 2
"""Tokens between two emphasised ones that are emphasised with them."""

PAIR = 2
"""Tokens for each symbol where symbols of one token would reach less far than the question asks."""

LONGEST = 12
"""Tokens of a word that is emphasised as a whole. What is longer is no word (a link, a key, text
without spaces), and each of its tokens stands for itself."""


@dataclass(frozen=True, slots=True)
class Emphasis:
    """How the budget of one window is spent.

    Attributes:
        fine: Per token whether it is emphasised, bool `[n]`.
        n_slots: Symbols of the window.
        grain: Tokens for each symbol of what is emphasised: 1 or `PAIR`.
    """

    fine: Tensor
    n_slots: int
    grain: int = 1


def emphasise(
    relevance: Sequence[Tensor],
    n_symbols: int,
    *,
    opens: Sequence[Tensor] | None = None,
    enough: int = 0,
    pairs: float = 0.0,
) -> list[Emphasis] | None:
    """Spend a document's symbols on what a question is about.

    Two tokens a symbol reach twice as far and are harder to read: they are chosen where the odds of
    an answer among what is emphasised then grow by more than that costs.

    Args:
        relevance: Log-odds per token that an answer stands there, `[n]` for every window; they are
            compared across windows.
        n_symbols: Symbols of the document.
        opens: Which tokens begin a word, bool `[n]` for every window: a word is emphasised as a
            whole or not at all, unless there is room for no word. None takes every token for one.
        enough: Symbols, beside one for each window, behind which no more are spent; 0 spends all.
        pairs: What an answer of two tokens a symbol is worth to the reader, over one of a token a
            symbol: 0 never writes so, infinity always.

    Returns:
        One emphasis for each window, which together spend exactly `n_symbols`, or what is enough
        (at most one for each token); None where there are fewer symbols than windows.
    """
    if enough:
        n_symbols = min(n_symbols, len(relevance) + enough)
    lengths = [len(row) for row in relevance]
    if not sum(lengths) or n_symbols < len(lengths):
        return None
    words = torch.arange(sum(lengths)) if opens is None else _words(opens)
    shared = _shared(relevance)
    of_words = torch.zeros_like(shared).scatter_reduce(0, words, shared, "amax")
    ranked = of_words[words].argsort(descending=True, stable=True)
    single = _emphasised(ranked, words, lengths, n_symbols)
    if not pairs or PAIR * n_symbols >= len(ranked):
        return single
    paired = _emphasised(ranked, words, lengths, n_symbols, grain=PAIR)
    odds = torch.cat(list(relevance)).double().softmax(-1)
    return paired if pairs * _held(paired, odds) > _held(single, odds) else single


def emphasise_end(lengths: Sequence[int], n_symbols: int) -> list[Emphasis] | None:
    """Spend a document's symbols on its end, as who goes on with it needs that most.

    Args:
        lengths: Tokens of every window.
        n_symbols: Symbols of the document.

    Returns:
        As `emphasise` does.
    """
    if not sum(lengths) or n_symbols < len(lengths):
        return None
    places = torch.arange(sum(lengths))
    return _emphasised(places.flip(0), places, list(lengths), n_symbols)


def _held(emphases: Sequence[Emphasis], odds: Tensor) -> float:
    """Share of the odds that stands in what is emphasised."""
    return float(odds[torch.cat([each.fine for each in emphases])].sum())


def _words(opens: Sequence[Tensor]) -> Tensor:
    """The word of each token, all windows behind each other, int64 `[n]`."""
    starts = torch.cat([torch.cat([row.new_ones(1), row[1:]]) for row in opens if len(row)])
    found = starts.long().cumsum(0) - 1
    by_itself = torch.bincount(found)[found] > LONGEST
    starts = starts | by_itself
    return starts.long().cumsum(0) - 1


def _emphasised(
    ranked: Tensor, words: Tensor, lengths: list[int], n_symbols: int, *, grain: int = 1
) -> list[Emphasis]:
    """Emphasis on the first of some ranked tokens, as many whole words as there are symbols for.

    Args:
        ranked: The tokens, those of a word behind each other, int64 `[n]`.
        words: The word of each token, int64 `[n]`.
        lengths: Tokens of each window.
        n_symbols: Symbols of all, one for each window at least.
        grain: Tokens for each symbol of what is emphasised.

    Returns:
        An emphasis for each window.
    """
    n = len(ranked)
    n_symbols = min(n_symbols, n)
    coarse = COARSENESS * n / n_symbols
    most = n if n_symbols == n else int((n_symbols - n / coarse) / (1 / grain - 1 / coarse))
    count = max(0, most)
    of_ranked = words[ranked]
    whole = [0, *((of_ranked[1:] != of_ranked[:-1]).nonzero().squeeze(-1) + 1).tolist(), n]
    while True:
        chosen = torch.zeros(n, dtype=torch.bool)
        chosen[ranked[: whole[bisect_right(whole, count) - 1] or count]] = True
        fine = [_bridged(row) for row in torch.split(chosen, lengths)]
        runs = [run for row in fine for run in runs_of(row)]
        needed = fewest_slots(runs, grain)
        if needed <= n_symbols:
            break
        count -= max(1, (needed - n_symbols) // 2)
    return _spent(fine, n_symbols, grain)


def place_runs(
    config: CodecConfig,
    surprisal: Tensor,
    runs: Sequence[tuple[int, int, bool]],
    n_slots: int,
    *,
    grain: int = 1,
    depth: int | None = None,
    starts: Tensor | None = None,
    costs: Tensor | None = None,
) -> list[Tensor]:
    """Where the symbols of some runs of tokens are written, none reaching across two.

    Args:
        config: Of the codec.
        surprisal: Bits per token, `[n]`.
        runs: As `runs_of` gives them; any of them.
        n_slots: Symbols of all, at least `fewest_slots`.
        grain: Tokens for each symbol of a fine run.
        depth: Codes per symbol; None means the codec's own.
        starts: Where phrases start, none reaching across two runs, bool `[1, n]`; None takes every
            token for itself.
        costs: What ending behind each token costs, int64 `[1, n]`; None goes by surprisal.

    Returns:
        Per run the last token of every segment, int64, on the CPU.
    """
    bits = [surprisal[start:end].detach().cpu() for start, end, _ in runs]
    shares = share_slots(bits, n_slots, fine=[is_fine for *_, is_fine in runs], grain=grain)
    placed = []
    for row, share, (start, end, _) in zip(bits, shares, runs, strict=True):
        told = {
            name: None if given is None else given[:, start:end]
            for name, given in (("starts", starts), ("costs", costs))
        }
        placed.append(
            place_symbols(config, row.unsqueeze(0), share, depth=depth, **told)[0] + start
        )
    return placed


def runs_of(fine: Tensor, edges: Sequence[int] = ()) -> list[tuple[int, int, bool]]:
    """Stretches of tokens that are all fine or all coarse.

    Args:
        fine: Per token whether it is emphasised, bool `[n]`.
        edges: Places that no stretch reaches across.

    Returns:
        First token, end (exclusive) and whether it is fine, of each, in order.
    """
    n = len(fine)
    changes = (fine[1:] != fine[:-1]).nonzero().squeeze(-1) + 1
    places = sorted({0, n, *changes.tolist(), *(edge for edge in edges if 0 < edge < n)})
    return [(a, b, bool(fine[a])) for a, b in pairwise(places)]


def fewest_slots(runs: Sequence[tuple[int, int, bool]], grain: int) -> int:
    """Slots that some runs need.

    Args:
        runs: As `runs_of` gives them.
        grain: Tokens for each slot of a fine run.

    Returns:
        One for each `grain` tokens of a fine run, one for each other run.
    """
    return sum(-(-(end - start) // grain) if is_fine else 1 for start, end, is_fine in runs)


def share_slots(
    runs: Sequence[Tensor], n_slots: int, *, fine: Sequence[bool] = (), grain: int = 1
) -> list[int]:
    """Slots for runs of tokens, each in proportion to its surprisal (D'Hondt's method).

    Args:
        runs: Surprisal of each run's tokens, bits, `[n]`.
        n_slots: At least one for each run, at most one for each token.
        fine: Which runs get a slot for each `grain` of their tokens first, and no more before all
            others have a slot for each of theirs.
        grain: Tokens for each slot of these.

    Returns:
        Slots of each run, 1 to the number of its tokens.
    """
    given = list(fine) or [False] * len(runs)
    shares = [
        -(-len(run) // grain) if is_fine else 1 for run, is_fine in zip(runs, given, strict=True)
    ]
    waiting = [
        (given[at], -float(weigh(run).sum()) / (shares[at] + 1), at)
        for at, run in enumerate(runs)
        if shares[at] < len(run)
    ]
    heapify(waiting)
    for _ in range(n_slots - sum(shares)):
        is_fine, price, at = heappop(waiting)
        shares[at] += 1
        if shares[at] < len(runs[at]):
            heappush(waiting, (is_fine, price * shares[at] / (shares[at] + 1), at))
    return shares


def _shared(relevance: Sequence[Tensor]) -> Tensor:
    """What each token has of the relevance around it, all windows behind each other, `[n]`."""
    odds = torch.cat(list(relevance)).double().softmax(-1)
    far = torch.arange(-HALO, HALO + 1, dtype=odds.dtype).abs()
    kernel = torch.where(far <= REACH, 1.0, 0.1 * (1 - far / REACH).exp()).view(1, 1, -1)
    spread = [
        torch.nn.functional.conv1d(row.view(1, 1, -1), kernel, padding=HALO).flatten()
        for row in torch.split(odds, [len(row) for row in relevance])
    ]
    # Of tokens with the same around them, the more relevant one.
    return torch.cat(spread) + 1e-6 * odds


def _bridged(fine: Tensor) -> Tensor:
    """Emphasis without gaps so short that a symbol for each costs nothing."""
    found = fine.clone()
    runs = runs_of(fine)
    for start, end, is_fine in runs[1:-1]:
        if not is_fine and end - start <= BRIDGED:
            found[start:end] = True
    return found


def _spent(fine: Sequence[Tensor], n_symbols: int, grain: int) -> list[Emphasis]:
    """Symbols of each window: one for each `grain` fine tokens, the others by length."""
    pieces = [
        (at, torch.zeros(end - start), is_fine)
        for at, row in enumerate(fine)
        for start, end, is_fine in runs_of(row)
    ]
    is_fine = [each for *_, each in pieces]
    shares = share_slots([alike for _, alike, _ in pieces], n_symbols, fine=is_fine, grain=grain)
    n_slots = [0] * len(fine)
    for (at, *_), share in zip(pieces, shares, strict=True):
        n_slots[at] += share
    return [Emphasis(row, count, grain) for row, count in zip(fine, n_slots, strict=True)]
