"""The report: one command, one folder, the same figures for the same seed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_evaluation import ByteJudge
from test_tasks import BOOK, ROWS, ByteForeteller, Echo, Halves
from typer.testing import CliRunner, Result

from tiny import tiny_z
from zcontext.cli import app, engines
from zcontext.config import GenerationSettings
from zcontext.errors import ConfigError
from zcontext.evaluation import bench as benches
from zcontext.evaluation.asking import QuestionTask
from zcontext.evaluation.bench import Bench, open_bench
from zcontext.evaluation.pages import page
from zcontext.evaluation.plots import RATE, RETENTION, draw_plots
from zcontext.evaluation.predictions import PredictionLog
from zcontext.evaluation.respondents import ReaderRespondent
from zcontext.evaluation.runner import run_tasks
from zcontext.evaluation.suite import (
    QUICK,
    SuiteData,
    SuiteSettings,
    build_tasks,
    settings_dict,
)
from zcontext.evaluation.summary import summarise
from zcontext.model import ZLanguageModel
from zcontext.testing import ByteCodec

ROOT = Path(__file__).parents[2]
TEXTS = [f"In the winter of 19{k:02d} Anna lit the lantern of harbour {k}." for k in range(60)]
SMALL = SuiteSettings(
    ratios=(4.0, 8.0),
    depths=(None, 2),
    questions=4,
    hard=3,
    distractors=2,
    windows=4,
    window_tokens=(24, 40),
    passages=3,
    context_tokens=60,
    following_tokens=20,
    needles=2,
    needle_tokens=(600,),
    generation=GenerationSettings(max_new_tokens=60, stop=("\n",)),
)
DATA = SuiteData(TEXTS, {"towers": ROWS}, [BOOK])


def byte_bench(codec: ByteCodec | None = None) -> Bench:
    made = codec or ByteCodec()
    return Bench(
        compressor=made,
        decompressor=made,
        judge=ByteJudge(gain=0.5),
        respondents={"infer": ReaderRespondent(made), "control": ReaderRespondent(made)},
        foretellers={"infer": ByteForeteller("a"), "control": ByteForeteller("b")},
        peers={"halves": Halves()},
        evictors={"echo": Echo()},
        control="a stand-in",
    )


def made(settings: SuiteSettings = SMALL, **changes: Any) -> dict[str, Any]:
    bench, log = byte_bench(), PredictionLog()
    tasks = build_tasks(settings, DATA, bench)
    run_tasks(tasks, log=log)
    facts = {
        "bundle": "bytes",
        "base": "none",
        "quick": False,
        "data": ["towers.jsonl"],
        "codec": bench.compressor.codec,
        "control": bench.control,
        "peers": ["halves"],
        "evictors": ["echo"],
        "settings": settings_dict(settings),
    }
    return summarise(tasks, log, seed=settings.seed, facts=facts | changes, run={"seconds": 1.0})


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return made()


def test_a_report_has_every_task_that_there_are_data_for(report: dict[str, Any]) -> None:
    assert [task["task"] for task in report["tasks"]] == [
        "reconstruct 24",
        "reconstruct 40",
        "continuation",
        "qa towers",
        "qa towers +2",
        "unanswerable towers",
        "needle sentence 600",
        "needle key-value 600",
    ]
    with pytest.raises(ConfigError, match="nothing to measure"):
        build_tasks(SMALL, SuiteData(), byte_bench())


def test_the_same_seed_gives_the_same_report(report: dict[str, Any]) -> None:
    assert made() == report
    other = made(dataclasses.replace(SMALL, seed=7))
    assert other["tasks"] != report["tasks"]


def test_every_figure_of_quality_has_an_interval(report: dict[str, Any]) -> None:
    n = 0
    for task in report["tasks"]:
        for row in task["rows"]:
            for value in (*row.get("figures", {}).values(), row.get("retention")):
                if value is not None:
                    n += 1
                    assert set(value) == {"value", "low", "high", "n"}
    assert n > 100


def test_figures_that_beat_the_bound_are_named_as_bugs(report: dict[str, Any]) -> None:
    assert report["bugs"] == []
    (restored, *rest) = report["tasks"]
    rows = [{**row, "beats_bound": True} for row in restored["rows"]]
    from zcontext.evaluation.summary import bugs

    found = list(bugs({"tasks": [{**restored, "rows": rows}, *rest]}))
    assert len(found) == len(rows)
    assert "bug" in page({**report, "bugs": found}, title="T")


def test_the_page_has_the_headline_the_losses_and_every_task(report: dict[str, Any]) -> None:
    text = page(report, title="Report", plots=["there/retention.png"])
    for task in report["tasks"]:
        assert f"\n## {task['task'][0].upper()}{task['task'][1:]}\n" in text
        assert task["about"] in text
    assert text.index("## Retention") < text.index("## Where we lose")
    assert "![retention](there/retention.png)" in text
    assert "a stand-in" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert not re.search(r"\bnan\b|\binf\b|None", text)


def test_what_is_lost_is_said(report: dict[str, Any]) -> None:
    loss = {"value": -0.4, "low": -0.5, "high": -0.3, "n": 9}
    entries = [
        {"task": "qa", "condition": "symbols@4", "positions": 9.0, "kind": kind, "to": to}
        | {"difference": loss}
        for kind, to in (("peer", "halves@4/control"), ("shuffled", "shuffled@4"))
    ]
    text = page({**report, "lost": entries}, title="T")
    assert "| qa | symbols@4 | 9 | halves@4/control | -0.400 [-0.500, -0.300] |" in text
    assert "perhaps not read at all: symbols@4 (qa)" in text


def test_tasks_that_were_not_measured_are_named_and_shortened_ones_say_so() -> None:
    bench, log = byte_bench(), PredictionLog()
    tasks = build_tasks(SMALL, DATA, bench)
    run_tasks(tasks[:3], log=log)
    task = tasks[3]
    for condition in task.conditions:
        log.add(task.run(range(2), condition), [{}] * 2)
    found = summarise(tasks, log, seed=0, facts={}, run={})
    assert [t["task"] for t in found["tasks"]] == [t.name for t in tasks[:4]]
    assert found["unmeasured"] == [t.name for t in tasks[4:]]
    facts = {"bundle": "b", "codec": "c", "base": "b", "control": "c", "data": []}
    text = page({**found, **facts}, title="T")
    assert "2 of 4 planned items: questions with the passage" in text
    assert "Planned and not measured: qa towers +2, unanswerable towers, needle" in text


def test_long_texts_are_measured_where_symbols_fit_and_without_slow_rivals() -> None:
    settings = dataclasses.replace(SMALL, rival_tokens=1000, needle_tokens=(600, 1500))
    tasks = {
        t.name: t for t in build_tasks(settings, DATA, byte_bench(ByteCodec(context_length=250)))
    }
    short, long = tasks["needle sentence 600"], tasks["needle sentence 1500"]
    assert {"halves@4", "echo@8", "symbols@8d2"} <= {c.label for c in short.conditions}
    assert {c.ratio for c in long.conditions} == {0.0, 8.0}
    assert not {c.kind for c in long.conditions} & {"peer", "evictor"}
    assert isinstance(long, QuestionTask)
    assert "overflow at ratio 4" in long.about
    assert "not measured above 1,000 tokens: echo, halves" in long.about


def test_an_overflow_is_seen_on_the_page(report: dict[str, Any]) -> None:
    (task,) = (t for t in report["tasks"] if t["task"] == "qa towers")
    rows = [{**row, "n_over": 2 * (row["condition"] == "raw/control")} for row in task["rows"]]
    text = page({**report, "tasks": [{**task, "rows": rows}]}, title="T")
    assert re.search(r"\| raw/control \|.*\| 2 of 4 \|\n", text)
    assert " over |" not in page({**report, "tasks": [task]}, title="T")


def test_plots_are_drawn_and_the_same_twice(report: dict[str, Any], tmp_path: Path) -> None:
    assert draw_plots(report, tmp_path) == [RATE, RETENTION]
    first = [(tmp_path / name).read_bytes() for name in (RATE, RETENTION)]
    draw_plots(json.loads(json.dumps(report)), tmp_path)
    assert [(tmp_path / name).read_bytes() for name in (RATE, RETENTION)] == first
    assert draw_plots({"tasks": []}, tmp_path) == []
    assert not [*tmp_path.glob("*.png")]  # what is not drawn any more does not stay


def test_of_several_depths_the_first_is_plotted(report: dict[str, Any], tmp_path: Path) -> None:
    draw_plots(report, tmp_path)
    first = (tmp_path / RETENTION).read_bytes()
    other = json.loads(json.dumps(report))
    deeper = [r for t in other["tasks"] for r in t["rows"] if r.get("depth") == 2 and r["ratio"]]
    known = [row["retention"] for row in deeper if row.get("retention")]
    assert known
    for retention in known:
        retention["value"] = 0.77
    draw_plots(other, tmp_path)
    assert (tmp_path / RETENTION).read_bytes() == first


@pytest.mark.parametrize(
    "changes",
    [
        {"ratios": ()},
        {"ratios": (0.5,)},
        {"depths": (9,)},
        {"questions": 1},
        {"distractors": -1},
        {"needle_tokens": (10,)},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(SMALL, **changes)


def test_quick_is_a_small_part_of_the_whole() -> None:
    for name in ("questions", "hard", "windows", "passages", "needles"):
        assert getattr(QUICK, name) <= getattr(SuiteSettings(), name) / 4


# -- the command --------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    lines = [{"context": r.context, "question": r.question, "answers": r.answers} for r in ROWS]
    (tmp_path / "towers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    model = SimpleNamespace(base=SimpleNamespace(name="somewhere/base.gguf"))
    monkeypatch.setattr(engines, "open_engines", lambda *o: SimpleNamespace(model=model))
    monkeypatch.setattr(benches, "open_bench", lambda model, **options: byte_bench())
    parts = {part: {"sha256": part * 2} for part in ("codebook", "focus", "infer")}
    monkeypatch.setattr("zcontext.bundles.find_bundle", Path)
    monkeypatch.setattr("zcontext.bundle.read_manifest", lambda folder: {"parts": parts})

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["eval", "report", *arguments])

    return invoke


def test_the_command_writes_a_folder_and_goes_on_in_it(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    arguments = ("--questions", "towers.jsonl", "--out", "r", "--limit", "4", "--distractors", "2")
    first = run(*arguments, "--quick", "--seed", "3", "--bundle", "some/where/mine")
    assert first.exit_code == 0, first.output
    assert "to go for" in first.output or "done in" in first.output
    names = {path.name for path in (tmp_path / "r").iterdir()}
    # Answers of twelve bytes are all wrong, so nothing is retained and there is nothing to draw.
    assert names == {"predictions.jsonl", "report.json", "report.md"}
    found = json.loads((tmp_path / "r" / "report.json").read_text())
    assert (found["bundle"], found["base"], found["seed"]) == ("mine", "base.gguf", 3)
    assert found["settings"]["ratios"] == [4.0, 8.0]
    assert found["readers"] == {"infer": "inferinfer", "focus": "focusfocus"}
    n = len((tmp_path / "r" / "predictions.jsonl").read_text().splitlines())
    again = run(*arguments, "--quick", "--seed", "3", "--bundle", "some/where/mine")
    assert again.exit_code == 0, again.output
    assert len((tmp_path / "r" / "predictions.jsonl").read_text().splitlines()) == n
    second = json.loads((tmp_path / "r" / "report.json").read_text())
    assert {**second, "run": None} == {**found, "run": None}


def test_parts_are_put_together_by_the_command_without_a_part(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    arguments = ("--questions", "towers.jsonl", "--out", "r", "--quick", "--minutes", "5")
    for part in ("1/2", "2/2"):
        found = run(*arguments, "--part", part)
        assert found.exit_code == 0, found.output
    assert "without --part" in found.output
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names == {"predictions-1-of-2.jsonl", "predictions-2-of-2.jsonl"}
    together = run(*arguments)
    assert together.exit_code == 0, together.output
    assert (tmp_path / "r" / "report.json").exists()
    assert not (tmp_path / "r" / "predictions.jsonl").exists()  # nothing was left to be done
    wrong = run(*arguments, "--part", "half")
    assert wrong.exit_code == 1
    assert "K/N" in wrong.output


def test_the_control_may_be_an_adapter_alone(
    run: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = tiny_z().adapters.state("infer")
    save_file(
        {name: torch.full_like(t, 0.5) for name, t in state.items()}, tmp_path / "raw.safetensors"
    )
    read: list[ZLanguageModel] = []

    def opened(model: ZLanguageModel, *, control: ZLanguageModel, **options: Any) -> Bench:
        assert options["control_name"] == "raw.safetensors"
        read.extend([model, control])
        return byte_bench()

    monkeypatch.setattr(engines, "open_engines", lambda *o: SimpleNamespace(model=tiny_z()))
    monkeypatch.setattr(benches, "open_bench", opened)
    found = run(
        *("--questions", "towers.jsonl", "--out", "r", "--quick", "--part", "1/2"),
        *("--control", "raw.safetensors"),
    )
    assert found.exit_code == 0, found.output
    own, control = ([*z.adapters.state("infer").values()] for z in read)
    assert all(bool((weight == 0.5).all()) for weight in control)
    assert not all(bool((weight == 0.5).all()) for weight in own)


def test_files_of_one_name_and_no_data_are_refused(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "towers.jsonl").write_text((tmp_path / "towers.jsonl").read_text())
    found = run("--questions", "towers.jsonl", "--questions", "deep/towers.jsonl", "--out", "r")
    assert found.exit_code == 1
    assert "one name" in found.output
    nothing = run("--out", "r")
    assert nothing.exit_code == 1
    assert "nothing to measure" in nothing.output


def test_the_command_shows_an_example() -> None:
    found = CliRunner().invoke(app, ["eval", "report", "--help"], env={"COLUMNS": "200"})
    assert found.exit_code == 0
    assert "zcontext eval report" in found.output.partition("Example:")[2]


# -- the page of the docs -----------------------------------------------------------------------


def test_the_docs_page_is_made_from_the_report(report: dict[str, Any], tmp_path: Path) -> None:
    script = page_script()
    folder, at = tmp_path / "results" / "report", tmp_path / "docs" / "benchmarks.md"
    folder.mkdir(parents=True)
    assert "No report has been published yet" in script.make_page(folder, at=at)
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "retention.png").write_bytes(b"")
    timed = {"kv_bytes": 400, "first_token_seconds": 1.0}
    span = {"ratio": 4.0, "compress_over_prefill": 2.5, "first_token_speedup": 1.5}
    span |= {"total_speedup": 0.9, "cached_total_speedup": 0.8, "break_even_questions": None}
    cost = {
        "machine": {"cpu": "a chip", "threads": 2, "torch": "2"},
        "answer_tokens": 16,
        "repeats": 3,
        "rows": [{"n_tokens": 1000, "raw": timed, "spans": [{**span, "stored": timed}]}],
    }
    (folder.parent / "cost.json").write_text(json.dumps(cost))
    arguments = ["--report", str(folder), "--page", str(at)]
    assert script.main([*arguments, "--check"]) == 1
    assert script.main(arguments) == 0
    assert script.main([*arguments, "--check"]) == 0
    text = at.read_text()
    assert "## Where we lose" in text
    assert "The bundle that ships" not in text
    assert "(../results/report/retention.png)" in text
    assert "| 1,000 | 4 | 2.50 | 1.50 | 0.90 | 0.80 | never | 1.00 |" in text
    assert "| 1,000 | 4 | - | - | 1.00 | - | 1.00 | - | - | - | - |" in text
    assert "never paid back: 1,000 tokens at ratio 4." in text
    assert str(tmp_path) not in text
    replaced = {**report, "bundle": "smollm2-135m", "codec": "e" * 64}
    (folder / "report.json").write_text(json.dumps(replaced))
    assert "this report is of codec `eeeeeeeeeeee`" in script.make_page(folder, at=at)
    manifest = json.loads((ROOT / "bundles" / "smollm2-135m" / "manifest.json").read_text())
    digests = {part: manifest["parts"][part]["sha256"] for part in ("infer", "focus")}
    same = {**report, "bundle": "smollm2-135m", "codec": manifest["codec"], "readers": digests}
    (folder / "report.json").write_text(json.dumps(same))
    assert "came after this report" not in script.make_page(folder, at=at)
    same["readers"] = {**digests, "infer": "0" * 64}
    (folder / "report.json").write_text(json.dumps(same))
    assert "**INFER of the bundle that ships came after this report.**" in script.make_page(
        folder, at=at
    )


def test_what_was_measured_beside_the_report_is_told_behind_it(
    report: dict[str, Any], tmp_path: Path
) -> None:
    script = page_script()
    folder, at = tmp_path / "results" / "report", tmp_path / "docs" / "benchmarks.md"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    plain = script.make_page(folder, at=at)
    assert "has not been run" in plain
    figures = {"token_accuracy": 1.0, "bits_missing_per_token": 0.5}
    writers = {
        "asked": 4.0,
        "chosen": 3.9,
        "texts": 2,
        "autoregressive": figures,
        "one-pass": figures,
        "seconds_per_symbol": {"autoregressive": 0.3, "one-pass": 0.1},
        "codes_alike": 0.9,
        "predictable": {"chosen": 4.5},
        "dense": {"chosen": 3.5},
    }
    told = {"value": 0.25, "low": 0.0, "high": 0.5}
    counts = dict.fromkeys(("tokens", "symbols", "peak_positions"), 7.0)
    thinking = [
        {"table": "going_on", "held_as": "symbols", "recent": 16, "positions": 44.0}
        | {"ratio": 4.0, "bits": told, "over_text": told},
        {"table": "answers", "held_as": "text", "block": 9, "recent": 0, "ratio": 4.0}
        | {**counts, "f1": told},
    ]
    spread = {"mean": 0.5, "std": 0.1}
    shares = dict.fromkeys(("codes", "codes_random", "tokens", "tokens_random"), spread)
    same = dict.fromkeys(("codes", "shuffled", "centred", "centred_shuffled"), spread)
    usage = {"n_symbols": 10, "n_used": 5, "n_codes": 31, "entropy_bits": 2.0, "zipf_slope": -1.0}
    codes = {"n_tokens": 80, "ratio": 8.0, "usage": usage}
    agreed = {"window": 1024, "stride": 256, "ratio": 8.0, "ends": 0.9, "ends_by_chance": 0.1}
    agreed |= {"segments": 0.8, "codes": 1.0, "codes_by_chance": 0.07, "identical": 1.0}
    for name, found in (
        ("writers.json", [writers]),
        ("thinking.json", {"rows": thinking}),
        ("overlaps.json", [agreed]),
        ("codes.json", {**codes, "consistency": same, "paraphrases": shares}),
    ):
        (folder.parent / name).write_text(json.dumps(found))
    page = script.make_page(folder, at=at)
    assert page.startswith(plain.partition("\nThe cost benchmark")[0])
    for row in (
        "| 4 | 3.90 | 1.000 | 1.000 | 0.500 | 0.500 | 3.0 | 0.90 | 4.50 | 3.50 |",
        "| 4 | symbols | 16 | 44.0 | 0.250 [0.000, 0.500] | 0.250 [0.000, 0.500] |",
        "| 4 | text | - | all | 7.0 | 7.0 | 7.0 | 0.250 [0.000, 0.500] |",
        "| 1,024 | 256 | 8 | surprisal | 0.900 | 0.100 | 0.800 | 1.000 | 0.070 | 1.000 |",
        "| contextual consistency of a code, mean and deviation | 0.500 ± 0.100 | 0.500 ± 0.100 |",
    ):
        assert row in page


def page_script() -> Any:
    """The script that makes the page, as a module."""
    spec = importlib.util.spec_from_file_location(
        "generate_benchmarks_page", ROOT / "scripts" / "generate_benchmarks_page.py"
    )
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


# -- a real model -------------------------------------------------------------------------------


def test_a_real_model_is_reported_from_end_to_end(tiny_model: ZLanguageModel) -> None:
    settings = dataclasses.replace(
        SMALL,
        ratios=(8.0,),
        depths=(None,),
        questions=2,
        hard=2,
        distractors=1,
        windows=2,
        passages=2,
        needle_tokens=(),
        generation=GenerationSettings(max_new_tokens=2),
    )
    bench = open_bench(tiny_model, with_peers=False)
    tasks, log = build_tasks(settings, DATA, bench), PredictionLog()
    run_tasks(tasks, log=log)
    found = summarise(tasks, log, seed=0, facts={}, run={})
    rows = {row["condition"]: row for row in found["tasks"][2]["rows"]}
    assert rows["symbols@8"]["n_positions"] < rows["raw"]["n_positions"] / 6
    assert 4 < rows["raw/control"]["figures"]["bits"]["value"] < 12
    assert not found["bugs"]
    # A second bundle in the control's place is another reader.
    other = open_bench(tiny_model, control=tiny_model, control_name="c", with_peers=False)
    assert "own INFER adapter" in other.control
    ours, theirs = bench.respondents["control"], other.respondents["control"]
    assert ours.identity != theirs.identity == other.respondents["infer"].identity
