"""Answers already given, kept in a JSON-lines file so that an interrupted run can go on.

Lines are appended whole; what a killed run left unfinished is cut off when the file is opened. It
does not know how answers are made or scored.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from zcontext.errors import StoreError


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer given.

    Attributes:
        key: Digest of everything that shaped it.
        text: What was answered.
        n_positions: Positions of the context.
        n_over: Positions that the whole context would have taken beyond those there was room for:
            so many were cut off.
    """

    key: str
    text: str
    n_positions: int
    n_over: int = 0


class PredictionLog:
    """Predictions in a JSON-lines file, or in memory when there is no file.

    Args:
        path: The file; lines that a killed run left unfinished are cut off.
        also: Files of other runs, which are read and left as they are (`.gz` where they were
            packed away). Another process may be writing them, so an unfinished last line is
            passed over.

    Raises:
        StoreError: The file cannot be read or written, or holds something else.
    """

    def __init__(self, path: str | Path | None = None, *, also: Sequence[str | Path] = ()) -> None:
        self._path = None if path is None else Path(path)
        self._found: dict[str, Prediction] = {}
        for other in also:
            self._open(Path(other), mend=False)
        if self._path is not None:
            self._open(self._path, mend=True)

    def _open(self, path: Path, *, mend: bool) -> None:
        if path.exists():
            try:
                self._load(path, mend=mend)
            except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
                raise StoreError(
                    f"{path} is not a file of predictions ({error}); give another path, or delete "
                    "it to start over"
                ) from error

    def _load(self, path: Path, *, mend: bool) -> None:
        data = path.read_bytes()
        if path.suffix == ".gz" and not mend:  # what is packed is not added to
            data = gzip.decompress(data)
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            row = json.loads(line)
            found = Prediction(
                str(row["key"]),
                str(row["prediction"]),
                int(row["n_positions"]),
                int(row.get("n_over", 0)),
            )
            self._found[found.key] = found
        if mend and len(whole) < len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Prediction:
        return self._found[key]

    def add(self, predictions: Sequence[Prediction], details: Sequence[Mapping[str, Any]]) -> None:
        """Keep predictions; they are in the file when this returns.

        Args:
            predictions: What was answered.
            details: What a person who reads the file wants beside each of them: the question, the
                answers that count, the condition.

        Raises:
            StoreError: The file cannot be written.
        """
        lines = "".join(
            json.dumps(
                {
                    "key": p.key,
                    **detail,
                    "prediction": p.text,
                    "n_positions": p.n_positions,
                    **({"n_over": p.n_over} if p.n_over else {}),
                },
                ensure_ascii=False,
            )
            + "\n"
            for p, detail in zip(predictions, details, strict=True)
        )
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(lines)
            except OSError as error:
                raise StoreError(f"cannot append predictions to {self._path}: {error}") from error
        self._found.update((p.key, p) for p in predictions)


def digest_of(*facts: Any) -> str:
    """The key of a prediction: a digest of everything that shapes it.

    Args:
        *facts: Anything that JSON can hold.

    Returns:
        64 hex digits.
    """
    return sha256(json.dumps(facts).encode()).hexdigest()
