"""Needles: a fact of our own in a long stretch of a book, and a question that only it answers.

Two kinds. "sentence": one sentence, told somewhere. "key-value": several entries of one form spread
over the text, so that finding the form is not enough; each of them is asked for. Both kinds are
hidden in the same texts, because writing and reading a long text is what costs. Texts are given by
path; names and values are drawn by a seed and made up, so that no model has read them. It knows
texts and a way to count tokens; no engine.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Final, Literal

from zcontext.errors import ConfigError
from zcontext.evaluation.questions import QARow

NeedleKind = Literal["sentence", "key-value"]
NEEDLE_KINDS: Final[tuple[NeedleKind, ...]] = ("sentence", "key-value")
PLACES: Final = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where needles stand, as a share of the text; each is used equally often."""

N_ENTRIES: Final = 4
"""Key-value entries in one text, each asked for in a row of its own."""

_PEOPLE = ("Tamsin", "Orlo", "Bettina", "Casimir", "Delphine", "Egbert", "Fenella", "Gideon")
_SURNAMES = ("Quillfeather", "Marrowby", "Thistledown", "Oxenrig", "Pellworth", "Vandersnoot")
_THINGS = ("saffron", "gunpowder", "marmalade", "turpentine", "juniper", "quicksilver", "liquorice")
_PLACES = ("lighthouse", "observatory", "granary", "orangery", "boathouse", "apothecary")
_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")


def make_needles(
    texts: Sequence[str],
    *,
    kind: NeedleKind,
    n_tokens: int,
    limit: int,
    count_tokens: Callable[[str], int],
    seed: int = 0,
) -> list[QARow]:
    """Long texts with a needle in each.

    Args:
        texts: Books; each gives one haystack at most per pass over them.
        kind: Which needle.
        n_tokens: Length of a text, the needle included, give or take one sentence.
        limit: How many.
        count_tokens: Tokens of a text.
        seed: Of the haystacks and of what is hidden in them.

    Returns:
        Rows whose `place` is where the needle stands; rows about one text follow each other.

    Raises:
        ConfigError: No text is long enough.
    """
    rng = random.Random(f"{seed}/{n_tokens}")
    order = rng.sample(range(len(texts)), len(texts))
    rows: list[QARow] = []
    n_texts = 0
    while len(rows) < limit:
        before = len(rows)
        for at in order:
            if len(rows) >= limit:
                break
            hay = _haystack(texts[at], n_tokens, count_tokens, rng)
            if hay is not None:
                rows += _hide(hay, n_texts, rng)[kind]
                n_texts += 1
        if len(rows) == before:
            raise ConfigError(
                f"none of {len(texts)} texts has {n_tokens:,} tokens to hide a needle in; give "
                "longer books or a smaller length",
                field="needle_tokens",
                value=n_tokens,
            )
    return rows[:limit]


def _haystack(
    text: str, n_tokens: int, count_tokens: Callable[[str], int], rng: random.Random
) -> list[str] | None:
    """Sentences of a stretch of about so many tokens; None if the text is too short."""
    sample = text[len(text) // 3 :][:4000]
    n_chars = int(n_tokens * len(sample) / max(1, count_tokens(sample)))
    if n_chars < 1 or len(text) < 1.3 * n_chars + 2000:
        return None
    # Not from the very beginning, where books have their titles.
    start = rng.randrange(min(1000, len(text) - n_chars), len(text) - int(1.2 * n_chars))
    sentences = [s for s in _END.split(text[start : start + int(1.2 * n_chars)]) if s.strip()][1:]
    low, high = 1, len(sentences)
    while low < high:  # the most sentences that fit
        middle = (low + high + 1) // 2
        if count_tokens(" ".join(sentences[:middle])) <= n_tokens:
            low = middle
        else:
            high = middle - 1
    return sentences[:low]


def _hide(sentences: list[str], number: int, rng: random.Random) -> dict[NeedleKind, list[QARow]]:
    """Needles of both kinds in one text, and the rows that ask for them."""
    who = f"{rng.choice(_PEOPLE)} {rng.choice(_SURNAMES)}"
    where, what = rng.choice(_PLACES), rng.choice(_THINGS)
    keys = rng.sample([f"{a} {b}" for a in _PEOPLE for b in _SURNAMES], N_ENTRIES)
    values = rng.sample(range(1000, 10000), N_ENTRIES)
    # Which places a text uses moves on from text to text, so that all are used equally often.
    place = PLACES[number % len(PLACES)]
    places = [PLACES[(number * N_ENTRIES + k) % len(PLACES)] for k in range(N_ENTRIES)]
    told = [f"{who} kept a single barrel of {what} in the old {where}."]
    told += [f"The locker number of {k} is {v}." for k, v in zip(keys, values, strict=True)]
    text = _insert(sentences, told, [place, *places])
    return {
        "sentence": [
            QARow(text, f"What did {who} keep in the old {where}?", (what,), place=place),
        ],
        "key-value": [
            QARow(text, f"What is the locker number of {key}?", (str(value),), place=at)
            for key, value, at in zip(keys, values, places, strict=True)
        ],
    }


def _insert(sentences: Sequence[str], told: Sequence[str], places: Sequence[float]) -> str:
    lines = list(sentences)
    # From the back, so that a place is not moved by what is put in before it.
    for place, line in sorted(zip(places, told, strict=True), reverse=True):
        lines.insert(round(place * len(sentences)), line)
    return " ".join(lines)
