"""Rows of JSON-lines files, each made into something else.

What this module does not know: what the rows are of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from zcontext.errors import ConfigError
from zcontext.training.data import numbered_lines

T = TypeVar("T")


def read_rows(
    paths: Sequence[str | Path],
    made_of: Callable[[dict[str, Any]], Iterable[T]],
    *,
    field: str,
    missing: str,
    expected: str,
) -> list[T]:
    """What is made of the rows of several files.

    Args:
        paths: `.jsonl` or `.jsonl.gz` files.
        made_of: What one row becomes.
        field: The setting that names the files.
        missing: What is told of a path without a file, as "no file of houses at {path}; ...".
        expected: What is told of a row that does not fit, as "is no house ({error}); ...".

    Returns:
        All of it, in file order.

    Raises:
        ConfigError: A file is missing or cannot be read, or a row does not fit.
    """
    found: list[T] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise ConfigError(missing.format(path=path), field=field, value=str(path))
        for number, line in numbered_lines(path):
            try:
                found.extend(made_of(json.loads(line)))
            except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                raise ConfigError(
                    f"{path}, line {number} {expected.format(error=repr(error))}",
                    field=field,
                    value=str(path),
                ) from error
    return found
