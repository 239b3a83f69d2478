"""Coverage-guided fuzzing of every parser, with atheris.

    make fuzz                       # a minute for each parser
    python tests/fuzz/parsers.py errata -max_total_time=600

atheris is no dependency of the tests, which fuzz the same parsers with hypothesis
(`tests/unit/test_fuzz.py`, `test_fuzz_inputs.py`): pip install -e '.[fuzz]'. Every parser starts
from real things (`SEEDS`), and checksums are made right, as an attacker's would be. A crash is
anything but a value or one of our errors; atheris writes the input that caused it into the current
folder, and it becomes a test there.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["zcontext"]):
    from zcontext.bundle import read_manifest
    from zcontext.bundles import DEFAULT_BUNDLE, find_bundle
    from zcontext.cli.files import Source, read_lines, read_sources
    from zcontext.cli.spanning import read_written
    from zcontext.config import CodecConfig, CompressSettings, GenerationSettings, from_table
    from zcontext.documents import ZDocument
    from zcontext.errata import Edit, Errata
    from zcontext.errors import ZContextError
    from zcontext.fragile import KINDS, protected_places
    from zcontext.gguf import _convert
    from zcontext.integrations.engines import Engine
    from zcontext.placement import pack_ends, unpack_ends
    from zcontext.store import SQLiteStore
    from zcontext.testing import ByteCodec

TESTS = Path(__file__).parents[1]
CODEC = ByteCodec(depth=2)
KEY = "ab" * 32
TEXT = "In 1993 | Söhne & Co. paid 4,800 euros.\n\n| a | b |\n|---|---|\n| 1 | x |\n\nThat is all. "
DOCUMENT = CODEC.compress(
    TEXT, ratio=3, settings=CompressSettings(protect=("tables", "numbers"), exact=True)
)
WRITTEN = CODEC.vocabulary.render(DOCUMENT.symbols)


def written_form(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for read in (CODEC.vocabulary.parse, CODEC.vocabulary.split, CODEC.vocabulary.guard):
        with suppress(ZContextError):
            read(text)


def documents(data: bytes) -> None:
    text = data.decode("latin-1")
    for read, given in (
        (ZDocument.from_bytes, data),
        (ZDocument.from_bytes, data + sha256(data).digest()[:8]),
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
            for kind in (CompressSettings, CodecConfig, GenerationSettings):
                with suppress(ZContextError):
                    from_table(kind, table)


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
        packed = data + sha256(data).digest()[:8]
        checksum = sha256(KEY.encode() + packed).digest()
        with closing(sqlite3.connect(path)) as raw:
            raw.execute("INSERT INTO documents VALUES (?, ?, ?)", (KEY, packed, checksum))
            raw.commit()
        with suppress(ZContextError), SQLiteStore(path) as store:
            store.get(KEY)


def store_files(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store.db")
        path.write_bytes(data)
        with suppress(ZContextError), SQLiteStore(path) as store:
            store.get(KEY)
            store.damaged()


def manifests(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "manifest.json").write_bytes(data)
        for read in (read_manifest, Engine):
            with suppress(ZContextError):
                read(folder)


def command_line(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "input"))
        Path(path).write_bytes(data)
        with suppress(ZContextError):
            read_sources([path], field="text")
        with suppress(ZContextError):
            for line in read_lines([path]):
                with suppress(ZContextError):
                    read_written(Source("input", line.text), CODEC.vocabulary)


def gguf(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "base.gguf"), Path(folder, "out")
        path.write_bytes(data)
        out.mkdir()
        with suppress(ZContextError):
            _convert(path, out)


def _tiny_gguf() -> bytes:
    sys.path[:0] = [str(TESTS), str(TESTS / "unit")]
    from test_loading import write_gguf

    with tempfile.TemporaryDirectory() as folder:
        write_gguf(Path(folder, "tiny.gguf"))
        return Path(folder, "tiny.gguf").read_bytes()


def _store_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store.db")
        with SQLiteStore(path) as store:
            store.put(KEY, DOCUMENT)
        return path.read_bytes()


def _errata() -> list[bytes]:
    wrong = ((0, 7), (3, 49_151), (9, 0))
    edits = (Edit(0, 1, "\x04"), Edit(5, 5, "long " * 9))
    made = [Errata(wrong), Errata((), edits), Errata(wrong, edits), Errata()]
    return [bytes([11]) + each.to_bytes(n_tokens=12) for each in made]


SEEDS: dict[Callable[[bytes], None], Callable[[], list[bytes]]] = {
    written_form: lambda: [f"so {WRITTEN} and [|z3f9a:0C7V|] text".encode()],
    documents: lambda: [
        DOCUMENT.to_bytes()[:-8],
        DOCUMENT.to_compact().encode(),
        DOCUMENT.to_json().encode(),
    ],
    errata: _errata,
    ends: lambda: [bytes([12, 3]) + pack_ends((2, 7, 12))],
    settings: lambda: [b'{"ratio": 2.5, "exact": true, "protect": ["tables", "re:A+"]}'],
    literals: lambda: [TEXT.encode(), b'see {"a": [1, "b"]} `x` https://x.no/a?b=1'],
    stores: lambda: [DOCUMENT.to_bytes()[:-8]],
    store_files: lambda: [_store_file()],
    manifests: lambda: [(find_bundle(DEFAULT_BUNDLE) / "manifest.json").read_bytes()],
    command_line: lambda: [
        b'{"text": "one"}\n{"text": "two"}\n',
        WRITTEN.encode(),
        DOCUMENT.to_compact().encode(),
        json.dumps({"document": DOCUMENT.to_dict()}).encode(),
    ],
    gguf: lambda: [_tiny_gguf()],
}
TARGETS = {each.__name__: each for each in SEEDS}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(TARGETS)} [options of libFuzzer]")
    target = TARGETS[sys.argv.pop(1)]
    corpus = Path(tempfile.mkdtemp(prefix="zcontext-fuzz-"))
    try:
        for at, seed in enumerate(SEEDS[target]()):
            Path(corpus, str(at)).write_bytes(seed)
        # Small headers inside big files are worth longer inputs than libFuzzer's default.
        atheris.Setup([*sys.argv, "-max_len=65536", str(corpus)], target)
        atheris.Fuzz()
    finally:
        shutil.rmtree(corpus, ignore_errors=True)


if __name__ == "__main__":
    main()
