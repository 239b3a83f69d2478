"""Questions about passages, read from JSON lines. It knows files and rows; no engine, no score."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcontext.errors import ConfigError


@dataclass(frozen=True, slots=True)
class QARow:
    """One question.

    Attributes:
        context: The passage, or several of them joined.
        question: About it.
        answers: All that count as right; empty when the passage does not say.
        passages: What the context is made of, where that is several passages: each is compressed
            by itself, as retrieval does.
        place: Where in the context the answer stands, from 0 (first) to 1 (last); None where
            nobody put it there.
    """

    context: str
    question: str
    answers: tuple[str, ...]
    passages: tuple[str, ...] = ()
    place: float | None = None

    @property
    def pieces(self) -> tuple[str, ...]:
        """The passages, or the context as the only one."""
        return self.passages or (self.context,)


def read_rows(path: str | Path, *, limit: int, seed: int = 0) -> list[QARow]:
    """Draw questions from a JSON-lines file (`.jsonl` or `.jsonl.gz`).

    Rows without an answer are left out: this task is about what the passage says.

    Args:
        path: Rows of `context`, `question` and `answers` (a list, or SQuAD's `{"text": [...]}`);
            or of `context` and `qas`, a list of the other two.
        limit: Rows kept at most.
        seed: Of the draw.

    Returns:
        Rows, in the file's order.

    Raises:
        ConfigError: The file is missing, a row lacks a field, or none has an answer.
    """
    rows = [row for row in all_rows(path) if row.answers]
    if not rows:
        raise ConfigError(f"{path} has no answerable question", field="path", value=str(path))
    return draw(rows, limit=limit, seed=seed)


def all_rows(path: str | Path) -> list[QARow]:
    """Every row of a file, those without an answer too.

    Args:
        path: As for `read_rows`.

    Returns:
        Rows, in the file's order.

    Raises:
        ConfigError: The file is missing, or a row lacks a field.
    """
    try:
        return list(_parse_rows(Path(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read questions from {path}: {error}", field="path", value=str(path)
        ) from error


def draw(rows: Sequence[QARow], *, limit: int, seed: int) -> list[QARow]:
    """So many rows, or all of them.

    Args:
        rows: To draw from.
        limit: Rows kept at most.
        seed: Of the draw.

    Returns:
        The kept rows, in their order.
    """
    if len(rows) <= limit:
        return list(rows)
    return [rows[k] for k in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def _parse_rows(path: Path) -> Iterator[QARow]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                context = str(row["context"])
                for asked in row.get("qas", [row]):
                    yield QARow(context, str(asked["question"]), _answers(asked))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{path}, line {number}: not a row of context, question and answers ({error})",
                    field="path",
                    value=str(path),
                ) from error


def _answers(row: dict[str, Any]) -> tuple[str, ...]:
    if row.get("answerable") is False or row.get("is_impossible") is True:
        return ()
    answers = row["answers"]
    answers = answers["text"] if isinstance(answers, dict) else answers
    answers = [answers] if isinstance(answers, str) else answers
    return tuple(str(a["text"] if isinstance(a, dict) else a) for a in answers)
