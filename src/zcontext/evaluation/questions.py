"""Questions about passages, read from JSON lines. It knows files and rows; no engine, no score."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zcontext.errors import ConfigError


@dataclass(frozen=True, slots=True)
class QARow:
    """One question.

    Attributes:
        context: The passage.
        question: About it.
        answers: All that count as right; empty when the passage does not say.
    """

    context: str
    question: str
    answers: tuple[str, ...]


def read_rows(path: str | Path, *, limit: int, seed: int = 0) -> list[QARow]:
    """Draw questions from a JSON-lines file (`.jsonl` or `.jsonl.gz`).

    Rows without an answer are left out: this task is about what the passage says.

    Args:
        path: Rows of `context`, `question` and `answers` (a list, or SQuAD's `{"text": [...]}`).
        limit: Rows kept at most.
        seed: Of the draw.

    Returns:
        Rows, in the file's order.

    Raises:
        ConfigError: The file is missing, a row lacks a field, or none has an answer.
    """
    try:
        rows = [row for row in _parse_rows(Path(path)) if row.answers]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read questions from {path}: {error}", field="path", value=str(path)
        ) from error
    if not rows:
        raise ConfigError(f"{path} has no answerable question", field="path", value=str(path))
    if len(rows) > limit:
        kept = sorted(random.Random(seed).sample(range(len(rows)), limit))
        rows = [rows[k] for k in kept]
    return rows


def _parse_rows(path: Path) -> Iterator[QARow]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                answers = row["answers"]
                answers = answers["text"] if isinstance(answers, dict) else answers
                answers = [answers] if isinstance(answers, str) else answers
                yield QARow(str(row["context"]), str(row["question"]), tuple(map(str, answers)))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{path}, line {number}: not a row of context, question and answers ({error})",
                    field="path",
                    value=str(path),
                ) from error
