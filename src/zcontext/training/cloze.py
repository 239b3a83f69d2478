"""Questions made of a corpus: a number, a name or a date is taken out of a clause and asked for.

What little labelled data says is soon learned by heart. A clause with a gap asks for what only its
passage says, and every corpus has clauses (Dhingra et al. 2018, arXiv 1804.00720; in the noisy form
of Lewis et al. 2019, arXiv 1906.04980). What this module does not know: tokens, symbols, models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np

from zcontext.fragile import fragile_places, whole_words
from zcontext.pruning import sentence_places
from zcontext.training.questions import Question

LONGEST_PASSAGE: Final = 1200
"""Characters of a passage; a longer text becomes several."""
SHORTEST_PASSAGE: Final = 200
LONGEST_ANSWER: Final = 60
FEWEST_WORDS, MOST_WORDS = 5, 18
"""Words of a clause beside what is asked for; of a longer one those nearest to it are kept."""
LEFT_OUT: Final = 0.1
"""Share of a clause's words that a question leaves out, so that it does not quote its passage."""

_WRAPPED = re.compile(r"(?<=[^\n]{50})\n(?=[^\s|*#>+-])")
"""A line's end within a paragraph: behind a long line, in front of no list, table or heading."""
_WORD = re.compile(r"\S+")
_YEAR = re.compile(r"(?:1[0-9]|20)\d\d\Z")
_MONTH: Final = (
    "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
)
_DATE = re.compile(
    rf"\b(?:{_MONTH} \d{{1,2}}(?:, \d{{4}})?|\d{{1,2}} {_MONTH}(?: \d{{4}})?|{_MONTH} \d{{4}})\b"
)
_INITIAL = re.compile(r"[A-Z]\.?\Z")
_OWNED: Final = ("'s", "\u2019s")
_IN_PLACE = re.compile(r"\b(?:in|at|near|from|to)\s+\Z")
_AROUND_WORDS: Final = ',;:()"\u201c\u201d\u2013-'
_BEHIND_CLAUSE: Final = " \n.!?;:\"'\u201d)"


def cloze_questions(
    texts: Iterable[str], rng: np.random.Generator, *, most: int = 4
) -> Iterator[Question]:
    """Questions that the passages of some texts answer with their own words.

    Args:
        texts: A corpus; each text is cut into passages of at most 1,200 characters, or so.
        rng: Which places are asked for, and how.
        most: Questions about one passage at most, each about a sentence of its own.

    Yields:
        The questions, passage by passage; none where a passage names little.
    """
    for text in texts:
        for passage in passages(text):
            yield from about_passage(passage, rng, most=most)


def passages(text: str, *, longest: int = LONGEST_PASSAGE) -> list[str]:
    """A text cut behind sentences.

    Args:
        text: Any text.
        longest: Characters of a passage, about.

    Returns:
        The passages, without those that are too short to ask about; lines that were wrapped are
        joined.
    """
    text = _WRAPPED.sub(" ", text)
    found, start = [], 0
    for begin, end in sentence_places(text):
        if len(text[start:end].rstrip()) > longest and begin > start:
            found.append(text[start:begin].strip())
            start = begin
    found.append(text[start:].strip())
    return [each for each in found if SHORTEST_PASSAGE <= len(each) <= 2 * longest]


def about_passage(passage: str, rng: np.random.Generator, *, most: int = 4) -> list[Question]:
    """Questions about one passage.

    Args:
        passage: The context.
        rng: Which places are asked for, and how.
        most: Questions at most.

    Returns:
        The questions; what each asks for stands in the passage once.
    """
    sentences = sentence_places(passage)
    asked: dict[tuple[int, int], Question] = {}
    found = side_by_side(passage, told_places(passage))
    places = [place for place in found if _can_be_asked(passage, *place)]
    for at in rng.permutation(len(places)):
        begin, end = places[at]
        around = next((s for s in sentences if s[0] <= begin and end <= s[1]), None)
        if around is None or around in asked:
            continue
        words = passage[begin:end]
        question = _question(passage[around[0] : begin], words, passage[end : around[1]], rng)
        if question is not None:
            asked[around] = Question(passage, question, words)
        if len(asked) == most:
            break
    return list(asked.values())


def told_places(passage: str) -> list[tuple[int, int]]:
    """Where a passage tells a date, a number or a name.

    Args:
        passage: Any text.

    Returns:
        Character ranges, in order; each word of a name is one.
    """
    dates = [match.span() for match in _DATE.finditer(passage)]
    others = [
        place
        for place in fragile_places(passage)
        if not any(first < place[1] and place[0] < last for first, last in dates)
    ]
    return sorted(dates + others)


def side_by_side(
    passage: str,
    places: Iterable[tuple[int, int]],
    *,
    joins: Callable[[str, str], bool] = lambda left, right: True,
) -> list[tuple[int, int]]:
    """Places with a space between them as one, an owner without its 's.

    Args:
        passage: The text.
        places: Of it, in order.
        joins: Whether the words of two neighbours belong together.

    Returns:
        Character ranges, in order.
    """
    whole: list[tuple[int, int]] = []
    for begin, end in places:
        if whole and passage[whole[-1][1] : begin] == " ":
            start, stop = whole[-1]
            if joins(passage[start:stop], passage[begin:end]):
                whole[-1] = (start, end)
                continue
        whole.append((begin, end))
    return [(begin, end - 2 * passage[begin:end].endswith(_OWNED)) for begin, end in whole]


def is_date(words: str) -> bool:
    """Whether some words are a day, a month of a year, or a year."""
    return bool(_YEAR.match(words) or _DATE.fullmatch(words))


def _can_be_asked(passage: str, begin: int, end: int) -> bool:
    """Whether a place is short, more than an initial, and the only one that says what it says."""
    words = passage[begin:end]
    if not words or end - begin > LONGEST_ANSWER or _INITIAL.match(words):
        return False
    return len(whole_words(words).findall(passage)) == 1


def _question(left: str, answer: str, right: str, rng: np.random.Generator) -> str | None:
    """A sentence with a gap, cut to a clause, as a question; None where too little is left."""
    before, after = _WORD.findall(left), _WORD.findall(right.rstrip(_BEHIND_CLAUSE))
    n_before = min(len(before), max(MOST_WORDS // 2, MOST_WORDS - len(after)))
    before, after = before[len(before) - n_before :], after[: MOST_WORDS - n_before]
    if len(before) + len(after) < FEWEST_WORDS:
        return None
    form = rng.random()
    if form < 0.25:
        return f'Fill in the blank: "{" ".join([*before, "____", *after])}"'
    before, after = _thinned(before, rng), _thinned(after, rng)
    if form < 0.5:  # The words that ask stand where the answer stood.
        clause = " ".join([*before, _asking(answer, rng, within=True), *after])
        return clause[:1].upper() + clause[1:] + "?"
    asking = _asking(answer, rng, placed=bool(_IN_PLACE.search(left)))
    order = [*before, *after] if form < 0.75 else [*after, *before]
    return " ".join([asking, *order]) + "?"


def _thinned(words: list[str], rng: np.random.Generator) -> list[str]:
    kept = rng.random(len(words)) >= LEFT_OUT
    bare = (word.strip(_AROUND_WORDS) for word in words)
    return [word for word, keep in zip(bare, kept, strict=True) if keep and word]


def _asking(
    answer: str, rng: np.random.Generator, *, within: bool = False, placed: bool = False
) -> str:
    """Words that ask for an answer like this, in front of a clause or within it."""
    choices: tuple[str, ...] = ("Who", "What", "Which", "What is the name of")
    if _YEAR.match(answer):
        choices = ("what year",) if within else ("When", "In what year")
    elif _DATE.match(answer):
        choices = ("what date",) if within else ("When", "On what date")
    elif "%" in answer:
        choices = ("what percentage",) if within else ("What percentage", "How many percent")
    elif answer[0].isdigit():
        choices = ("how many",) if within else ("How many", "How many", "What number")
    elif within:
        choices = ("who", "what")
    elif placed:
        choices = ("Where", "What place", "Which", "What")
    return choices[int(rng.integers(len(choices)))]
