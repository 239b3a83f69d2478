"""The guide's snippets and the example run; the diff joins two pipelines that work."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings
from llamaindex_parts import arrived, compressions

from zcontext.testing import ByteCodec

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "llamaindex.md"
EXAMPLE = ROOT / "examples" / "llamaindex_query_engine.py"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(GUIDE.read_text(encoding="utf-8"))


def side(diff: str, mark: str) -> str:
    """One side of a diff: "-" is what was there before, "+" is what is there after."""
    other = "+" if mark == "-" else "-"
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith(other))


def run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, str(GUIDE), "exec"), names)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder that looks like a checkout, and settings that are put back."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "documents").symlink_to(ROOT / "examples" / "documents")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Settings, "_prompt_helper", None)
    yield tmp_path
    Settings._prompt_helper = None


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
def test_the_guides_snippets_run_in_order(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for language, code in blocks():
        if language == "python":
            run(code, names)
        elif language == "diff":
            run(side(code, "+"), names)
            assert "symbols" not in str(names["response"])
    names["store"].client.close()
    model: ByteCodec = names["model"]
    assert arrived(model)
    printed = capsys.readouterr().out
    assert "compressed" in printed
    assert (place / "pipeline" / "llama_cache").exists()


def test_the_diff_starts_from_a_pipeline_that_works(place: Path) -> None:
    found = blocks()
    [diff] = [code for language, code in found if language == "diff"]
    names: dict[str, Any] = {}
    run(next(code for language, code in found if language == "python"), names)
    run(side(diff, "-"), names)
    assert not arrived(names["model"])
    assert compressions(names["model"]) == 0
    run(side(diff, "+"), names)
    assert arrived(names["model"])
    added = [line for line in diff.splitlines() if line.startswith("+")]
    assert len(added) <= 8


def test_the_guide_names_what_exists() -> None:
    import zcontext.integrations.exchange as exchange
    import zcontext.integrations.llamaindex as door
    from zcontext import errors

    text = GUIDE.read_text(encoding="utf-8")
    known = {**vars(exchange), **vars(door), **vars(errors)}
    named = set(re.findall(r"`(ZContext\w+|\w+Warning|\w+Error)`", text))
    assert named <= set(known)
    for name in door.__all__:
        assert name in text
    keys = {key.removeprefix(exchange.PREFIX) for key in exchange.KEYS}
    table = text[text.index("| key (") : text.index("The docstore keeps")]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == keys


def test_the_example_answers_and_stays_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 60
    monkeypatch.setattr(sys, "path", [str(EXAMPLE.parent), *sys.path])
    model = ByteCodec(context_length=16_000)
    runpy.run_path(str(EXAMPLE))["main"]("How long is the river?", model)
    printed = capsys.readouterr().out
    assert re.search(r"[\d,]+ tokens read as [\d,]+ positions, [\d.]+ s, from .*\.txt", printed)
    assert arrived(model)
