"""Instructions other than questions, made of a corpus: list, say yes or no, compare, summarise.

A reader that has only ever answered questions takes every request for one. What is to be listed,
mentioned or compared is found in the passages themselves, so what must be said is right by
construction; summaries are the plain base's, from the text (sequence-level distillation, Kim and
Rush 2016, arXiv 1606.07947). What this module does not know: tokens, symbols, how a model answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from zcontext.fragile import fragile_places, whole_words
from zcontext.spans import ChatMessage, Part
from zcontext.training.cloze import is_date, passages, side_by_side, told_places
from zcontext.training.row_files import read_rows

LONGEST_PASSAGE: Final = 600
"""Characters of a passage, about: a list is of all of it, so all of it has to fit a prompt."""
MOST_LISTED: Final = 8
NONE: Final = "none"
"""What is said where there is nothing to list."""
SHARE_OF_NONE: Final = 0.3
"""Share of the passages that tell none of a kind, of which it is asked all the same."""
FEWEST_SUMMARY_WORDS: Final = 5
AT_A_TIME: Final = 32
"""Passages that are summarised together."""

_YEAR: Final = re.compile(r"(?<!\d)(?:1[0-9]|20)\d\d(?!\d)")
_LISTED: Final = {
    "names": "List the names in the text",
    "numbers": "List the numbers in the text",
    "dates": "List the dates and years in the text",
}
_WAYS: Final = ("{}, separated by semicolons.", "{}; put semicolons between them.")
_MENTIONED: Final = (
    "Does the text mention {}? Answer yes or no.",
    "Is {} mentioned in the text? Answer yes or no.",
    "Yes or no: does the text say anything about {}?",
)
_WHICH: Final = (
    "Which text mentions {}? Answer with its number.",
    "Compare the texts: which one mentions {}, text 1 or text 2?",
)
_EARLIER: Final = (
    "Which text tells of the earliest year? Answer with its number.",
    "Compare the texts: in which one does the earliest year stand, text 1 or text 2?",
)
_SUMMARISE: Final = (
    "Summarise the text in one sentence.",
    "Say in one sentence what the text is about.",
    "Give a summary of one sentence.",
)

Summarise = Callable[[Sequence[Sequence[ChatMessage]]], list[str]]
"""What a model says to some chats."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """Something to be done with one text or two.

    Attributes:
        contexts: The texts that are compressed.
        request: What is to be done.
        answer: What should be said.
    """

    contexts: tuple[str, ...]
    request: str
    answer: str


def instruction_parts(request: str, contexts: Sequence[Sequence[Part]]) -> list[ChatMessage]:
    """The prompt of an instruction: the texts, numbered where there are more than one, then it.

    Args:
        request: What is to be done.
        contexts: Text and symbols of each text, in order.

    Returns:
        The messages; what should be said is the assistant's next turn.
    """
    parts: list[Part] = ["Context:\n"]
    for number, context in enumerate(contexts, start=1):
        if len(contexts) > 1:
            parts.append(f"Text {number}:\n")
        parts += [*context, "\n\n"]
    return [ChatMessage("user", (*parts, request))]


def corpus_instructions(
    texts: Iterable[str],
    rng: np.random.Generator,
    *,
    summarise: Summarise | None = None,
    summary_share: float = 1.0,
) -> Iterator[Instruction]:
    """One instruction or more about each passage of some texts.

    Args:
        texts: A corpus; each text is cut into passages of at most 600 characters, or so.
        rng: What is asked about each, and in which words.
        summarise: Has a model say what it says; None leaves summaries out.
        summary_share: Share of the passages that are summarised.

    Yields:
        The instructions, passage by passage; none where a passage names little.
    """
    before = ""
    cut = (passage for text in texts for passage in passages(text, longest=LONGEST_PASSAGE))
    while some := list(islice(cut, AT_A_TIME)):
        for passage in some:
            yield from _about(passage, before, rng)
            before = passage
        if summarise is not None:
            chosen = [each for each in some if rng.random() < summary_share]
            yield from _summaries(chosen, rng, summarise)


def read_instructions(paths: Sequence[str | Path]) -> list[Instruction]:
    """Rows that `zcontext instructions` wrote.

    Args:
        paths: `.jsonl` or `.jsonl.gz` files.

    Returns:
        The instructions, in file order.

    Raises:
        ConfigError: A file is missing or cannot be read, or a row is no instruction.
    """  # noqa: DOC502 - raised by the reading
    return read_rows(
        paths,
        lambda row: [
            Instruction(tuple(map(str, row["contexts"])), str(row["request"]), str(row["answer"]))
        ],
        field="instructions",
        missing="no file of instructions at {path}; `zcontext instructions` makes one",
        expected="is no instruction ({error}); expected contexts, request and answer, as "
        "`zcontext instructions` writes them",
    )


def line_of(row: Instruction) -> str:
    """An instruction as a line of a file."""
    return json.dumps(asdict(row), ensure_ascii=False)


def _about(passage: str, before: str, rng: np.random.Generator) -> Iterator[Instruction]:
    """A list, and a comparison with the passage before or a mention, as far as there are any."""
    told = _told(passage)
    kind = str(rng.choice(list(_LISTED)))
    if len(told[kind]) <= MOST_LISTED and (told[kind] or rng.random() < SHARE_OF_NONE):
        request = _drawn(_WAYS, rng).format(_LISTED[kind])
        yield Instruction((passage,), request, "; ".join(told[kind]) or NONE)
    if not before:
        return
    other = _told(before)
    chosen = rng.random()
    year, year_before = _earliest(told["dates"]), _earliest(other["dates"])
    if chosen < 0.2 and year and year_before and year != year_before:
        first = year_before < year
        yield Instruction((before, passage), _drawn(_EARLIER, rng), f"text {1 if first else 2}")
    elif chosen < 0.5 and (own := _only_in(passage, before, told["names"])):
        number = int(rng.integers(1, 3))
        pair = (passage, before) if number == 1 else (before, passage)
        yield Instruction(pair, _drawn(_WHICH, rng).format(_drawn(own, rng)), f"text {number}")
    else:
        here = rng.random() < 0.5
        names = told["names"] if here else _only_in(before, passage, other["names"])
        if names:
            request = _drawn(_MENTIONED, rng).format(_drawn(names, rng))
            yield Instruction((passage,), request, "yes" if here else "no")


def _told(passage: str) -> dict[str, list[str]]:
    """Names, numbers and dates of a passage, each once, in order."""
    found: dict[str, dict[str, None]] = {kind: {} for kind in _LISTED}
    for begin, end in side_by_side(passage, told_places(passage), joins=_are_names):
        words = passage[begin:end]
        if is_date(words):
            found["dates"][words] = None
        elif words[:1].isdigit():
            found["numbers"][words] = None
        elif len(words) > 2 and words[0].isupper():
            found["names"][words] = None
    return {kind: list(words) for kind, words in found.items()}


def _earliest(dates: Sequence[str]) -> str | None:
    return min(_YEAR.findall(" ".join(dates)), default=None)


def _are_names(left: str, right: str) -> bool:
    return not any(words[:1].isdigit() or is_date(words) for words in (left, right))


def _only_in(passage: str, other: str, names: Sequence[str]) -> list[str]:
    """Names that a passage has and the other has no word of."""
    return [
        name
        for name in names
        if not any(whole_words(word).search(other) for word in name.split())
        and whole_words(name).search(passage)
    ]


def _summaries(
    contexts: Sequence[str], rng: np.random.Generator, summarise: Summarise
) -> list[Instruction]:
    """Summaries that are shorter than their passage, and tell no number or name it does not."""
    requests = [_drawn(_SUMMARISE, rng) for _ in contexts]
    asked = [
        instruction_parts(request, [[text]])
        for request, text in zip(requests, contexts, strict=True)
    ]
    said = (_first_line(text) for text in summarise(asked))
    return [
        Instruction((context,), request, text)
        for context, request, text in zip(contexts, requests, said, strict=True)
        if len(text.split()) >= FEWEST_SUMMARY_WORDS
        and text.endswith(".")
        and 2 * len(text) <= len(context)
        and all(text[begin:end] in context for begin, end in fragile_places(text))
    ]


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


def _drawn(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
