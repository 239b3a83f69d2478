"""How alike: the contexts in which one code fires, and the codes of texts that say the same.

Each is a mean with its spread beside the same figure by chance. The questions are those of arXiv
2603.25340, which reports a contextual consistency of 0.75 +- 0.11; the definitions are ours and
stand on `docs/concepts/polysemy.md`. What it does not know: files, pages, single codes.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.config import CompressSettings
from zcontext.errors import ConfigError
from zcontext.model import ZLanguageModel
from zcontext.polysemy.firings import Firings, Progress, fired
from zcontext.spans import SupportsCompress, ZDocument
from zcontext.tokenization import text_tokenizer

N_SHIFTS = 20
"""Random partners of each text of a paraphrase pair."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over some things and how they scatter.

    Attributes:
        mean: Their mean; 0 if there are none.
        std: Their standard deviation.
        n: How many there are.
    """

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of some numbers."""
        found = list(values)
        if not found:
            return cls(0.0, 0.0, 0)
        return cls(statistics.fmean(found), statistics.pstdev(found), len(found))


@dataclass(frozen=True, slots=True)
class Consistency:
    """How alike the contexts of a code's firings are: mean pairwise cosine, per code.

    Attributes:
        codes: Over codes with at least two firings, each counted once.
        shuffled: As many segments for each code, drawn at random.
        centred: As `codes`, with the mean state taken away first.
        centred_shuffled: As `shuffled`, likewise.
        values: Of each code, as in `codes`, in no order.
        shuffled_values: As in `shuffled`.
    """

    codes: Spread
    shuffled: Spread
    centred: Spread
    centred_shuffled: Spread
    values: tuple[float, ...] = ()
    shuffled_values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Paraphrases:
    """What two texts that say the same have in common: Jaccard overlap of sets.

    Attributes:
        codes: Of codes, over pairs of paraphrases.
        codes_random: Of codes, over pairs put together at random.
        tokens: Of base tokens, over pairs of paraphrases: what wording alone explains.
        tokens_random: Of base tokens, at random.
    """

    codes: Spread
    codes_random: Spread
    tokens: Spread
    tokens_random: Spread


def consistency_of(found: Firings, *, seed: int = 0) -> Consistency:
    """How alike the contexts are that each code fires in, against segments drawn at random.

    Args:
        found: Where codes fire.
        seed: Of the draw.

    Returns:
        The consistency.
    """
    order = found.key.argsort(stable=True)
    sizes = found.key.bincount()
    groups, start = [], 0
    for size in sizes[sizes > 0].tolist():
        if size > 1:
            groups.append(found.owner[order[start : start + size]])
        start += size
    draw = random.Random(seed)
    everything = range(len(found.segments))
    random_groups = [torch.tensor(draw.sample(everything, len(group))) for group in groups]
    plain, centred = _unit(found.states), _unit(found.states - found.states.mean(0))
    values = [pairwise_cosine(plain[group]) for group in groups]
    shuffled = [pairwise_cosine(plain[group]) for group in random_groups]
    return Consistency(
        codes=Spread.of(values),
        shuffled=Spread.of(shuffled),
        centred=Spread.of(pairwise_cosine(centred[group]) for group in groups),
        centred_shuffled=Spread.of(pairwise_cosine(centred[group]) for group in random_groups),
        values=tuple(values),
        shuffled_values=tuple(shuffled),
    )


def pairwise_cosine(unit: Tensor) -> float:
    """Mean cosine over all pairs of different rows.

    Args:
        unit: Rows of length 1, `[n, hidden]`, at least two.

    Returns:
        (|sum|^2 - n) / (n (n - 1)), which is that mean without visiting the pairs.
    """
    n = len(unit)
    return float((unit.double().sum(0).square().sum() - n) / (n * (n - 1)))


def _unit(states: Tensor) -> Tensor:
    return torch.nn.functional.normalize(states, dim=-1)


# -- paraphrases --------------------------------------------------------------------------------


def paraphrase_overlap(
    pairs: Sequence[tuple[str, str]],
    *,
    compressor: SupportsCompress,
    model: ZLanguageModel,
    settings: CompressSettings,
    progress: Progress = lambda label, done, total: None,
) -> Paraphrases:
    """What the codes of paraphrases share, against texts put together at random.

    Args:
        pairs: At least two.
        compressor: Writes them.
        model: Its model.
        settings: How to compress.
        progress: Told how far it is, in pairs.

    Returns:
        The overlaps. Random pairs are each first text with the second ones of up to 20 other pairs.

    Raises:
        ConfigError: There are fewer than two pairs.
    """
    n = len(pairs)
    if n < 2:
        raise ConfigError(
            f"{n} pair of paraphrases: give two or more, so that there are random pairs to "
            "compare with",
            field="pairs",
            value=n,
        )
    tokenizer = text_tokenizer(model.tokenizer)
    codes: list[tuple[frozenset[int], ...]] = []
    tokens: list[tuple[frozenset[int], ...]] = []
    for at, pair in enumerate(pairs):
        shown = [model.vocabulary.guard(text, on_symbols="escape") for text in pair]
        written = [compressor.compress(text, settings=settings) for text in shown]
        codes.append(tuple(code_set(document, model) for document in written))
        tokens.append(tuple(frozenset(tokenizer.ids(text)) for text in shown))
        progress("paraphrases", at + 1, n)
    others = [
        (i, (i + shift) % n) for i in range(n) for shift in range(1, min(n - 1, N_SHIFTS) + 1)
    ]
    same = [(i, i) for i in range(n)]
    return Paraphrases(*(_overlap(sets, at) for sets in (codes, tokens) for at in (same, others)))


def code_set(document: ZDocument, model: ZLanguageModel) -> frozenset[int]:
    """The codes that fire anywhere in a document, as keys."""
    table = torch.tensor(document.symbols.codes, dtype=torch.long).reshape(-1, document.depth)
    return frozenset(fired(table, size=model.config.size, shared=model.config.shared)[1].tolist())


def _overlap(sets: Sequence[tuple[frozenset[int], ...]], at: Sequence[tuple[int, int]]) -> Spread:
    return Spread.of(_jaccard(sets[i][0], sets[j][1]) for i, j in at)


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / len(a | b) if a or b else 0.0
