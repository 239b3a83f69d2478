"""Whatever is read, from wherever it comes: a value that passes all checks, or one of our errors.

Each parser gets noise, damaged copies of the real thing, and real things with one part replaced
whose checksum is right again: an attacker can compute checksums too. The claims are those of
docs/development/threat-model.md.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import sqlite3
import time
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import zcontext.bundle
from tiny import tiny_base, tiny_z
from zcontext.bundle import MANIFEST, load_bundle, read_manifest, save_bundle
from zcontext.bundles import find_bundle
from zcontext.config import CodecConfig, CompressSettings, GenerationSettings, from_table
from zcontext.documents import ZDocument
from zcontext.errata import Errata
from zcontext.errors import (
    BundleError,
    CodecMismatchError,
    ConfigError,
    CorruptSpanError,
    StoreError,
    VocabularyError,
    ZContextError,
)
from zcontext.inferencer import Inferencer
from zcontext.integrations.engines import Engine
from zcontext.integrations.exchange import SPAN, Chunk, Exchange, StaleSpanWarning
from zcontext.placement import unpack_ends
from zcontext.sealing import PARTS
from zcontext.store import SQLiteStore
from zcontext.symbols import Symbols
from zcontext.testing import ByteCodec
from zcontext.vocabulary import has_symbols

CODEC = ByteCodec(depth=2)
VOCABULARY = CODEC.vocabulary
TEXT = "The lease ends on 30 September 1993. Söhne & Co. pay 4,800 euros. " * 3
DOCUMENT = CODEC.compress(TEXT, ratio=5)
KEY = "ab" * 32

shards = st.sampled_from(
    ["[|z", "|]", ":", "[|", "|", VOCABULARY.tag, "3f9a", "0C7V", "00", "7Z", "zz", " ", "\n"]
)
spelled = st.lists(shards | st.text(max_size=4), max_size=12).map("".join)
whole = st.sampled_from([VOCABULARY.render(DOCUMENT.symbols[:2]), "[|z3f9a:0C7V|]"])
texts = st.lists(spelled | whole | st.text(max_size=20), max_size=4).map("".join)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**70, 10**400, -1, 0, 1, 1e308, 2.5])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "a" * 64, DOCUMENT.codec, "../../etc/passwd", "\0"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """Copies with bytes changed, cut out or put in."""
    place = st.integers(0, len(data))

    def change(edit: tuple[int, int, bytes]) -> bytes:
        start, length, put_in = edit
        return data[:start] + put_in + data[start + length :]

    return st.tuples(place, st.integers(0, 12), st.binary(max_size=12)).map(change)


def replaced(table: dict[str, Any], path: list[int], value: Any) -> dict[str, Any]:
    """A copy with one part, found by taking turns into containers, replaced by a value."""
    result = copy.deepcopy(table)
    at: Any = result
    for k, step in enumerate(path):
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return result
        key = keys[step % len(keys)]
        if k == len(path) - 1 or not isinstance(at[key], dict | list):
            at[key] = value
            return result
        at = at[key]
    return result


paths = st.lists(st.integers(0, 20), min_size=1, max_size=4)


def test_the_threat_model_names_tests_that_exist() -> None:
    here = Path(__file__).parents[1]
    page = (here.parent / "docs" / "development" / "threat-model.md").read_text("utf-8")
    tests = "".join(path.read_text("utf-8") for path in here.rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+?)(?:_?\.\.\.)?`", page))
    assert len(named) > 9
    assert {name for name in named if f"def {name}" not in tests} == set()


# --- the written form ---------------------------------------------------------------------------


@given(texts)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for read in (VOCABULARY.parse, VOCABULARY.split, VOCABULARY.guard):
        with suppress(VocabularyError, CodecMismatchError):
            read(text)


@given(texts, texts)
def test_guarded_texts_hold_no_symbols_alone_or_joined(one: str, other: str) -> None:
    for policy in ("refuse", "escape", "drop"):
        try:
            safe = [VOCABULARY.guard(text, on_symbols=policy) for text in (one, other)]  # type: ignore[arg-type]
        except VocabularyError:
            continue
        for text in (*safe, "".join(safe)):
            assert not has_symbols(text)
            parts = VOCABULARY.split(text) if text in safe else []
            assert not any(isinstance(part, Symbols) for part in parts)


@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_no_text_reaches_the_model_as_symbols(text: str) -> None:
    reader = Inferencer(_model())
    n_base = len(_model().base.tokenizer)
    try:
        ids = reader.token_ids([text])
    except ZContextError:
        return
    assert all(token < n_base for token in ids)


def test_symbols_of_this_very_codec_are_refused_as_text_and_taken_as_symbols() -> None:
    """The planted fault: were text parsed for symbols on its way in, this would pass."""
    model = _model()
    size, depth = model.vocabulary.size, model.vocabulary.depth
    symbols = Symbols(((1,) * depth,), size, model.vocabulary.tag)
    reader = Inferencer(model)
    assert max(reader.token_ids([symbols])) >= len(model.base.tokenizer)
    with pytest.raises(VocabularyError):
        reader.token_ids([model.vocabulary.render(symbols)])


_models: list[Any] = []


def _model() -> Any:
    if not _models:
        _models.append(tiny_z())
    return _models[0]


# --- documents ----------------------------------------------------------------------------------


def test_edits_that_change_nothing_are_refused_as_damage() -> None:
    with pytest.raises(CorruptSpanError):
        Errata.from_bytes(bytes.fromhex("120100000000"), n_tokens=5)


def read_or_refuse(read: Any, data: Any) -> None:
    try:
        document = read(data)
    except CorruptSpanError:
        return
    # What passes is whole: it can be written again, counted, and refused or read by its codec.
    assert ZDocument.from_bytes(document.to_bytes()) == document
    assert document.bits >= 0


@given(st.binary(max_size=200) | damaged(DOCUMENT.to_bytes()))
def test_bytes_are_a_document_or_refused(data: bytes) -> None:
    read_or_refuse(ZDocument.from_bytes, data)


@settings(max_examples=300)
@given(damaged(DOCUMENT.to_bytes()[:-8]))
def test_bytes_with_a_forged_checksum_are_a_document_or_refused(body: bytes) -> None:
    read_or_refuse(ZDocument.from_bytes, body + hashlib.sha256(body).digest()[:8])


@given(texts | damaged(DOCUMENT.to_compact().encode()).map(lambda data: data.decode("latin-1")))
def test_compact_strings_are_a_document_or_refused(text: str) -> None:
    read_or_refuse(ZDocument.from_compact, text)
    read_or_refuse(ZDocument.from_compact, "zdoc1." + text)


@settings(max_examples=300)
@given(paths, values)
def test_json_with_a_part_replaced_is_a_document_or_refused(path: list[int], value: Any) -> None:
    table = replaced(DOCUMENT.to_dict(), path, value)
    read_or_refuse(ZDocument.from_dict, table)
    read_or_refuse(ZDocument.from_json, json.dumps(table))


@given(texts | st.binary(max_size=60) | values.map(json.dumps))
def test_any_json_is_a_document_or_refused(text: str | bytes) -> None:
    read_or_refuse(ZDocument.from_json, text)


def test_numbers_beyond_a_float_are_refused() -> None:
    for name in ("token_accuracy", "bits_missing"):
        table = DOCUMENT.to_dict()
        table["spans"][0]["fidelity"][name] = 10**400
        with pytest.raises(CorruptSpanError):
            ZDocument.from_dict(table)


def test_deep_nesting_is_refused() -> None:
    for depth in (500, 100_000):
        read_or_refuse(ZDocument.from_json, "[" * depth + "]" * depth)
        nested = "[" * depth + "]" * depth
        read_or_refuse(
            ZDocument.from_json, DOCUMENT.to_json().replace('"schema":1', f'"schema":{nested}')
        )


def test_a_span_of_absurd_length_is_refused_at_once() -> None:
    started = time.perf_counter()
    for n_tokens in (1 << 17, 1 << 60):
        with pytest.raises(ValueError, match="tokens"):
            unpack_ends(b"\x01", n_tokens=n_tokens, n_segments=2)
        table = DOCUMENT.to_dict()
        last = table["spans"][-1]
        last["tokens"][1] = table["n_tokens"] = n_tokens
        last["ends"] = [*range(1, len(last["codes"])), n_tokens - last["tokens"][0]]
        read_or_refuse(ZDocument.from_dict, table)
    assert time.perf_counter() - started < 20  # without the limit it never ends


@given(st.binary(max_size=40), st.integers(0, 70), st.integers(0, 8), st.integers(-1, 40_000))
def test_packed_codes_are_symbols_or_refused(data: bytes, n: int, depth: int, size: int) -> None:
    with suppress(VocabularyError):
        Symbols.from_bytes(data, n_symbols=n, depth=depth, size=size, codec="3f9a")


@given(st.binary(max_size=60), st.integers(1, 600))
def test_errata_are_read_or_refused(data: bytes, n_tokens: int) -> None:
    for start in (b"", b"\x10", b"\x12", b"\x13", b"\x14", b"\x16", b"\x17"):
        with suppress(CorruptSpanError):
            Errata.from_bytes(start + data, n_tokens=n_tokens)


@given(values | texts)
def test_metadata_of_strangers_never_breaks_an_exchange(value: Any) -> None:
    exchange = Exchange(VOCABULARY, compressor=lambda: CODEC)
    with pytest.warns(StaleSpanWarning) if value is not None else nullcontext():
        (result,) = exchange.swap([Chunk(TEXT, {SPAN: value}, "x")])
    assert VOCABULARY.parse(result.text) == CODEC.compress(TEXT).symbols


# --- stores -------------------------------------------------------------------------------------

edits = st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=12))
cells = st.binary(max_size=40) | st.text(max_size=8) | st.integers(-9, 9) | st.floats(0, 1)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    key=st.just(KEY) | st.text(max_size=9) | st.binary(max_size=9),
    document=cells | damaged(DOCUMENT.to_bytes()),
    checksum=cells | st.just("right"),
)
def test_rows_are_documents_or_refused(
    tmp_path: Path, key: Any, document: Any, checksum: Any
) -> None:
    path = tmp_path / "rows.db"
    with SQLiteStore(path):
        pass
    if checksum == "right":
        data = document if isinstance(document, bytes) else str(document).encode()
        checksum = hashlib.sha256((key if isinstance(key, bytes) else key.encode()) + data).digest()
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA synchronous = OFF")
        raw.execute("DELETE FROM documents")
        raw.execute("INSERT INTO documents VALUES (?, ?, ?)", (key, document, checksum))
        raw.commit()
    with SQLiteStore(path) as store:
        for read in (lambda: store.get(KEY), store.damaged, lambda: len(store)):
            with suppress(CorruptSpanError, StoreError):
                read()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(noise=st.none() | st.binary(max_size=200), edits=st.lists(edits, min_size=1, max_size=4))
def test_a_damaged_file_is_a_store_or_refused(
    tmp_path: Path, noise: bytes | None, edits: list[tuple[float, int, bytes]]
) -> None:
    path = tmp_path / "file.db"
    with SQLiteStore(path) as store:
        store.put(KEY, DOCUMENT)
    data = path.read_bytes() if noise is None else noise
    for place, length, put_in in edits:
        start = int(place * len(data))
        data = data[:start] + put_in + data[start + length :]
    path.write_bytes(data)
    with suppress(CorruptSpanError, StoreError), SQLiteStore(path) as store:
        store.get(KEY)
        store.damaged()
        store.put(KEY, DOCUMENT)
    for left in tmp_path.iterdir():
        left.unlink()


@settings(max_examples=25, deadline=None)
@given(texts | st.sampled_from(["../" * 20, "/etc/passwd", "'; DROP TABLE documents; --"]))
def test_a_key_is_never_part_of_a_path_or_a_query(key: str) -> None:
    with SQLiteStore(Path("keys.db")) as store:
        with pytest.raises(StoreError):
            store.put(key, DOCUMENT)
        with pytest.raises(StoreError):
            store.get(key)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- bundles and settings -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    save_bundle(_model(), folder)
    return folder


def manifest_of(bundle: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((bundle / MANIFEST).read_text("utf-8"))
    return table


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
def test_any_manifest_is_read_or_refused(tmp_path: Path, noise: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(noise)
    with pytest.raises(BundleError):
        read_manifest(tmp_path)
    with pytest.raises(BundleError):
        Engine(tmp_path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=paths, value=values)
def test_a_manifest_with_a_part_replaced_loads_or_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, path: list[int], value: Any
) -> None:
    asked: list[Any] = []

    def stand_in(name: Any = None, **options: Any) -> Any:
        asked.append(name)
        return tiny_base()

    monkeypatch.setattr(zcontext.bundle, "load_base", stand_in)
    before = manifest_of(bundle)
    try:
        (bundle / MANIFEST).write_text(json.dumps(replaced(before, path, value)), "utf-8")
        for read in (load_bundle, Engine):
            with suppress(BundleError):
                read(bundle)
    finally:
        (bundle / MANIFEST).write_text(json.dumps(before), "utf-8")
    assert all(name is None or isinstance(name, str) for name in asked)


@pytest.mark.parametrize(
    "shape", [{"lora_rank": 10**9}, {"size": 3}, {"depth": 1}, {"lora_rank": 2.5}, {"depth": True}]
)
def test_a_shape_that_the_parts_do_not_have_is_refused_before_memory_is_taken(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any]
) -> None:
    monkeypatch.setattr(zcontext.bundle, "load_base", lambda *a, **k: tiny_base())
    before = manifest_of(bundle)
    try:
        changed = {**before, "config": {**before["config"], **shape}}
        (bundle / MANIFEST).write_text(json.dumps(changed), "utf-8")
        with pytest.raises(BundleError):
            load_bundle(bundle)
    finally:
        (bundle / MANIFEST).write_text(json.dumps(before), "utf-8")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(part=st.sampled_from(PARTS), data=st.data())
def test_a_part_with_a_forged_digest_loads_or_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, part: str, data: st.DataObject
) -> None:
    monkeypatch.setattr(zcontext.bundle, "load_base", lambda *a, **k: tiny_base())
    file, manifest = bundle / f"{part}.safetensors", manifest_of(bundle)
    before = file.read_bytes()
    forged = data.draw(damaged(before) | st.binary(max_size=40) | st.just(save({})))
    changed = copy.deepcopy(manifest)
    changed["parts"][part] = {"sha256": hashlib.sha256(forged).hexdigest(), "n_bytes": len(forged)}
    try:
        file.write_bytes(forged)
        (bundle / MANIFEST).write_text(json.dumps(changed), "utf-8")
        with suppress(BundleError):
            load_bundle(bundle)
    finally:
        file.write_bytes(before)
        (bundle / MANIFEST).write_text(json.dumps(manifest), "utf-8")


@given(st.dictionaries(st.sampled_from(["part", "../x", "codebook"]), values, max_size=3))
def test_a_manifest_names_no_files(parts: dict[str, Any]) -> None:
    """Parts are read by their own fixed names, so no manifest can point out of its folder."""
    table = {"format": 1, "codec": "", "config": {}, "base": {}, "parts": parts}
    Path(MANIFEST).write_text(json.dumps(table), "utf-8")
    with pytest.raises(BundleError):
        read_manifest(".")


@pytest.mark.parametrize("name", ["..", ".", "../bundles/x", "a/../../b"])
def test_a_bundle_name_does_not_lead_out_of_the_bundle_folders(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "there" / "bundles"
    inside.mkdir(parents=True)
    (tmp_path / "there" / MANIFEST).write_text("{}")
    (inside / MANIFEST).write_text("{}")
    monkeypatch.setattr(zcontext.bundles, "bundle_folders", lambda: (inside,))
    with pytest.raises(BundleError):
        find_bundle(name)


@pytest.mark.parametrize("kind", [CodecConfig, CompressSettings, GenerationSettings])
def test_any_table_is_settings_or_refused(kind: Any) -> None:
    names = st.sampled_from([*kind.__dataclass_fields__, "unknown"])

    @given(st.dictionaries(names, values, max_size=3))
    def law(table: dict[str, Any]) -> None:
        with suppress(ConfigError):
            from_table(kind, table)

    law()
