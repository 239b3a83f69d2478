"""Questions made harder: the passage among others, or not there at all.

Passages come from the same file and hold none of the accepted answers, so that what is right stays
right. Where the right one stands is dealt out evenly, by a seed. It knows rows; no engine.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from zcontext.errors import ConfigError
from zcontext.evaluation.metrics import normalise_answer
from zcontext.evaluation.questions import QARow

SEPARATOR = "\n\n"


def with_distractors(
    rows: Sequence[QARow], *, passages: Sequence[str], k: int, seed: int = 0
) -> list[QARow]:
    """Each question with its passage among `k` others.

    Args:
        rows: Questions with one passage each.
        passages: To choose others from.
        k: Other passages per question.
        seed: Of the choice and of the places.

    Returns:
        One row per row; over all of them the right passage stands equally often at every place.

    Raises:
        ConfigError: There are not enough passages without the answer.
    """
    distinct = list(dict.fromkeys(passages))
    # A shuffled deck of places: even, and not the same one for neighbouring rows.
    places = [at % (k + 1) for at in range(len(rows))]
    random.Random(seed).shuffle(places)
    found = []
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        rng = random.Random(f"{seed}/{number}")
        others = _others(row, distinct, k, rng)
        pieces = (*others[:place], row.context, *others[place:])
        found.append(
            QARow(SEPARATOR.join(pieces), row.question, row.answers, pieces, place / max(1, k))
        )
    return found


def unanswerable(
    rows: Sequence[QARow], *, passages: Sequence[str], limit: int, seed: int = 0
) -> list[QARow]:
    """Questions whose passage does not say: those of the file, else with a passage swapped in.

    Args:
        rows: All rows of a file.
        passages: To swap in where every row has an answer.
        limit: Rows kept at most.
        seed: Of the draw.

    Returns:
        Rows without answers.
    """
    marked = [row for row in rows if not row.answers]
    rng = random.Random(f"{seed}/unanswerable")
    drawn = rng.sample(marked or list(rows), min(limit, len(marked or rows)))
    if marked:
        return drawn
    distinct = list(dict.fromkeys(passages))
    return [QARow(_others(row, distinct, 1, rng)[0], row.question, ()) for row in drawn]


def _others(row: QARow, passages: Sequence[str], k: int, rng: random.Random) -> list[str]:
    """Passages that hold none of a row's answers."""
    wanted = [f" {normalise_answer(answer)} " for answer in row.answers]
    chosen: list[str] = []
    for text in rng.sample(passages, len(passages)):
        if len(chosen) == k:
            break
        said = f" {normalise_answer(text)} "
        if text != row.context and not any(answer in said for answer in wanted):
            chosen.append(text)
    if len(chosen) < k:
        raise ConfigError(
            f"only {len(chosen)} of {len(passages)} passages lack the answers to "
            f"{row.question!r}, {k} are needed; give fewer distractors or a larger file",
            field="distractors",
            value=k,
        )
    return chosen
