from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from zcontext.cli import app, engines, files
from zcontext.config import CompressSettings
from zcontext.errors import StoreError
from zcontext.spans import ZDocument
from zcontext.testing import ByteCall, ByteCodec

TEXT = "The harbour opened in 1912.\r\nIts keeper was Anna Lindqvist \u2013 \u6e2f \U0001f6a2.\n"
COMMANDS = [
    ["compress"],
    ["decompress"],
    ["ask"],
    ["inspect"],
    ["prepare"],
    ["questions"],
    ["instructions"],
    ["train"],
    ["eval", "reconstruct"],
    ["eval", "qa"],
    ["eval", "report"],
    ["bundle", "show"],
    ["bundle", "verify"],
]


class FakeEngines:
    """One ByteCodec wherever a model would be."""

    def __init__(self, codec: ByteCodec) -> None:
        self.codec = codec
        self.vocabulary = codec.vocabulary
        self.model = SimpleNamespace(base=SimpleNamespace(name="bytes"))

    def token_starts(self, text: str) -> list[int]:
        return [at for at, char in enumerate(text) for _ in char.encode()]

    def compressor(self, *, store: Path | None = None) -> ByteCodec:
        return self.codec

    def pruner(self) -> ByteCodec:
        return self.codec

    def token_bits(self, text: str) -> list[float]:
        return [8.0] * len(text.encode())

    def decompressor(self, *, batch_size: int = 8) -> ByteCodec:
        return self.codec

    def reader(self, *, unknown_bias: float = 0.0) -> ByteCodec:
        return self.codec

    def judge(self) -> Any:
        from test_evaluation import ByteJudge

        return ByteJudge()


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> ByteCodec:
    made = ByteCodec()
    monkeypatch.setattr(engines, "open_engines", lambda *options: FakeEngines(made))
    return made


@pytest.fixture
def run(codec: ByteCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    (tmp_path / "b.txt").write_text("Another text, with 42 in it.")

    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return invoke


# -- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_shows_an_example_that_its_own_parser_knows(command: list[str]) -> None:
    found = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert found.exit_code == 0
    assert f"zcontext {' '.join(command)}" in found.output.partition("Example:")[2]


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = "import sys, zcontext.cli; print([m for m in sys.modules if m in %r])"
    heavy = ("torch", "transformers", "numpy", "peft", "bitsandbytes")
    found = subprocess.run(
        [sys.executable, "-c", code % (heavy,)],
        capture_output=True,
        text=True,
        check=True,
        env=_environment(),
    )
    assert found.stdout.strip() == "[]"


def test_the_version_is_that_of_the_package() -> None:
    from zcontext import __version__

    assert CliRunner().invoke(app, ["--version"]).output == f"zcontext {__version__}\n"


# -- compress and decompress --------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["json", "compact"])
@pytest.mark.parametrize("ratio", ["1", "4", "16"])
def test_a_text_comes_back_byte_for_byte(
    run: Callable[..., Result], shape: str, ratio: str
) -> None:
    packed = run("compress", "a.txt", "--format", shape, "--ratio", ratio)
    assert packed.exit_code == 0, packed.output
    assert run("decompress", "-", stdin=packed.stdout).stdout_bytes == TEXT.encode()


def test_the_written_form_comes_back_where_it_holds_everything(run: Callable[..., Result]) -> None:
    written = run("compress", "a.txt", "--format", "symbols").stdout
    assert written.startswith("[|z")
    assert written.count("\n") == 1
    assert run("decompress", "-", stdin=written).stdout_bytes == TEXT.encode()


def test_every_text_is_one_json_line_that_says_where_it_came_from(
    run: Callable[..., Result],
) -> None:
    rows = [json.loads(line) for line in run("compress", "a.txt", "b.txt").stdout.splitlines()]
    assert [row["source"] for row in rows] == ["a.txt", "b.txt"]
    for row in rows:
        document = ZDocument.from_dict(row["document"])
        assert (row["n_tokens"], row["n_symbols"]) == (document.n_tokens, document.n_symbols)


def test_exact_texts_are_counted_in_bits_and_said_to_be_exact(run: Callable[..., Result]) -> None:
    packed = run("compress", "a.txt", "--exact", "--ratio", "16")
    row = json.loads(packed.stdout)
    assert row["exact"]
    assert row["total_bits"] == row["bits"] + row["errata_bits"]
    assert row["utf8_bits"] == 8 * len(TEXT.encode())
    assert row["gzip_bits"] > 0
    back = run("decompress", "-", stdin=packed.stdout)
    assert (back.stdout_bytes, "1 of 1 exact" in back.stderr) == (TEXT.encode(), True)
    told = json.loads(run("decompress", "-", "--json", stdin=packed.stdout).stdout)
    assert told["exact"]
    document = ZDocument.from_dict(row["document"])
    spans = (dataclasses.replace(span, errata=b"") for span in document.spans)
    without = dataclasses.replace(document, spans=tuple(spans))
    inexact = json.dumps({**row, "document": without.to_dict()})
    plain = run("compress", "a.txt", "--ratio", "1").stdout  # the codes alone say all
    for packed_text, n_exact in ((plain, 1), (inexact, 0)):
        assert f"{n_exact} of 1 exact" in run("decompress", "-", stdin=packed_text).stderr
        told = json.loads(run("decompress", "-", "--json", stdin=packed_text).stdout)
        assert told["exact"] == (told["text"] == TEXT) == bool(n_exact)
    bare = run("compress", "a.txt", "--ratio", "1", "--format", "symbols").stdout
    assert "0 of 1 exact" in run("decompress", "-", stdin=bare).stderr
    assert "errata bits" in run("inspect", "a.txt", "--exact", "--ratio", "16").stdout


def test_a_profile_is_a_start_that_other_options_change(
    run: Callable[..., Result], codec: ByteCodec
) -> None:
    run("compress", "a.txt", "--profile", "legal", "--min-fidelity", "0.5")
    settings = codec.calls[-1].settings
    assert isinstance(settings, CompressSettings)
    assert (settings.ratio, settings.exact, settings.min_fidelity) == (2.0, True, 0.5)
    assert "legal, default, summary" in run("compress", "a.txt", "--profile", "x").stderr


def test_several_texts_come_back_one_after_the_other(run: Callable[..., Result]) -> None:
    packed = run("compress", "a.txt", "b.txt").stdout
    assert run("decompress", "-", stdin=packed).stdout_bytes.decode() == (
        TEXT + "\nAnother text, with 42 in it.\n"
    )
    rows = run("decompress", "-", "--json", stdin=packed).stdout.splitlines()
    assert [json.loads(row)["text"] for row in rows] == [TEXT, "Another text, with 42 in it."]


def test_rows_of_json_lines_are_texts(run: Callable[..., Result], codec: ByteCodec) -> None:
    rows = "".join(json.dumps({"body": f"text {k}\u2028"}) + "\n" for k in range(20))
    found = run("compress", "-", "--jsonl", "body", stdin=rows)
    assert [json.loads(line)["source"] for line in found.stdout.splitlines()] == [
        f"-:{k}" for k in range(1, 21)
    ]
    texts = [text for call in codec.calls for text in call.texts]
    assert texts == [f"text {k}\u2028" for k in range(20)]


def test_settings_reach_the_compressor(run: Callable[..., Result], codec: ByteCodec) -> None:
    arguments = ["--max-symbols", "3", "--depth", "2", "--window", "64", "--context", "8"]
    assert run("compress", "a.txt", *arguments).exit_code == 0
    settings = codec.calls[0].settings
    assert settings is not None
    assert settings.max_symbols == 3  # type: ignore[union-attr]
    assert (settings.depth, settings.window, settings.context) == (2, 64, 8)  # type: ignore[union-attr]


def test_an_empty_text_is_an_empty_document(run: Callable[..., Result]) -> None:
    (found,) = map(json.loads, run("compress", "-", stdin="").stdout.splitlines())
    assert (found["n_tokens"], found["n_symbols"], found["ratio"]) == (0, 0, None)
    packed = json.dumps(found)
    assert run("decompress", "-", stdin=packed).stdout == ""


def test_no_line_is_no_document(run: Callable[..., Result]) -> None:
    found = run("decompress", "-", stdin="\n\n")
    assert (found.exit_code, found.stdout) == (0, "")


# -- output files -------------------------------------------------------------------------------


def test_a_result_file_is_written_whole_and_nothing_else_is_left(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    assert run("compress", "a.txt", "--out", "new/spans.jsonl").exit_code == 0
    assert [child.name for child in (tmp_path / "new").iterdir()] == ["spans.jsonl"]
    assert run("decompress", "new/spans.jsonl", "-o", "back.txt").exit_code == 0
    assert (tmp_path / "back.txt").read_bytes() == TEXT.encode()


def test_a_failure_leaves_the_old_result_as_it_was(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.jsonl").write_text("old")
    before = sorted(child.name for child in tmp_path.iterdir())

    def full(*arguments: object, **keywords: object) -> list[ZDocument]:
        raise StoreError("no space left")

    monkeypatch.setattr(ByteCodec, "compress_many", full)
    found = run("compress", "a.txt", "--out", "out.jsonl")
    assert (found.exit_code, found.stderr) == (1, "zcontext: no space left\n")
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert sorted(child.name for child in tmp_path.iterdir()) == before


def test_a_full_disk_is_one_line(run: Callable[..., Result]) -> None:
    found = run("compress", "a.txt", "--out", "/dev/full")
    assert found.exit_code == 1
    assert found.stderr == "zcontext: No space left on device\n"


def test_a_folder_is_no_place_for_a_result(run: Callable[..., Result], tmp_path: Path) -> None:
    found = run("compress", "a.txt", "--out", str(tmp_path))
    assert found.exit_code == 1
    assert "is a folder" in found.stderr


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "missing.txt"], "missing.txt: No such file or directory"),
        (["compress", "a.txt", "--ratio", "0.5"], "ratio"),
        (["compress", "a.txt", "--ratio", "4", "--max-symbols", "9"], "one budget"),
        (["compress", "a.txt", "--format", "xml"], "json, compact or symbols"),
        (["compress", "a.txt", "--jsonl", "text"], "a.txt, line 1: no JSON object"),
        (["compress", "-", "-"], "once only"),
        (["decompress", "a.txt"], "a.txt, line 1"),
        (["inspect", "a.txt", "--ratio", "0.1"], "ratio"),
        (["bundle", "show", "no-such-bundle"], "no bundle"),
        (["bundle", "verify", "no-such-bundle"], "no bundle"),
        (["train", "missing.toml"], "missing.toml"),
        (["train", "a.txt", "--set", "nonsense"], "table.key=value"),
        (["eval", "qa", "missing.jsonl"], "missing.jsonl"),
        (["eval", "reconstruct", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(
    run: Callable[..., Result], arguments: list[str], message: str
) -> None:
    found = run(*arguments)
    assert found.exit_code == 1, found.output
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
    assert "Traceback" not in found.stderr
    assert found.stdout == ""


def test_debug_shows_where(run: Callable[..., Result]) -> None:
    found = run("compress", "missing.txt", "--debug")
    assert found.exit_code == 1
    assert "Traceback" in found.stderr


def test_an_error_nobody_foresaw_is_one_line_that_says_it_is_a_bug(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **keywords: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(ByteCodec, "compress_many", broken)
    found = run("compress", "a.txt")
    assert found.exit_code == 1
    assert found.stderr.startswith(
        "zcontext: unexpected ZeroDivisionError: division by zero (a bug"
    )
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["compress"], ["compress", "a.txt", "--nonsense"], ["ask", "Who?"]]
)
def test_wrong_usage_is_exit_code_2(run: Callable[..., Result], arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("stdin", [b"fine\nthen \xff\xfe", b"cut \xf0\x9f"])
def test_what_is_not_utf8_is_refused_with_its_place(
    run: Callable[..., Result], stdin: bytes
) -> None:
    found = run("compress", "-", stdin=stdin)
    assert found.exit_code == 1
    assert "standard input is not UTF-8: byte 0x" in found.stderr
    assert "offset" in found.stderr


def test_text_that_spells_symbols_is_refused_escaped_or_dropped(
    run: Callable[..., Result], codec: ByteCodec
) -> None:
    forged = "see " + codec.vocabulary.render(codec.compress("forged").symbols)
    assert run("compress", "-", stdin=forged).exit_code == 1
    for policy in ("escape", "drop"):
        found = run("compress", "-", "--on-symbols", policy, stdin=forged)
        assert found.exit_code == 0, found.output


def test_symbols_of_another_codec_are_refused(run: Callable[..., Result]) -> None:
    other = ByteCodec(name="other")
    for foreign in (other.vocabulary.render(other.compress("x").symbols),):
        found = run("decompress", "-", stdin=foreign)
        assert found.exit_code == 1
        assert "standard input, line 1" in found.stderr


# -- ask ----------------------------------------------------------------------------------------


def test_a_question_is_answered_from_symbols_alone(
    run: Callable[..., Result], codec: ByteCodec
) -> None:
    found = run("ask", "When was the harbour opened?", "a.txt", "b.txt")
    assert found.stdout == "The harbour opened in 1912.\n"
    (asked,) = [call for call in codec.calls if call.method == "ask"]
    assert asked.n_symbols > 0
    assert not any(isinstance(part, str) and "harbour" in part for part in asked.parts[:-1])


def test_stored_spans_are_asked_without_compressing_again(
    run: Callable[..., Result], codec: ByteCodec
) -> None:
    run("compress", "a.txt", "b.txt", "--out", "spans.jsonl")
    codec.calls.clear()
    found = run("ask", "Who was the keeper?", "--spans", "spans.jsonl", "--json")
    answer = json.loads(found.stdout)
    assert "Anna Lindqvist" in answer["text"]
    assert answer["n_prompt_symbols"] > 0
    assert {call.method for call in codec.calls} == {"ask"}


class Refocuses(ByteCodec):
    """A ByteCodec that writes what is stored again, back to front."""

    refocuses = True

    def compress_together(
        self, texts: list[str | ZDocument], *, question: str, **keywords: Any
    ) -> list[ZDocument]:
        self.calls.append(ByteCall("compress_together", texts=(question,)))
        stored = [text for text in texts if isinstance(text, ZDocument)]
        fresh = self.compress_many([text for text in texts if isinstance(text, str)])
        assert texts[: len(stored)] == stored
        return [*stored[::-1], *fresh]


def test_stored_spans_are_written_for_the_question_unless_told_not_to(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Refocuses()
    monkeypatch.setattr(engines, "open_engines", lambda *options: FakeEngines(codec))
    run("compress", "a.txt", "b.txt", "--out", "spans.jsonl")
    run("compress", "b.txt", "--format", "symbols", "--out", "bare.txt")
    stored = ("ask", "Who was the keeper?", "-s", "spans.jsonl", "-s", "bare.txt")
    shown = []
    for more in ((), ("--any-question",)):
        codec.calls.clear()
        found = run(*stored, *more)
        assert found.exit_code == 0, found.output
        (asked,) = [call for call in codec.calls if call.method == "ask"]
        shown.append([part for part in asked.parts if not isinstance(part, str)])
        written = [call.texts for call in codec.calls if call.method == "compress_together"]
        assert written == ([] if more else [("Who was the keeper?",)])
    assert shown[0] == [shown[1][1], shown[1][0], shown[1][2]]
    codec.calls.clear()
    assert run("ask", "Who was the keeper?", "-s", "bare.txt").exit_code == 0
    assert {call.method for call in codec.calls} == {"ask"}


@pytest.mark.parametrize("more", [(), ("--store", "kept.sqlite")])
def test_texts_are_written_for_the_question(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    codec = Refocuses()
    monkeypatch.setattr(engines, "open_engines", lambda *options: FakeEngines(codec))
    run("compress", "b.txt", "--out", "spans.jsonl")
    codec.calls.clear()
    found = run("ask", "Who was the keeper?", "a.txt", "-s", "spans.jsonl", *more)
    assert found.exit_code == 0, found.output
    methods = [call.method for call in codec.calls]
    assert methods.count("compress_together") == 1
    (asked,) = [call for call in codec.calls if call.method == "ask"]
    assert len([part for part in asked.parts if not isinstance(part, str)]) == 2
    codec.calls.clear()
    assert run("ask", "Who was the keeper?", "a.txt", "--any-question").exit_code == 0
    assert "compress_together" not in {call.method for call in codec.calls}


def test_raw_texts_are_asked_as_they_are(run: Callable[..., Result], codec: ByteCodec) -> None:
    answer = json.loads(run("ask", "When did the harbour open?", "a.txt", "--raw", "--json").stdout)
    assert answer["n_prompt_symbols"] == 0


def test_an_empty_context_is_refused(run: Callable[..., Result]) -> None:
    found = run("ask", "Who?", "-", stdin="")
    assert found.exit_code == 1
    assert "nothing to answer from" in found.stderr


# -- the rest -----------------------------------------------------------------------------------


def test_inspect_shows_the_text_and_writes_the_page(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    found = run("inspect", "a.txt", "--ratio", "2", "--html", "page.html")
    assert found.exit_code == 0, found.output
    assert "The harbour opened in 1912." in found.stdout
    assert "Anna Lindqvist" in (tmp_path / "page.html").read_text()


def test_reconstruction_prints_a_table_and_writes_the_figures(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    from test_evaluation import texts

    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts(9))
    (tmp_path / "dev.jsonl").write_text(rows)
    found = run(
        "eval",
        "reconstruct",
        "dev.jsonl",
        "-r",
        "4",
        "--window",
        "24",
        "--limit",
        "6",
        "--out",
        "report.json",
    )
    assert found.exit_code == 0, found.output
    assert "share of the bound" in found.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["data"], report["n_windows"]) == (["dev.jsonl"], 6)


def test_questions_print_a_table_and_write_the_figures(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    rows = [{"context": TEXT, "question": f"{k} harbour?", "answers": ["1912"]} for k in range(3)]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("eval", "qa", "qa.jsonl", "--predictions", "p.jsonl", "--out", "report.json")
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    assert "retention" in first.stdout
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 21
    assert json.loads((tmp_path / "report.json").read_text())["n_rows"] == 3


def test_train_hands_settings_over(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zcontext.training.run as module

    seen = []

    def fake(config: Any, *, on_log: Callable[[dict[str, float]], None]) -> dict[str, Any]:
        seen.append(config)
        on_log({"step": 1, "loss": 2.5})
        return {"steps": 1, "figures": {"h": 5.0}, "bundle": "b"}

    monkeypatch.setattr(module, "train", fake)
    (tmp_path / "run.toml").write_text('[run]\nstage = "autoencode"\nsteps = 5\n')
    found = run(
        "train",
        "run.toml",
        "--minutes",
        "1.5",
        "--set",
        "run.seed=7",
        "--set",
        "run.out=runs/x",
        "--set",
        "data.shards=['a', 'b']",
    )
    assert found.exit_code == 0, found.output
    (config,) = seen
    assert (config.run.seed, config.run.out, config.run.minutes) == (7, "runs/x", 1.5)
    assert (config.data.shards, config.run.steps) == (("a", "b"), 5)
    assert "loss" in found.stderr


def test_prepare_writes_shards(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zcontext.loading as loading
    from tiny import tiny_base
    from zcontext.training.data import Corpus

    monkeypatch.setattr(loading, "load_base", lambda *a, **k: tiny_base())
    for flag, whole in (("--surprisal", True), ("--no-surprisal", False)):
        found = run("prepare", "a.txt", "b.txt", "--out", f"shards{flag}", flag)
        assert found.exit_code == 0, found.output
        corpus = Corpus.load([tmp_path / f"shards{flag}"])
        n_bytes = len(TEXT.replace("\r\n", "\n").encode()) + len("Another text, with 42 in it.")
        assert corpus.n_tokens == n_bytes
        assert (corpus.surprisal is not None) is whole


HARBOUR = (
    "The harbour of Ljosvik opened on 4 May 1912. Its keeper, Anna Lindqvist, counted 317 ships "
    "before the end of that summer. In the winter of 1923 a storm sank most of the fishing fleet "
    "near Grimsey, and the council had the old pier raised by two metres.\n"
)


@pytest.mark.parametrize("name", ["q.jsonl", "deep/q.jsonl.gz"])
def test_questions_are_made_of_a_corpus_and_read_by_the_training(
    run: Callable[..., Result], tmp_path: Path, name: str
) -> None:
    from zcontext.training.questions import read_questions

    (tmp_path / "harbour.txt").write_text(HARBOUR)
    found = run("questions", "harbour.txt", "--out", name, "--most", "2")
    assert found.exit_code == 0, found.output
    assert "2 questions about 1 passages" in found.stderr
    rows = read_questions([tmp_path / name])
    assert [row.context for row in rows] == [HARBOUR.strip()] * 2
    assert all(row.answer in HARBOUR for row in rows)
    first = (tmp_path / name).read_bytes()
    run("questions", "harbour.txt", "--out", name, "--most", "2")
    assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["b.txt"], "there is nothing to ask: give prose"),
        (["a.txt", "--teacher", "x"], "judges the questions of a --writer"),
        (["nowhere.txt"], "nowhere.txt"),
    ],
)
def test_nothing_is_left_where_no_question_can_be_made(
    run: Callable[..., Result], tmp_path: Path, arguments: list[str], remedy: str
) -> None:
    found = run("questions", *arguments, "--out", "q.jsonl")
    assert found.exit_code == 1
    assert remedy in " ".join(found.stderr.split())
    assert not list(tmp_path.glob("*q.jsonl*"))


@pytest.mark.parametrize("summaries", ["0", "1"])
def test_instructions_are_made_of_a_corpus_and_read_by_the_training(
    run: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    summaries: str,
) -> None:
    import zcontext.loading as loading
    from tiny import tiny_base
    from zcontext.training.instructions import read_instructions

    monkeypatch.setattr(loading, "load_base", lambda *_, **__: tiny_base())
    (tmp_path / "harbour.txt").write_text(HARBOUR)
    arguments = ("harbour.txt", "--seed", "1", "--summaries", summaries)
    found = run("instructions", *arguments, "--out", "i.jsonl.gz")
    assert found.exit_code == 0, found.output
    assert "1 instructions written to i.jsonl.gz" in found.stderr
    [row] = read_instructions([tmp_path / "i.jsonl.gz"])
    assert row.contexts == (HARBOUR.strip(),)


def test_nothing_is_left_where_nothing_can_be_asked_for(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    found = run("instructions", "b.txt", "--out", "i.jsonl")
    assert found.exit_code == 1
    assert "there is nothing to instruct about: give prose" in " ".join(found.stderr.split())
    assert not list(tmp_path.glob("*i.jsonl*"))


@pytest.mark.parametrize("command", [["prepare", "--out", "shards"], ["eval", "reconstruct"]])
def test_a_corpus_that_is_not_utf8_is_refused_by_name(
    run: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    import zcontext.loading as loading
    from tiny import tiny_base

    monkeypatch.setattr(loading, "load_base", lambda *a, **k: tiny_base())
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 and more")
    found = run(*command, "bad.txt")
    assert found.exit_code == 1
    assert "bad.txt is not UTF-8" in found.stderr


def test_bundles_are_shown_and_verified(
    run: Callable[..., Result], tmp_path: Path, tiny_model: Any
) -> None:
    from zcontext.bundle import save_bundle

    save_bundle(
        tiny_model, tmp_path / "bundle", training={"stage": "autoencode", "figures": {"h": 5.0}}
    )
    shown = run("bundle", "show", "bundle")
    assert shown.exit_code == 0, shown.output
    assert tiny_model.codec in shown.stdout
    manifest = json.loads(run("bundle", "show", "bundle", "--json").stdout)
    assert manifest["codec"] == tiny_model.codec
    assert "are whole" in run("bundle", "verify", "bundle", "--load").stdout
    part = tmp_path / "bundle" / "codebook.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    altered = run("bundle", "verify", "bundle")
    assert altered.exit_code == 1
    assert "altered" in altered.stderr


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base and a bundle made for it."""
    from tiny import tiny_base
    from zcontext.bundle import save_bundle
    from zcontext.config import CodecConfig
    from zcontext.loading import load_base
    from zcontext.model import ZLanguageModel

    folder = tmp_path_factory.mktemp("real")
    base = tiny_base()
    base.model.save_pretrained(folder / "base")
    base.tokenizer.save_pretrained(folder / "base")
    config = CodecConfig(depth=2, size=32, writer_layers=2, lora_rank=4, lora_alpha=4)
    loaded = load_base(str(folder / "base"), quantization="none", device="cpu")
    save_bundle(ZLanguageModel.create(loaded, config), folder / "bundle")
    (folder / "a.txt").write_bytes(TEXT.encode())
    return folder


def test_the_whole_path_on_a_base_and_a_bundle_from_disk(
    on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(on_disk)
    options = ["--bundle", "bundle", "--quantization", "none", "--device", "cpu"]

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        found = CliRunner().invoke(app, [*arguments, *options], input=stdin)
        assert found.exit_code == 0, found.output
        return found

    store = str(tmp_path / "store.sqlite")
    packed = invoke("compress", "a.txt", "--ratio", "8", "--store", store).stdout
    again = invoke("compress", "a.txt", "--ratio", "8", "--store", store).stdout
    assert again == packed
    row = json.loads(packed)
    assert row["n_symbols"] == row["n_tokens"] // 8
    back = invoke("decompress", "-", "--json", stdin=packed).stdout
    assert json.loads(back)["source"] == "standard input, line 1"
    (tmp_path / "spans.jsonl").write_text(packed)
    asked = invoke(
        "ask", "Who?", "--spans", str(tmp_path / "spans.jsonl"), "--json", "--max-new-tokens", "2"
    )
    assert json.loads(asked.stdout)["n_prompt_symbols"] == row["n_symbols"]
    assert "harbour" in invoke("inspect", "a.txt", "--html", str(tmp_path / "page.html")).stdout
    assert (tmp_path / "page.html").is_file()


def test_the_demo_runs(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    demo = runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / "demo.py"))
    monkeypatch.chdir(on_disk)
    monkeypatch.setattr(
        sys,
        "argv",
        ["demo", "--document", "a.txt", "--bundle", "bundle", "--question", "Who was the keeper?"],
    )
    assert demo["main"]() == 0


def test_the_page_of_the_command_line_is_what_the_program_says() -> None:
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(
        [sys.executable, str(root / "scripts" / "generate_cli_reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    assert found.returncode == 0, found.stderr


# -- Ctrl-C, in a process of its own ------------------------------------------------------------

SLOW = """
    import sys, time
    from types import SimpleNamespace
    from zcontext.cli import engines, main
    from zcontext.testing import ByteCall, ByteCodec

    class Slow(ByteCodec):
        def compress_many(self, texts, **keywords):
            found = super().compress_many(texts, **keywords)
            if any("slow" in text for text in texts):
                print("working", file=sys.stderr, flush=True)
                time.sleep(60)
            return found

    codec = Slow()
    engines.open_engines = lambda *options: SimpleNamespace(
        compressor=lambda store=None: codec, vocabulary=codec.vocabulary
    )
    main(sys.argv[1:])
"""


def _environment() -> dict[str, str]:
    source = Path(__file__).resolve().parents[2] / "src"
    return {**os.environ, "PYTHONPATH": str(source), "PYTHONWARNINGS": "ignore"}


def _interrupted(tmp_path: Path, *arguments: str) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=_environment(),
    )
    assert process.stderr is not None
    while "working" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_is_one_line_exit_code_130_and_no_half_a_result(tmp_path: Path) -> None:
    rows = [f"text {k}" for k in range(8)] + ["a slow one", "never"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in rows))
    code, out, err = _interrupted(tmp_path, "compress", "rows.jsonl", "--jsonl", "text")
    assert code == 130
    assert err.strip().splitlines()[-1] == "zcontext: interrupted"
    assert "Traceback" not in err
    assert out.endswith("\n")
    assert [json.loads(line)["source"] for line in out.splitlines()] == [
        f"rows.jsonl:{k}" for k in range(1, 9)
    ]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_no_file_behind(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "slow"}\n')
    code, _, _ = _interrupted(
        tmp_path, "compress", "rows.jsonl", "--jsonl", "text", "--out", "out.jsonl"
    )
    assert code == 130
    assert [child.name for child in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "some words to write"}\n' * 20_000)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW), "compress", "rows.jsonl", "--jsonl", "text"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=_environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def interrupted() -> None:
        with files.open_sink(path) as sink:
            sink.line("x" * 1000)
            os.kill(os.getpid(), signal.SIGINT)
            sink.line("y")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []
