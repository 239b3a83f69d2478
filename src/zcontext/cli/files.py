"""Reading sources and writing results, whole or not at all.

Text is UTF-8, newlines as they are. A result file is written under a temporary name and renamed;
on standard output a line is written whole even if Ctrl-C comes while it is.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zcontext.errors import ConfigError

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Source:
    """A text and where it came from.

    Attributes:
        name: A path, or "-" for standard input; with a line number for rows of JSON lines.
        text: The text.
    """

    name: str
    text: str


def read_text(name: str) -> str:
    """A file, or standard input, as text.

    Args:
        name: A path, or "-".

    Returns:
        The text, nothing changed.

    Raises:
        ConfigError: It is not UTF-8.
    """
    data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{_shown(name)} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} "
            f"(line {line}). Convert it first, as `iconv -f latin1 -t utf-8`",
            field="sources",
            value=name,
        ) from None


def read_sources(names: Sequence[str], *, field: str | None = None) -> list[Source]:
    """Texts of all sources, in order.

    Args:
        names: Paths and "-".
        field: Read JSON lines and take this field of every row; None takes each source whole.

    Returns:
        One text per source, or per row.

    Raises:
        ConfigError: A source is not UTF-8, a row is not JSON or lacks the field, or standard
            input is named twice.
    """
    if list(names).count(STDIN) > 1:
        raise ConfigError("standard input (-) can be read once only", field="sources", value="-")
    found = []
    for name in names:
        text = read_text(name)
        if field is None:
            found.append(Source(name, text))
        else:
            found += _rows(name, text, field)
    return found


def read_lines(names: Sequence[str]) -> list[Source]:
    """Lines of all sources that are not blank, in order.

    Args:
        names: Paths and "-".

    Returns:
        One source per line.
    """
    return [
        Source(f"{_shown(source.name)}, line {number}", line.strip())
        for source in read_sources(names)
        # Not splitlines(): JSON may hold U+2028 inside a string.
        for number, line in enumerate(source.text.split("\n"), start=1)
        if line.strip()
    ]


def _rows(name: str, text: str, field: str) -> Iterator[Source]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)[field]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{_shown(name)}, line {number}: no JSON object with a field {field!r} ({error})",
                field="field",
                value=field,
            ) from None
        if not isinstance(value, str):
            raise ConfigError(
                f"{_shown(name)}, line {number}: field {field!r} is a {type(value).__name__}, not "
                "a string",
                field="field",
                value=field,
            )
        yield Source(f"{name}:{number}", value)


def _shown(name: str) -> str:
    return "standard input" if name == STDIN else name


class Sink:
    """Where results go; every piece is written whole.

    Args:
        stream: Opened for bytes.
        at_once: Somebody may be reading: nothing is held back.
    """

    def __init__(self, stream: BinaryIO | gzip.GzipFile, *, at_once: bool = True) -> None:
        self._stream, self._at_once = stream, at_once

    def write(self, text: str) -> None:
        """Write a text as it is.

        Args:
            text: Any text that UTF-8 can carry.
        """
        data = text.encode("utf-8")
        with _uninterrupted():
            self._stream.write(data)
            if self._at_once:
                self._stream.flush()

    def line(self, text: str) -> None:
        """Write a line, or none of it.

        Args:
            text: A line without its end.
        """
        self.write(text + "\n")


@contextmanager
def open_sink(path: Path | None) -> Iterator[Sink]:
    """A place for results: standard output, or a file that appears once it is complete.

    Args:
        path: The file, compressed if its name ends in .gz; None means standard output.

    Yields:
        The sink.

    Raises:
        ConfigError: The path is a folder.
    """
    if path is None:
        sys.stdout.flush()
        yield Sink(sys.stdout.buffer)
        return
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a file", field="out", value=str(path))
    if path.exists() and not path.is_file():  # a device or a pipe: nothing to rename
        with path.open("wb") as stream:
            yield Sink(stream)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as stream:
            if path.suffix == ".gz":  # the same bytes for the same text: no name, no time
                with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed:
                    yield Sink(packed, at_once=False)
            else:
                yield Sink(stream, at_once=False)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    finally:
        with suppress(FileNotFoundError):
            scratch.unlink()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until a write is over."""
    on_main = threading.current_thread() is threading.main_thread()
    if not on_main or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
