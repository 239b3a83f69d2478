"""Question-answer rows for the read stage, from JSON lines of the usual shapes.

What this module does not know: tokens, symbols, models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zcontext.errors import TrainingError
from zcontext.fragile import whole_words
from zcontext.spans import UNKNOWN
from zcontext.training.row_files import read_rows


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one context.

    Attributes:
        context: The text that is compressed.
        question: What is asked.
        answer: What should be said; `UNKNOWN` where the context does not say.
    """

    context: str
    question: str
    answer: str


def read_questions(paths: Sequence[str | Path]) -> list[Question]:
    """Rows of several files.

    Known shapes: `context, question, answers[, answerable]` (SQuAD; `answers` a list of strings or
    `{"text": [...]}`), `query, choices, gold` (multiple choice with the passage in the query), and
    `context, qas: [{question, answers}]`.

    Args:
        paths: `.jsonl` or `.jsonl.gz` files.

    Returns:
        The questions, in file order.

    Raises:
        ConfigError: A file is missing or cannot be read, or a row has none of the known shapes.
    """  # noqa: DOC502 - raised by the reading
    return read_rows(
        paths,
        _row_questions,
        field="questions",
        missing="no question file at {path}; give a .jsonl or .jsonl.gz file",
        expected="is no question row ({error}); expected context, question and answers",
    )


def drawn_from(files: Sequence[Sequence[object]], shares: Sequence[float]) -> np.ndarray:
    """How likely each file is to be drawn from.

    Args:
        files: Those that hold questions that can be drawn, one at least; none is empty.
        shares: Share of the questions that comes from each; empty draws every question alike.

    Returns:
        Cumulated odds, float64 `[len(files)]`, the last 1.

    Raises:
        TrainingError: There is not one share for each file, or one is below 0, or all are 0.
    """
    given = list(shares) or [len(rows) for rows in files]
    if len(given) != len(files) or min(given) < 0 or not sum(given):
        raise TrainingError(
            f"question_shares is {given} for {len(files)} files that hold answerable questions; "
            "give one for each, none below 0 and not all 0"
        )
    cumulated: np.ndarray = np.cumsum(given) / np.sum(given)
    return cumulated


def find_answer(context: str, answer: str) -> list[tuple[int, int]]:
    """Where a context says an answer.

    Args:
        context: The text.
        answer: Some words of it.

    Returns:
        Start and end in characters of each place where it stands as whole words; the first place
        within words if it nowhere does; none for an empty answer, or one that is not there.
    """
    if not answer:
        return []
    if found := [each.span() for each in whole_words(answer).finditer(context)]:
        return found
    at = context.find(answer)
    return [(at, at + len(answer))] if at >= 0 else []


def _row_questions(row: dict[str, Any]) -> Iterator[Question]:
    if "qas" in row:
        for qa in row["qas"]:
            yield Question(row["context"], qa["question"], _answer(qa))
    elif "query" in row:
        passage, _, question = row["query"].partition("\nQuestion:")
        question = question.removesuffix("Answer:").strip()
        passage = passage.removeprefix("Passage:").strip()
        yield Question(passage, question, str(row["choices"][_index(row["gold"])]).strip())
    else:
        yield Question(row["context"], row["question"], _answer(row))


def _index(gold: Any) -> int:
    return int(gold[0] if isinstance(gold, list) else gold)


def _answer(row: dict[str, Any]) -> str:
    answers = row["answers"]
    if isinstance(answers, dict):
        answers = answers["text"]
    if row.get("answerable") is False or not answers:
        return UNKNOWN
    first = answers[0]
    return str(first["text"] if isinstance(first, dict) else first).strip()
