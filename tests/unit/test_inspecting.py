"""`zcontext inspect`: --codes and --overlap on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from zcontext.cli import app, engines
from zcontext.compressor import ZCompressor
from zcontext.model import ZLanguageModel

PAIRS = [{"a": "a cat sat", "b": "the cat was sitting"}, {"a": "hello you", "b": "hi there"}]


@pytest.fixture
def run(
    tiny_model: ZLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    made = SimpleNamespace(
        model=tiny_model,
        vocabulary=tiny_model.vocabulary,
        compressor=lambda: ZCompressor(tiny_model),
    )
    monkeypatch.setattr(engines, "open_engines", lambda *options: made)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notes" / "more"
    folder.mkdir(parents=True)
    (folder / "b.md").write_text("A river runs to the sea. ")
    (folder.parent / "a.txt").write_text("The harbour opened in 1912. ")
    (folder.parent / "picture.png").write_bytes(b"\xff\xfe")
    rows = "".join(json.dumps(pair) + "\n" for pair in PAIRS)
    (tmp_path / "pairs.jsonl").write_text(rows)

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, ["inspect", *arguments], input=stdin)

    return invoke


def test_codes_of_a_folder_are_told_in_a_table_a_page_and_json(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    few = ["--n-codes", "2", "--n-contexts", "1"]
    wanted = ["--pairs", "pairs.jsonl", "--html", "codes.html", "--out", "codes.json"]
    found = run("notes", "--codes", "--ratio", "2", *few, *wanted)
    assert found.exit_code == 0, found.output
    assert "contextual consistency" in found.stdout
    assert "codes shared by paraphrases" in found.stdout
    figures = json.loads((tmp_path / "codes.json").read_text())
    assert (figures["n_texts"], len(figures["codes"])) == (2, 2)
    assert figures["paraphrases"]["codes"]["n"] == 2
    assert "What the codes mean in notes" in (tmp_path / "codes.html").read_text()


def test_codes_of_standard_input_need_no_pairs(run: Callable[..., Result]) -> None:
    found = run("-", "--codes", "--n-codes", "0", "--max-tokens", "30", stdin="It is so. " * 9)
    assert found.exit_code == 0, found.output
    assert "paraphrases" not in found.stdout


def test_overlaps_are_told_in_a_table_and_json(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("A river runs to the sea, it is said. " * 3)
    found = run("long.txt", "--overlap", "--window", "64", "--stride", "32", "--out", "o.json")
    assert found.exit_code == 0, found.output
    assert "segments end alike" in found.stdout
    figures = json.loads((tmp_path / "o.json").read_text())
    assert (figures["stride"], figures["placement"]) == (32, "surprisal")


def test_overlaps_are_placed_as_asked(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("A river runs to the sea, it is said. " * 3)
    arguments = ["long.txt", "--overlap", "--window", "64", "--stride", "32", "--out", "o.json"]
    found = run(*arguments, "--placement", "anchored")
    assert found.exit_code == 0, found.output
    assert json.loads((tmp_path / "o.json").read_text())["placement"] == "anchored"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["notes/a.txt", "--codes", "--overlap"], "not both"),
        (["notes/a.txt", "--overlap"], "two windows of 1024 need more"),
        (["notes/a.txt", "--overlap", "--stride", "0"], "stride"),
        (["notes/a.txt", "--overlap", "--placement", "even"], "one of surprisal, anchored"),
        (["pairs", "--codes"], "No such file"),
        (["empty", "--codes"], "holds no file"),
        (["notes/a.txt", "--codes", "--pairs", "notes/a.txt"], "line 1"),
        (["notes/a.txt", "--codes", "--n-codes", "-1"], "n_codes"),
    ],
)
def test_wrong_input_is_one_line(
    run: Callable[..., Result], tmp_path: Path, arguments: list[str], told: str
) -> None:
    (tmp_path / "empty").mkdir()
    found = run(*arguments)
    assert found.exit_code == 1
    assert told in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
