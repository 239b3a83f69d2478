"""`eval report`: tasks by conditions, resumed where it stopped, written into one folder."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zcontext.bundles import DEFAULT_BUNDLE
from zcontext.cli import engines
from zcontext.cli.console import Debug, progress_bar, say, show_logs
from zcontext.cli.learning import corpus_texts
from zcontext.errors import ConfigError

if TYPE_CHECKING:
    from zcontext.evaluation.bench import Bench
    from zcontext.evaluation.suite import SuiteData, SuiteSettings

MAX_TEXTS = 20_000
MAX_BOOKS = 40


Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of the report; a run that finds one goes on.")
]
Text = Annotated[
    list[str] | None,
    typer.Option(help="Running text, for reconstruction and continuation; repeatable."),
]
Questions = Annotated[
    list[Path] | None,
    typer.Option(help="JSON lines of context, question, answers (also .gz); repeatable."),
]
Books = Annotated[list[str] | None, typer.Option(help="Long texts to hide needles in; repeatable.")]
Control = Annotated[
    str | None,
    typer.Option(
        help="Bundle whose INFER adapter was trained on raw text, the raw control; the plain base "
        "if left out."
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="Few items: minutes on two CPU cores.")]
Seed = Annotated[int, typer.Option(help="Of what is drawn, and of the intervals.")]
Ratios = Annotated[
    list[float] | None, typer.Option("--ratio", "-r", help="Tokens per symbol; repeatable.")
]
Depths = Annotated[
    list[int] | None,
    typer.Option("--depth", "-d", help="Codes per symbol; repeatable; the codec's own else."),
]
Limit = Annotated[int | None, typer.Option(help="Questions of a file at most.")]
Distractors = Annotated[
    int | None, typer.Option(help="Other passages beside the right one; 0 for none.")
]
Lengths = Annotated[
    list[int] | None, typer.Option(help="Length of texts with needles; repeatable.")
]
Peers = Annotated[bool, typer.Option(help="Also run the other methods that are installed.")]


def report(
    out: Out,
    text: Text = None,
    questions: Questions = None,
    books: Books = None,
    control: Control = None,
    quick: Quick = False,
    seed: Seed = 0,
    ratio: Ratios = None,
    depth: Depths = None,
    limit: Limit = None,
    distractors: Distractors = None,
    needle_tokens: Lengths = None,
    peers: Peers = True,
    bundle: engines.Bundle = DEFAULT_BUNDLE,
    base: engines.Base = None,
    quantization: engines.Quantization = "nf4",
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    debug: Debug = False,
) -> None:
    """Compare symbols with text, less text, other methods and nothing: report.json, .md, plots.

    Example:
      zcontext eval report --text dev.jsonl.gz --questions qa.jsonl.gz --out report --quick
    """  # noqa: DOC101, DOC103 - the options tell
    from zcontext.evaluation import bench as benches
    from zcontext.evaluation.suite import QUICK, SuiteSettings

    given: dict[str, Any] = {
        "ratios": tuple(ratio or ()),
        "depths": tuple(depth or ()),
        "questions": limit,
        "hard": None if limit is None else max(2, limit // 2),
        "distractors": distractors,
        "needle_tokens": tuple(needle_tokens or ()),
    }
    given = {name: value for name, value in given.items() if value is not None and value != ()}
    settings = dataclasses.replace(QUICK if quick else SuiteSettings(), seed=seed, **given)
    data = _read(text or [], questions or [], books or [])
    show_logs()
    model = engines.open_engines(bundle, base, quantization, dtype, device).model
    other = None
    if control is not None:
        other = engines.open_engines(control, base, quantization, dtype, device).model
    bench = benches.open_bench(
        model, control=other, control_name=_name(control or ""), with_peers=peers
    )
    facts = {
        "bundle": _name(bundle),
        "base": _name(model.base.name),
        "quick": quick,
        "data": [_name(str(name)) for name in (*(text or []), *(questions or []), *(books or []))],
    }
    _measure(settings, data, bench, facts, out)


def _measure(
    settings: SuiteSettings, data: SuiteData, bench: Bench, facts: dict[str, Any], out: Path
) -> None:
    """Run the tasks and write the folder."""
    from zcontext import __version__
    from zcontext.evaluation.pages import page
    from zcontext.evaluation.plots import draw_plots
    from zcontext.evaluation.predictions import PredictionLog
    from zcontext.evaluation.report import write_json
    from zcontext.evaluation.runner import run_tasks, spoken
    from zcontext.evaluation.suite import build_tasks, settings_dict
    from zcontext.evaluation.summary import summarise

    log = PredictionLog(out / "predictions.jsonl")
    tasks = build_tasks(settings, data, bench)
    n = sum(len(task) * len(task.conditions) for task in tasks)
    say(f"{len(tasks)} tasks, {n:,} predictions; a first batch of each tells how long it takes")
    with progress_bar("measuring") as progress:
        seconds = run_tasks(tasks, log=log, announce=say, progress=progress)
    found = summarise(
        tasks,
        log,
        seed=settings.seed,
        facts={
            "zcontext": __version__,
            **facts,
            "codec": bench.compressor.codec,
            "control": bench.control,
            "peers": list(bench.peers),
            "evictors": list(bench.evictors),
            "settings": settings_dict(settings),
        },
        run={"seconds": seconds, "machine": _machine()},
    )
    write_json(found, out / "report.json")
    plots = draw_plots(found, out)
    text = page(found, title="Report", plots=plots)
    (out / "report.md").write_text(text, encoding="utf-8")
    for bug in found["bugs"]:
        say(bug)
    say(f"done in {spoken(seconds)}: {out}/report.md, report.json and {len(plots)} plots")


def _read(text: list[str], questions: list[Path], books: list[str]) -> SuiteData:
    from zcontext.evaluation.questions import all_rows
    from zcontext.evaluation.suite import SuiteData

    names = [_name(str(path)).partition(".")[0] for path in questions]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two files of questions have one name ({', '.join(names)}); rename one",
            field="questions",
            value=names,
        )
    return SuiteData(
        texts=list(islice(corpus_texts(text, field="text"), MAX_TEXTS)),
        questions={name: all_rows(path) for name, path in zip(names, questions, strict=True)},
        books=list(islice(corpus_texts(books, field="text"), MAX_BOOKS)),
    )


def _name(path: str) -> str:
    """A file's own name: reports do not tell where things lie on a machine."""
    return Path(path).name


def _machine() -> str:
    import os
    import platform

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{device}, {os.cpu_count()} CPU cores, torch {torch.__version__}"
