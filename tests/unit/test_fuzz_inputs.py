"""More of what is read from strangers: literals in documents, files of users, GGUF, safetensors.

The claims are those of docs/development/threat-model.md; the rest of them is held by `test_fuzz`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_cli import codec, run  # noqa: F401 - fixtures
from test_fuzz import damaged, paths, read_or_refuse, replaced, values
from test_loading import write_gguf

from zcontext import gguf
from zcontext.bundle import MANIFEST, load_bundle, save_bundle
from zcontext.config import CompressSettings
from zcontext.errors import BundleError, ConfigError, CorruptSpanError, UnsupportedBaseError
from zcontext.testing import ByteCodec
from zcontext.training.data import read_texts

TEXT = (
    "In 1993 | Söhne & Co. paid 4,800 euros.\n\n| a | b |\n|---|---|\n| 1 | x |\n\nThat is all. "
    * 2
)
PLAIN = ByteCodec(depth=2)
DOCUMENT = PLAIN.compress(
    TEXT, ratio=2, settings=CompressSettings(protect=("tables", "numbers"), exact=True)
)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


# --- literals -----------------------------------------------------------------------------------


@QUICK
@given(damaged(DOCUMENT.to_bytes()[:-8]))
def test_literals_with_a_forged_checksum_are_a_document_or_refused(body: bytes) -> None:
    read_or_refuse(type(DOCUMENT).from_bytes, body + hashlib.sha256(body).digest()[:8])


@QUICK
@given(paths, values)
def test_json_with_a_literal_replaced_is_a_document_or_refused(path: list[int], value: Any) -> None:
    table = DOCUMENT.to_dict()
    at = next(i for i, span in enumerate(table["spans"]) if "literals" in span)
    table["spans"][at] = replaced(table["spans"][at], path, value)
    read_or_refuse(type(DOCUMENT).from_dict, table)


@QUICK
@given(st.text(max_size=20), st.integers(0, 9), st.integers(0, 9))
def test_a_forged_literal_gives_its_text_or_is_refused(text: str, start: int, char: int) -> None:
    table = DOCUMENT.to_dict()
    at = next(i for i, span in enumerate(table["spans"]) if "literals" in span)
    table["spans"][at]["literals"] = [[start, start + 1, char, text]]
    with suppress(CorruptSpanError):
        found = type(DOCUMENT).from_dict(table)
        assert text in "".join(part for part in found.parts if isinstance(part, str))


# --- files of users -----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_on_standard_input_are_read_or_refused_in_one_line(
    run: Any,  # noqa: F811
    data: bytes,
) -> None:
    for arguments in (
        ["compress", "-"],
        ["compress", "-", "--jsonl", "text"],
        ["compress", "-", "--output", "text"],
        ["decompress", "-"],
        ["ask", "Who?", "--spans", "-"],
    ):
        found = run(*arguments, stdin=data)
        assert found.exit_code in (0, 1)
        assert "Traceback" not in found.stderr
        assert "a bug" not in found.stderr
        assert found.exit_code == 0 or found.stderr.count("\n") == 1


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(values.map(json.dumps) | st.text(max_size=9), max_size=3).map("\n".join))
def test_any_lines_are_json_with_the_field_or_refused(run: Any, lines: str) -> None:  # noqa: F811
    data = lines.encode("utf-8", "replace")
    found = run("compress", "-", "--jsonl", "a", stdin=data)
    assert found.exit_code in (0, 1)
    assert "a bug" not in found.stderr


@QUICK
@given(
    name=st.sampled_from(["a.txt", "a.md", "a.jsonl", "a.jsonl.gz"]),
    data=st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()),
)
def test_any_file_of_a_corpus_is_texts_or_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with suppress(ConfigError):
        assert all(isinstance(text, str) for text in read_texts(tmp_path / name))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_corpus_that_is_not_utf8_is_named_with_a_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(ConfigError, match=rf"{name}.*iconv"):
        list(read_texts(tmp_path / name))


def test_bytes_instead_of_text_are_refused_with_a_remedy() -> None:
    from zcontext.errors import VocabularyError

    for data in (b"", b"text", None, 7):
        with pytest.raises(VocabularyError, match="decode bytes first"):
            PLAIN.compress(data)  # type: ignore[arg-type]


# --- weights ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import tiny_z

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    save_bundle(tiny_z(), folder)
    return folder


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=paths,
    value=values | st.integers(-(2**63), 2**63),
    length=st.none() | st.integers(0, 2**64 - 1),
)
def test_a_safetensors_header_with_a_part_replaced_loads_or_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, path: list[int], value: Any, length: int | None
) -> None:
    from tiny import tiny_base

    monkeypatch.setattr("zcontext.bundle.load_base", lambda *a, **k: tiny_base())
    file, manifest = bundle / "codebook.safetensors", (bundle / MANIFEST).read_text("utf-8")
    before = file.read_bytes()
    n = struct.unpack("<Q", before[:8])[0]
    header = json.dumps(replaced(json.loads(before[8 : 8 + n]), path, value)).encode()
    forged = struct.pack("<Q", len(header) if length is None else length) + header + before[8 + n :]
    table = json.loads(manifest)
    table["parts"]["codebook"] = {
        "sha256": hashlib.sha256(forged).hexdigest(),
        "n_bytes": len(forged),
    }
    try:
        file.write_bytes(forged)
        (bundle / MANIFEST).write_text(json.dumps(table), "utf-8")
        with suppress(BundleError):
            load_bundle(bundle)
    finally:
        file.write_bytes(before)
        (bundle / MANIFEST).write_text(manifest, "utf-8")


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path.read_bytes()


@pytest.mark.parametrize(("kind", "number"), [(4, 2**24), (5, 2**30), (10, 2**40 + 2), (11, -1)])
def test_a_gguf_file_that_claims_layers_it_has_not_is_refused_at_once(
    gguf_bytes: bytes, tmp_path: Path, kind: int, number: int
) -> None:
    """A damaged count once had transformers build layers until memory was full."""
    at = gguf_bytes.index(b".block_count") + len(b".block_count")
    width = 8 if kind > 5 else 4
    told = kind.to_bytes(4, "little") + (number % 2 ** (8 * width)).to_bytes(width, "little")
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes[:at] + told + gguf_bytes[at + 4 + width :])
    with pytest.raises(UnsupportedBaseError, match="it is damaged"):
        gguf._convert(path, tmp_path)


@pytest.mark.filterwarnings("ignore")  # numpy's, on numbers that no file should have
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    edits=st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=4)), max_size=3)
)
def test_a_damaged_gguf_file_is_a_base_or_refused(
    gguf_bytes: bytes, tmp_path: Path, edits: list[tuple[int, bytes]]
) -> None:
    data = bytearray(gguf_bytes)
    for place, put_in in edits:
        data[place : place + len(put_in)] = put_in
    path = tmp_path / "tiny.gguf"
    path.write_bytes(bytes(data))
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    with suppress(UnsupportedBaseError):
        gguf._convert(path, out)
