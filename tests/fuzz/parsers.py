"""Coverage-guided fuzzing of every parser that needs no model, with atheris.

    make fuzz                       # a minute for each parser
    python tests/fuzz/parsers.py errata -max_total_time=600

atheris is no dependency of the tests, which fuzz the same parsers with hypothesis
(`tests/unit/test_fuzz.py`, `test_fuzz_inputs.py`): pip install atheris. A crash is anything but a
value or one of our errors; atheris writes the input that caused it into the current folder.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["zcontext"]):
    from zcontext.config import CompressSettings, from_table
    from zcontext.documents import ZDocument
    from zcontext.errata import Errata
    from zcontext.errors import ZContextError
    from zcontext.fragile import KINDS, protected_places
    from zcontext.placement import unpack_ends
    from zcontext.store import SQLiteStore
    from zcontext.testing import ByteCodec

CODEC = ByteCodec(depth=2)
KEY = "ab" * 32


def written_form(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for read in (CODEC.vocabulary.parse, CODEC.vocabulary.split, CODEC.vocabulary.guard):
        with suppress(ZContextError):
            read(text)


def documents(data: bytes) -> None:
    text = data.decode("latin-1")
    for read, given in (
        (ZDocument.from_bytes, data),
        (ZDocument.from_compact, text),
        (ZDocument.from_json, data),
    ):
        with suppress(ZContextError):
            document = read(given)  # type: ignore[operator]
            assert ZDocument.from_bytes(document.to_bytes()) == document


def errata(data: bytes) -> None:
    with suppress(ZContextError):
        Errata.from_bytes(data[1:], n_tokens=1 + data[0] if data else 1)


def ends(data: bytes) -> None:
    with suppress(ValueError):
        unpack_ends(
            data[2:], n_tokens=data[0] if data else 0, n_segments=data[1] if data[1:] else 0
        )


def settings(data: bytes) -> None:
    with suppress(ValueError, ZContextError, RecursionError):
        table = json.loads(data)
        if isinstance(table, dict):
            from_table(CompressSettings, table)


def literals(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for begin, end in protected_places(text, KINDS):
        assert 0 <= begin < end <= len(text)
    with suppress(ZContextError):
        document = CODEC.compress(text, settings=CompressSettings(protect=KINDS, exact=True))
        assert CODEC.decompress(document) == text


def stores(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store.db")
        with SQLiteStore(path):
            pass
        with closing(sqlite3.connect(path)) as raw:
            raw.execute("INSERT INTO documents VALUES (?, ?, ?)", (KEY, data[32:], data[:32]))
            raw.commit()
        with suppress(ZContextError), SQLiteStore(path) as store:
            store.get(KEY)


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (written_form, documents, errata, ends, settings, literals, stores)
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(TARGETS)} [options of libFuzzer]")
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
