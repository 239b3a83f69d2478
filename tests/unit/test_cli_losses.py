"""What `compress` says of what was lost, gives readers instead, and refuses as too long."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from test_cli import codec, run  # noqa: F401 - fixtures
from typer.testing import Result

from zcontext.cli.losses import Losses, named, parts_for_readers
from zcontext.config import CompressSettings
from zcontext.documents import ZDocument
from zcontext.spans import Fidelity
from zcontext.testing import ByteCodec

Run = Callable[..., Result]
TEXT = (
    "The harbour opened in 1912. Its keeper was Anna Lindqvist, and all went well for years.\n\n"
    "| a | b |\n|---|---|\n| 1 | x |\n\nThen it closed, and nobody in the town could say why."
)


class PoorCodec(ByteCodec):
    """Bytes whose every second span is said to read back badly."""

    def compress_many(self, texts: Any, **options: Any) -> list[ZDocument]:
        found = []
        for document in super().compress_many(texts, **options):
            spans = tuple(
                dataclasses.replace(span, fidelity=Fidelity(1.0 - at % 2, 0.0, ("1912",)))
                for at, span in enumerate(document.spans)
            )
            found.append(dataclasses.replace(document, spans=spans))
        return found


@pytest.fixture
def poor(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:  # noqa: F811
    import test_cli

    made = PoorCodec()
    monkeypatch.setattr(
        "zcontext.cli.engines.open_engines", lambda *options: test_cli.FakeEngines(made)
    )
    return run


@pytest.mark.parametrize(("policy", "told"), [("keep", "kept"), ("raw", "to be read as text")])
def test_what_symbols_lose_is_said(poor: Run, policy: str, told: str) -> None:
    arguments = ["--min-fidelity", "0.9", "--on-low-fidelity", policy, "--window", "32"]
    found = poor("compress", "-", *arguments, stdin=TEXT)
    assert found.exit_code == 0, found.output
    document = ZDocument.from_dict(json.loads(found.stdout)["document"])
    n_low = len(document.spans) // 2
    assert f"{n_low} of {len(document.spans)} windows below 0.9, {told}" in found.stderr
    assert "1 numbers, names, addresses and pieces of code lost: 1912" in found.stderr


def test_nothing_is_said_where_nothing_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    codec = ByteCodec()  # noqa: F811
    bare = codec.compress(TEXT)
    spans = tuple(dataclasses.replace(span, fidelity=None) for span in bare.spans)
    tally = Losses()
    tally.add(dataclasses.replace(bare, spans=spans))
    tally.tell()
    assert capsys.readouterr().err == ""
    assert named(map(str, range(12))).endswith("7, ...")


@pytest.mark.parametrize("protect", [(), ("--protect", "tables")])
def test_raw_windows_are_text_in_the_written_form(poor: Run, protect: tuple[str, ...]) -> None:
    low = ["--min-fidelity", "0.9", "--window", "32", "--format", "symbols", *protect]
    raw = poor("compress", "-", *low, "--on-low-fidelity", "raw", stdin=TEXT).stdout
    kept = poor("compress", "-", *low, stdin=TEXT).stdout
    made = PoorCodec()
    chosen = CompressSettings(
        ratio=4, window=32, min_fidelity=0.9, protect=("tables",) if protect else ()
    )
    document = made.compress_many([TEXT], settings=chosen)[0]
    for span in document.spans[1::2]:
        words = TEXT[span.chars.start : span.chars.end].split()
        assert " ".join(words) in " ".join(raw.split())
        assert span.is_literal or " ".join(words) not in " ".join(kept.split())
    assert ("| 1 | x |" in kept) == bool(protect)
    assert parts_for_readers(document, TEXT, floor=0.0) == document.parts


@pytest.mark.parametrize("arguments", [[], ["--output", "text"]])
def test_a_text_over_max_tokens_is_refused_in_one_line(
    run: Run,  # noqa: F811
    arguments: list[str],
) -> None:
    found = run("compress", "-", "--max-tokens", "20", *arguments, stdin="x" * 21)
    assert (found.exit_code, found.stdout) == (1, "")
    assert "max_tokens" in found.stderr
    assert found.stderr.count("\n") == 1
    assert run("compress", "-", "--max-tokens", "21", *arguments, stdin="x" * 21).exit_code == 0
    assert "max_tokens" in run("compress", "-", "--max-tokens", "0", stdin="x").stderr


def test_the_limit_is_five_million_unless_told_otherwise(
    run: Run,  # noqa: F811
    codec: ByteCodec,  # noqa: F811
) -> None:
    assert run("compress", "-", stdin="x").exit_code == 0
    assert codec.calls[-1].settings.max_tokens == 5_000_000  # type: ignore[union-attr]
