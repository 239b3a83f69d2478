"""Stores keep what was committed, whoever else writes, dies, or runs out of space."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import zcontext
from zcontext.config import CompressSettings
from zcontext.errors import ConfigError, CorruptSpanError, StoreError, VocabularyError
from zcontext.spans import ZDocument
from zcontext.store import MemoryStore, SpanStore, SQLiteStore, store_key
from zcontext.testing import ByteCodec

CODEC = ByteCodec()
SOURCE = str(Path(zcontext.__file__).parents[1])


def a_document(k: int = 0, *, n_bytes: int = 200) -> ZDocument:
    return CODEC.compress(f"document {k}: " + random.Random(k).randbytes(n_bytes).hex())


def a_key(k: int = 0) -> str:
    return store_key(codec=CODEC.codec, settings=CompressSettings(ratio=4.0), text=f"text {k}")


def child(code: str, *arguments: object) -> list[str]:
    """The command line of a Python process that has the names of this module's head."""
    head = (
        "import os, sys\n"
        f"sys.path[:0] = [{SOURCE!r}, {str(Path(__file__).parent)!r}]\n"
        "from test_store import *\n"
    )
    return [sys.executable, "-c", head + code, *map(str, arguments)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spans.sqlite"


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, path: Path) -> Iterator[SpanStore]:
    made: SpanStore = MemoryStore() if request.param == "memory" else SQLiteStore(path)
    yield made
    made.close()


# Keys

OTHER_VALUES: dict[str, Any] = {
    "ratio": 5.0,
    "max_symbols": 9,
    "bits_per_symbol": 40.0,
    "depth": 2,
    "window": 256,
    "context": 16,
    "memory": 8,
    "on_symbols": "escape",
    "max_tokens": 1000,
    "exact": True,
    "min_fidelity": 0.5,
    "on_low_fidelity": "raw",
    "protect": ("tables",),
    "question": "Who?",
    "emphasis": "end",
    "writer": "autoregressive",
    "placement": "anchored",
    "facts": False,
    "surprisal": "base",
}


def test_the_key_changes_with_every_setting() -> None:
    plain = CompressSettings()
    names = [field.name for field in dataclasses.fields(CompressSettings)]
    assert set(names) == set(OTHER_VALUES), "a new setting needs a value here"
    changed = [plain] + [plain.replace(**{name: OTHER_VALUES[name]}) for name in names]
    keys = [store_key(codec=CODEC.codec, settings=s, text="text") for s in changed]
    assert len(set(keys)) == len(keys)


def test_the_key_changes_with_codec_and_text_and_with_nothing_else() -> None:
    settings = CompressSettings(ratio=4.0)
    key = store_key(codec=CODEC.codec, settings=settings, text="a")
    assert key == store_key(codec=CODEC.codec, settings=CompressSettings(ratio=4.0), text="a")
    assert key != store_key(codec="0" * 64, settings=settings, text="a")
    assert key != store_key(codec=CODEC.codec, settings=settings, text="a ")
    assert len(key) == 64
    with pytest.raises(VocabularyError):
        store_key(codec=CODEC.codec, settings=settings, text="\ud800")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=9))
def test_two_texts_never_share_a_key(texts: list[str]) -> None:
    settings = CompressSettings()
    keys = {store_key(codec=CODEC.codec, settings=settings, text=text) for text in texts}
    assert len(keys) == len(texts)


# Both stores


def test_what_was_put_is_got(store: SpanStore) -> None:
    assert isinstance(store, SpanStore)
    assert store.get(a_key()) is None
    for k in range(5):
        store.put(a_key(k), a_document(k))
    assert len(store) == 5
    assert store.get(a_key(3)) == a_document(3)
    store.put(a_key(3), a_document(7))
    assert store.get(a_key(3)) == a_document(7)
    assert len(store) == 5


def test_get_many_keeps_order_gaps_and_repeats(store: SpanStore) -> None:
    for k in range(3):
        store.put(a_key(k), a_document(k))
    keys = [a_key(2), a_key(9), a_key(0), a_key(2)]
    assert store.get_many(keys) == [a_document(2), None, a_document(0), a_document(2)]
    assert store.get_many([]) == []


def test_the_empty_document_is_kept_and_is_not_none(store: SpanStore) -> None:
    store.put(a_key(), CODEC.compress(""))
    assert store.get(a_key()) == CODEC.compress("")


@pytest.mark.parametrize("key", ["", "abc", "../" * 20, "A" * 64, "g" * 64, 5, None])
def test_a_key_that_is_no_digest_is_refused(store: SpanStore, key: Any) -> None:
    for use in (lambda: store.get(key), lambda: store.put(key, a_document())):
        with pytest.raises(StoreError, match="store_key"):
            use()


def test_threads_share_a_store(store: SpanStore) -> None:
    errors: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for k in range(start, start + 20):
                store.put(a_key(k), a_document(k))
                assert store.get(a_key(k)) == a_document(k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(10 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store) == 70


def test_memory_drops_the_least_recently_used() -> None:
    store = MemoryStore(max_documents=2)
    store.put(a_key(0), a_document(0))
    store.put(a_key(1), a_document(1))
    store.get(a_key(0))
    store.put(a_key(2), a_document(2))
    assert store.get_many([a_key(0), a_key(1), a_key(2)])[1] is None
    assert len(store) == 2
    store.close()
    assert len(store) == 0
    with pytest.raises(ConfigError, match="max_documents"):
        MemoryStore(max_documents=0)


# SQLite: the file


def test_documents_are_there_after_reopening_and_closing_twice_is_fine(path: Path) -> None:
    with SQLiteStore(path) as store:
        store.put(a_key(), a_document())
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get(a_key())
    with SQLiteStore(path) as store:
        assert store.get(a_key()) == a_document()


def test_more_keys_than_one_query_takes(path: Path) -> None:
    with SQLiteStore(path) as store:
        store.put(a_key(1500), a_document(1))
        found = store.get_many([a_key(k) for k in range(1600)])
    assert [k for k, document in enumerate(found) if document is not None] == [1500]


def test_the_store_is_made_with_its_folder_for_its_user_only(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "spans.sqlite"
    with SQLiteStore(path) as store:
        store.put(a_key(), a_document())
        assert store.path == path
        for file in path.parent.iterdir():
            assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "bad", ["", "  ", ":memory:", "file:x?mode=memory", "a\0b", "\udc80", b"spans.sqlite"]
)
def test_a_path_that_is_no_path_is_refused_and_nothing_is_made(
    bad: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError):
        SQLiteStore(bad)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_or_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path, tmp_path / "file" / "spans.sqlite"):
        with pytest.raises(StoreError, match="cannot hold a store"):
            SQLiteStore(bad)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="not a regular file"):
        SQLiteStore(tmp_path / "pipe")


def test_another_file_is_refused_and_left_as_it_is(path: Path) -> None:
    content = b"These are my notes.\n" * 100
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not an SQLite file"):
        SQLiteStore(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused_and_left_as_it_is(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE documents (id)")
    other.commit()
    other.close()
    content = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        SQLiteStore(path)
    assert path.read_bytes() == content


def test_a_newer_schema_is_refused(path: Path) -> None:
    SQLiteStore(path).close()
    edit(path, "PRAGMA user_version = 2")
    with pytest.raises(StoreError, match="schema version 2"):
        SQLiteStore(path)


def edit(path: Path, statement: str, *values: object) -> None:
    """Change a closed store behind its back."""
    connection = sqlite3.connect(path)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a changed byte": lambda path: edit(
        path,
        "UPDATE documents SET document = substr(document, 1, 90) || x'00' || substr(document, 92) "
        "WHERE key = ?",
        a_key(1),
    ),
    "a cut document": lambda path: edit(
        path, "UPDATE documents SET document = substr(document, 1, 40) WHERE key = ?", a_key(1)
    ),
    "a text for a blob": lambda path: edit(
        path, "UPDATE documents SET document = 'x' WHERE key = ?", a_key(1)
    ),
    "another document's row": lambda path: edit(
        path,
        "UPDATE documents SET (document, checksum) = "
        "(SELECT document, checksum FROM documents WHERE key = ?) WHERE key = ?",
        a_key(0),
        a_key(1),
    ),
    "a lost checksum": lambda path: edit(
        path, "UPDATE documents SET checksum = x'' WHERE key = ?", a_key(1)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_row_is_seen_named_and_can_be_replaced(
    damage: Callable[[Path], None], path: Path
) -> None:
    with SQLiteStore(path) as store:
        for k in range(3):
            store.put(a_key(k), a_document(k))
    damage(path)
    with SQLiteStore(path) as store:
        with pytest.raises(CorruptSpanError, match=f"{a_key(1)}.*discard"):
            store.get(a_key(1))
        assert store.get(a_key(2)) == a_document(2)
        assert store.damaged() == (a_key(1),)
        store.discard(a_key(1))
        assert store.get(a_key(1)) is None
        store.put(a_key(1), a_document(1))
        assert store.damaged() == ()


def test_a_file_overwritten_in_the_middle_is_an_error_not_a_wrong_answer(path: Path) -> None:
    with SQLiteStore(path) as store:
        for k in range(40):
            store.put(a_key(k), a_document(k))
    data = bytearray(path.read_bytes())
    data[4096:-4096] = random.Random(0).randbytes(len(data) - 8192)
    path.write_bytes(data)

    def read() -> None:
        with SQLiteStore(path) as store:
            for k in range(40):
                assert store.get(a_key(k)) in (None, a_document(k))

    with pytest.raises((StoreError, CorruptSpanError)):
        read()


def test_a_locked_store_is_an_error_that_says_what_to_change(path: Path) -> None:
    with SQLiteStore(path, busy_seconds=0.1) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="busy_seconds"):
            store.put(a_key(), a_document())
        other.execute("ROLLBACK")
        other.close()
        store.put(a_key(), a_document())
    with pytest.raises(ConfigError, match="busy_seconds"):
        SQLiteStore(path, busy_seconds=-1)


# SQLite: no space


def fill(store: SpanStore) -> tuple[int, StoreError]:
    """Put documents until one is refused: how many went in, and why no more."""
    for k in itertools.count():
        try:
            store.put(a_key(k), a_document(k, n_bytes=4000))
        except StoreError as error:
            return k, error
    raise AssertionError("unreachable")


def test_a_full_disk_is_a_store_error_and_keeps_what_was_committed(path: Path) -> None:
    with SQLiteStore(path) as store:
        store._connected().execute("PRAGMA max_page_count = 40")
        k, error = fill(store)
        assert "free some disk space; what was stored" in str(error)
        assert len(store) == k > 3
        assert all(store.get(a_key(j)) == a_document(j, n_bytes=4000) for j in range(k))
    with SQLiteStore(path) as store:
        store.put(a_key(k), a_document(k, n_bytes=4000))
        assert store.damaged() == ()


FILL = """
import resource
store = SQLiteStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
k, error = fill(store)
print(k, error)
assert all(store.get(a_key(j)) == a_document(j, n_bytes=4000) for j in range(k))
store.close()
"""


def test_a_write_refused_by_the_system_keeps_what_was_committed(path: Path) -> None:
    done = subprocess.run(child(FILL, path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    n, message = done.stdout.split(" ", 1)
    assert "Cannot write the store" in message
    assert "intact" in message
    with SQLiteStore(path) as store:
        assert len(store) == int(n) > 3
        assert store.damaged() == ()


# SQLite: several processes

WRITE = """
start = int(sys.argv[2])
store = SQLiteStore(sys.argv[1])
for k in range(start, start + 25):
    store.put(a_key(k), a_document(k))
    assert store.get(a_key(k)) == a_document(k)
"""


def test_processes_make_and_share_one_store(path: Path) -> None:
    children = [
        subprocess.Popen(child(WRITE, path, 20 * n), stderr=subprocess.PIPE) for n in range(4)
    ]
    for process in children:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr.decode()
    with SQLiteStore(path) as store:
        assert len(store) == 85
        assert all(store.get(a_key(k)) == a_document(k) for k in range(85))


FORK = """
store = SQLiteStore(sys.argv[1])
store.put(a_key(0), a_document(0))
pid = os.fork()
store.put(a_key(1 if pid else 2), a_document(1 if pid else 2))
assert store.get(a_key(0)) == a_document(0)
store.close()
if pid == 0:
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0
with SQLiteStore(sys.argv[1]) as store:
    assert len(store) == 3 and store.damaged() == ()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_store_carried_through_a_fork_opens_the_file_again(path: Path) -> None:
    done = subprocess.run(child(FORK, path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# SQLite: killed in the middle of a write

PUT_FOREVER = """
start = int(sys.argv[2])
store = SQLiteStore(sys.argv[1])
documents = [a_document(k, n_bytes=3000) for k in range(20)]
for k in itertools.count(start):
    store.put(a_key(k), documents[k % 20])
    os.write(1, f"{k}\\n".encode())
"""


def test_killed_in_the_middle_of_a_write_every_committed_document_is_intact(path: Path) -> None:
    documents = [a_document(k, n_bytes=3000) for k in range(20)]
    committed: list[int] = []
    chance = random.Random(5)
    for _ in range(8):
        start = committed[-1] + 1 if committed else 0
        with subprocess.Popen(child(PUT_FOREVER, path, start), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = process.stdout.readline()  # it is writing now
            time.sleep(chance.uniform(0.0, 0.15))
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read()
        assert process.returncode == -signal.SIGKILL
        lines = (first + rest).splitlines(keepends=True)
        committed += [int(line) for line in lines if line.endswith(b"\n")]
        with SQLiteStore(path) as store:
            found = store.get_many([a_key(k) for k in committed])
            assert found == [documents[k % 20] for k in committed]
            # The one being put may be there as well, whole, or not at all.
            assert len(committed) <= len(store) <= len(committed) + 1
            assert store.damaged() == ()
            extra = store.get(a_key(committed[-1] + 1))
            if extra is not None:
                committed.append(committed[-1] + 1)
    assert len(committed) > 20
