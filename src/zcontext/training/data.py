"""Training data: texts to token shards, shards to batches that depend on seed and step alone.

A shard is one `.npz`: `tokens` (all documents end to end), `offsets` (where each begins) and, where
a base was at hand, `surprisal` (eighths of a bit). A batch is a pure function of (seed, step), so a
resumed run sees what an uninterrupted one would have seen. What this module does not know: models
beyond the callables it is given, objectives.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zcontext.errors import ConfigError, MissingDependencyError, TrainingError

BITS_PER_UNIT = 8
"""Surprisal is stored in eighths of a bit, one byte a token."""


def read_texts(source: str | Path, *, field: str = "text") -> Iterator[str]:
    """Texts of a corpus.

    Args:
        source: A `.txt`, `.md`, `.jsonl`, `.jsonl.gz`, `.parquet` file, a folder of such files, or
            `hf:NAME[:SPLIT]` for a dataset of the `datasets` package.
        field: Name of the text field in rows.

    Yields:
        One document at a time.

    Raises:
        ConfigError: The source does not exist or is of an unknown kind.
        MissingDependencyError: Reading it needs a package that is not installed.
    """
    name = str(source)
    if name.startswith("hf:"):
        yield from _read_dataset(name[3:], field)
        return
    path = Path(source)
    if path.is_dir():
        for child in sorted(path.rglob("*")):
            if child.is_file() and child.name.endswith(_KINDS):
                yield from read_texts(child, field=field)
        return
    if not path.is_file():
        raise ConfigError(
            f"no corpus at {path}; give a file, a folder or hf:NAME", field="sources", value=name
        )
    if name.endswith((".txt", ".md")):
        yield _text_of(path)
    elif name.endswith((".jsonl", ".jsonl.gz")):
        yield from _read_json_lines(path, field)
    elif name.endswith(".parquet"):
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise MissingDependencyError(
                "parquet corpora need pyarrow: pip install 'zcontext[train]'"
            ) from error
        for batch in parquet.ParquetFile(path).iter_batches(columns=[field]):
            yield from (str(v) for v in batch.column(0).to_pylist() if v)
    else:
        raise ConfigError(
            f"{path} is of an unknown kind; give one of {', '.join(_KINDS)}",
            field="sources",
            value=name,
        )


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"is not UTF-8: {error}") from None


def _unreadable(path: Path, reason: str) -> ConfigError:
    remedy = "Convert it, as `iconv -f latin1 -t utf-8`, fetch it again, or leave it out"
    return ConfigError(f"{path} {reason}. {remedy}", field="sources", value=str(path))


_KINDS = (".txt", ".md", ".jsonl", ".jsonl.gz", ".parquet")


def _open_lines(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _read_json_lines(path: Path, field: str) -> Iterator[str]:
    for number, line in numbered_lines(path):
        if line.strip():
            try:
                text = json.loads(line)[field]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ConfigError(
                    f"{path}, line {number}: no JSON object with a field {field!r} ({error}); "
                    "name the text field with `field`",
                    field="field",
                    value=field,
                ) from error
            if text:
                yield str(text)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file, gzipped or not, with their numbers.

    Args:
        path: The file.

    Yields:
        Numbers from 1, and lines.

    Raises:
        ConfigError: The file is not UTF-8, or its compressed form is damaged.
    """
    number = 0
    with _open_lines(path) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                yield number, line
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _unreadable(path, f"cannot be read after line {number}: {error}") from None


def _read_dataset(name: str, field: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "hf: corpora need the datasets package: pip install datasets"
        ) from error
    name, _, split = name.partition(":")
    for row in datasets.load_dataset(name, split=split or "train", streaming=True):
        if row.get(field):
            yield str(row[field])


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokenised documents in memory.

    Attributes:
        tokens: All documents end to end, `[total]`.
        offsets: Start of every document and the end of the last, `[n_documents + 1]`.
        surprisal: Bits of every token in eighths, `[total]`; None when not computed.
    """

    tokens: npt.NDArray[np.unsignedinteger]
    offsets: npt.NDArray[np.int64]
    surprisal: npt.NDArray[np.uint8] | None

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.offsets[-1])

    @classmethod
    def load(cls, paths: Sequence[str | Path]) -> Corpus:
        """Read shards.

        Args:
            paths: Files written by `write_shards`, or folders of them.

        Returns:
            The corpus.

        Raises:
            TrainingError: A shard is missing or not readable.
        """
        files: list[Path] = []
        for path in map(Path, paths):
            files += sorted(path.glob("*.npz")) if path.is_dir() else [path]
        if not files:
            raise TrainingError(
                f"no shards at {[str(p) for p in paths]}; make them with `zcontext prepare`"
            )
        tokens, offsets, surprisal, base = [], [np.zeros(1, np.int64)], [], 0
        for file in files:
            try:
                # Opened here: numpy leaves a file open that turns out to be no archive.
                with file.open("rb") as opened, np.load(opened, allow_pickle=False) as shard:
                    tokens.append(shard["tokens"])
                    offsets.append(shard["offsets"][1:].astype(np.int64) + base)
                    if "surprisal" in shard:
                        surprisal.append(shard["surprisal"])
            except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
                raise TrainingError(
                    f"{file} is not a shard: {error}; make it again with `zcontext prepare`"
                ) from error
            base = int(offsets[-1][-1])
        whole = len(surprisal) == len(files)
        return cls(
            np.concatenate(tokens),
            np.concatenate(offsets),
            np.concatenate(surprisal) if whole else None,
        )


def write_shards(
    texts: Iterable[str],
    folder: str | Path,
    *,
    encode: Callable[[str], list[int]],
    surprise: Callable[[list[list[int]]], list[npt.NDArray[np.float32]]] | None = None,
    shard_tokens: int = 8_000_000,
    seed: int = 0,
) -> int:
    """Tokenise, shuffle and shard texts. Long texts become documents of at most 4,096 tokens.

    Args:
        texts: The corpus.
        folder: Where the shards go; each is written under a temporary name and renamed.
        encode: Text to token ids.
        surprise: Token ids of some documents to the bits of their tokens; None leaves it out.
        shard_tokens: Tokens a shard holds.
        seed: Of the shuffle.

    Returns:
        Tokens written.

    Raises:
        TrainingError: There was no text.
    """
    documents = [
        ids[start : start + 4096]
        for text in texts
        for ids in [encode(text)]
        for start in range(0, len(ids), 4096)
    ]
    documents = [ids for ids in documents if len(ids) >= 8]
    if not documents:
        raise TrainingError("the corpus holds no text of 8 tokens or more; check the sources")
    order = np.random.default_rng(seed).permutation(len(documents))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written, shard, pending = 0, 0, list(order)
    while pending:
        chosen, size = [], 0
        while pending and size < shard_tokens:
            chosen.append(documents[pending.pop()])
            size += len(chosen[-1])
        arrays: dict[str, Any] = {
            "tokens": np.concatenate([np.asarray(c) for c in chosen]).astype(
                np.uint16 if max(max(c) for c in chosen) < 2**16 else np.uint32
            ),
            "offsets": np.cumsum([0, *map(len, chosen)]).astype(np.int64),
        }
        if surprise is not None:
            bits = np.concatenate(surprise(chosen))
            arrays["surprisal"] = np.clip(np.round(bits * BITS_PER_UNIT), 0, 255).astype(np.uint8)
        scratch = target / f".shard-{shard:05d}.tmp.npz"
        np.savez_compressed(scratch, **arrays)
        os.replace(scratch, target / f"shard-{shard:05d}.npz")
        written, shard = written + size, shard + 1
    return written


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Windows of one length and one number of slots, so that nothing is padded.

    Attributes:
        ids: int64 `[batch, n]`.
        prior: The windows just before, of the same length, for the Z memory, int64
            `[batch * windows, n]`, those of a row behind each other; or None.
        surprisal: Bits per token of the plain base, `[batch, n_prior + n]`, where they are known.
        depth: Stages used.
        n_slots: Symbols per window.
    """

    ids: Tensor
    prior: Tensor | None
    surprisal: Tensor | None
    depth: int
    n_slots: int


@dataclass(frozen=True, slots=True)
class WindowSampler:
    """Batches of windows: a pure function of seed and step.

    Attributes:
        corpus: Where windows are cut from.
        batch_tokens: Source tokens a batch holds, about.
        min_window: Shortest window.
        max_window: Longest window.
        min_ratio: Lowest ratio drawn.
        max_ratio: Highest ratio drawn.
        max_depth: Deepest prefix of stages drawn.
        full_depth_share: Share of batches at full depth; the rest draw 1 to full evenly.
        depth_shares: Share of batches of each depth from 1 on, instead of `full_depth_share`; they
            add up to 1.
        min_tokens_per_code: Lowest ratio over depth that is drawn, as far as `max_ratio` allows.
        memory_share: Share of batches with windows in front.
        max_prior: How many of them at most.
        ratio_ramp: Micro-batches over which the highest ratio rises from 4 to `max_ratio`.
        seed: Of everything drawn.
    """

    corpus: Corpus
    batch_tokens: int
    min_window: int
    max_window: int
    min_ratio: float
    max_ratio: float
    max_depth: int
    full_depth_share: float = 0.5
    depth_shares: Sequence[float] = ()
    min_tokens_per_code: float = 0.0
    memory_share: float = 0.0
    max_prior: int = 1
    ratio_ramp: int = 0
    seed: int = 0

    def batch(self, step: int) -> WindowBatch:
        """The batch of a step (micro-steps and processes count as steps of their own).

        Args:
            step: Any non-negative number.

        Returns:
            The batch.
        """
        rng = np.random.default_rng([self.seed, step])
        n = round(math.exp(rng.uniform(math.log(self.min_window), math.log(self.max_window))))
        start = min(self.max_ratio, max(4.0, self.min_ratio))
        done = min(1.0, step / self.ratio_ramp) if self.ratio_ramp else 1.0
        highest = start + done * (self.max_ratio - start)
        ratio_draw, depth = rng.random(), self._depth(rng)
        lowest = min(highest, max(self.min_ratio, self.min_tokens_per_code * depth))
        ratio = lowest * (highest / lowest) ** ratio_draw
        n_slots = max(1, int(n / ratio))
        with_prior = rng.random() < self.memory_share
        length = n * (1 + int(rng.integers(1, self.max_prior + 1))) if with_prior else n
        size = max(1, round(self.batch_tokens / length))
        starts = [self._start(rng, length) for _ in range(size)]
        ids = self._cut(self.corpus.tokens, starts, length).long()
        bits = None
        if self.corpus.surprisal is not None:
            bits = self._cut(self.corpus.surprisal, starts, length).float() / BITS_PER_UNIT
        return build_batch(ids, bits, n_prior=length - n, n_slots=n_slots, depth=depth)

    def _depth(self, rng: np.random.Generator) -> int:
        if self.depth_shares:
            upto = np.cumsum(self.depth_shares)[:-1]
            return 1 + int(np.searchsorted(upto, rng.random(), "right"))
        if rng.random() < self.full_depth_share:
            return self.max_depth
        return int(rng.integers(1, self.max_depth + 1))

    def _start(self, rng: np.random.Generator, length: int) -> int:
        offsets = self.corpus.offsets
        for _ in range(2000):
            start = int(rng.integers(0, max(1, self.corpus.n_tokens - length + 1)))
            document = int(np.searchsorted(offsets, start, side="right"))
            if start + length <= offsets[document]:
                return start
        raise TrainingError(
            f"the corpus has hardly any document of {length} tokens; lower max_window"
        )

    @staticmethod
    def _cut(flat: npt.NDArray[np.unsignedinteger], starts: list[int], length: int) -> Tensor:
        return torch.from_numpy(np.stack([flat[s : s + length].astype(np.int32) for s in starts]))


def build_batch(
    ids: Tensor, surprisal: Tensor | None, *, n_prior: int, n_slots: int, depth: int
) -> WindowBatch:
    """Split rows into prior and window.

    Args:
        ids: int64 `[batch, n_prior + n]`.
        surprisal: Bits, same shape, or None.
        n_prior: Tokens in front of the window, of none or of whole windows of its length.
        n_slots: Symbols of the window.
        depth: Stages used.

    Returns:
        The batch.
    """
    window = ids[:, n_prior:]
    prior = ids[:, :n_prior].reshape(-1, window.shape[1]) if n_prior else None
    return WindowBatch(window, prior, surprisal, depth, n_slots)
