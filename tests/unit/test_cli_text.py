"""`compress --output text`, `--protect`, and the sizes that `--exact` tells."""

from __future__ import annotations

import json

import pytest
from test_cli import codec, run  # noqa: F401 - fixtures

from zcontext.spans import ZDocument

TABLE = "| a | b |\n|---|---|\n| 1 | x |\n"
TEXT = f"The harbour opened in 1912. Its keeper was Anna Lindqvist.\n\n{TABLE}\nIt closed again.\n"


@pytest.fixture
def call(run, tmp_path):  # noqa: F811
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    return run


def test_text_is_written_as_it_is_and_the_loss_told(call) -> None:
    found = call("compress", "a.txt", "--output", "text", "--ratio", "2")
    assert 0 < len(found.stdout_bytes) <= len(TEXT) / 2 + 1
    assert "% of the surprisal" in found.stderr
    (row,) = map(
        json.loads,
        call(
            "compress", "a.txt", "--output", "text", "--ratio", "2", "--format", "json"
        ).stdout.splitlines(),
    )
    assert row["text"] == found.stdout
    assert set(row) == {"source", "n_tokens", "n_kept", "ratio", "share_kept", "lost", "text"}
    two = call("compress", "a.txt", "b.txt", "--output", "text", "--ratio", "9").stdout
    assert two == (call("compress", "a.txt", "--output", "text", "--ratio", "9").stdout + "\n") * 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--output", "words"], "symbols or text"),
        (["--output", "text", "--format", "compact"], "text or json"),
        (["--protect", "table"], "protect"),
    ],
)
def test_wrong_options_are_one_line(call, options: list[str], told: str) -> None:
    found = call("compress", "a.txt", *options)
    assert found.exit_code == 1
    assert told in found.stderr


def test_protected_text_is_kept_and_read_back(call) -> None:
    packed = call(
        "compress", "a.txt", "--protect", "tables", "--protect", "re:Anna", "--exact", "-r", "2"
    )
    row = json.loads(packed.stdout)
    document = ZDocument.from_dict(row["document"])
    assert [p for p in document.parts if isinstance(p, str)] == [" Anna", TABLE]
    assert row["n_positions"] == document.n_positions
    assert call("decompress", "-", stdin=packed.stdout).stdout == TEXT
    assert call("ask", "Who?", "--spans", "-", stdin=packed.stdout).exit_code == 0
    spelled = call("compress", "a.txt", "--protect", "tables", "--format", "symbols")
    assert TABLE in spelled.stdout
    both = call("compress", "a.txt", "b.txt", "--protect", "tables", "--format", "symbols")
    assert "json or compact" in both.stderr


def test_exact_tells_the_bits_beside_gzip_zstd_and_the_model(call) -> None:
    found = call("compress", "a.txt", "--exact")
    row = json.loads(found.stdout)
    assert row["total_bits"] == row["bits"] + row["errata_bits"]
    assert row["model_bits"] == 8 * len(TEXT)
    assert row["gzip_bits"] > 0
    assert "of errata); as a multiple of UTF-8" in found.stderr
    assert json.loads(call("compress", "a.txt").stdout)["model_bits"] is None
