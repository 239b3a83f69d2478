"""`eval report`: tasks by conditions, resumed where it stopped, written into one folder."""

from __future__ import annotations

import dataclasses
import math
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
    from zcontext.evaluation.runner import Share
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
        help="Bundle whose INFER adapter was trained on raw text, the raw control, or the adapter "
        "alone (.safetensors); the plain base if left out. The bundle itself may be named."
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
Windows = Annotated[
    list[int] | None, typer.Option(help="Length of windows brought back; repeatable.")
]
Needles = Annotated[int | None, typer.Option(help="Needles of each kind at each length.")]
LongNeedles = Annotated[
    int | None, typer.Option(help="The same at lengths above 4,096 tokens, which take long.")
]
RivalTokens = Annotated[
    int | None,
    typer.Option(help="Longest contexts that methods which run a model over all of it get."),
]
TimeTokens = Annotated[
    list[int] | None, typer.Option(help="Length at which times are taken; repeatable; 0 for none.")
]
Minutes = Annotated[
    float | None,
    typer.Option(help="Stop when they are over, and report what is measured; run again to go on."),
]
Part = Annotated[
    str | None,
    typer.Option(
        metavar="K/N",
        help="Do only the K-th of N parts, beside others that do the rest, and write no report.",
    ),
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
    windows: Annotated[int | None, typer.Option(help="Windows of each length.")] = None,
    window_tokens: Windows = None,
    passages: Annotated[int | None, typer.Option(help="Passages that are continued.")] = None,
    needles: Needles = None,
    long_needles: LongNeedles = None,
    needle_tokens: Lengths = None,
    rival_tokens: RivalTokens = None,
    time_tokens: TimeTokens = None,
    peers: Peers = True,
    minutes: Minutes = None,
    part: Part = None,
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
    settings = _settings(
        quick,
        seed=seed,
        ratios=ratio,
        depths=depth,
        questions=limit,
        hard=None if limit is None else max(2, limit // 2),
        distractors=distractors,
        windows=windows,
        window_tokens=window_tokens,
        passages=passages,
        needles=needles,
        long_needles=long_needles,
        needle_tokens=needle_tokens,
        rival_tokens=rival_tokens,
        time_tokens=time_tokens,
    )
    share, most = _share(part), math.inf if minutes is None else 60 * minutes
    data, names = _read(text or [], questions or [], books or [])
    chosen = (base, quantization, dtype, device)
    model = engines.open_engines(bundle, *chosen).model
    bench = _bench(model, _control(control, model, bundle, chosen), control, peers)
    facts = {"bundle": _name(bundle), "base": _name(model.base.name), "quick": quick, "data": names}
    facts["readers"] = _readers(bundle)
    _measure(settings, data, bench, facts, out, seconds=most, share=share)


def _control(named: str | None, model: Any, bundle: str, options: tuple[Any, ...]) -> Any:
    """The model that reads raw text: none, this one, another bundle's, or with another INFER."""
    from zcontext.bundle import replace_infer

    if not named or named == bundle:
        return model if named else None
    if not named.endswith(".safetensors"):
        return engines.open_engines(named, *options).model
    other = engines.open_engines(bundle, *options).model
    replace_infer(other, named)
    return other


def _settings(quick: bool, **given: Any) -> SuiteSettings:
    """What is measured: the defaults, but for what was given."""
    from zcontext.evaluation.suite import QUICK, SuiteSettings

    # Nothing given for a repeatable option is an empty list, or None.
    found: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None and value != []
    }
    if found.get("time_tokens") == (0,):
        found["time_tokens"] = ()
    return dataclasses.replace(QUICK if quick else SuiteSettings(), **found)


def _bench(model: Any, other: Any, name: str | None, peers: bool) -> Bench:
    from zcontext.evaluation import bench as benches

    show_logs()  # it tells which methods are not installed
    told = _name(name or "")
    return benches.open_bench(model, control=other, control_name=told, with_peers=peers)


def _measure(
    settings: SuiteSettings,
    data: SuiteData,
    bench: Bench,
    facts: dict[str, Any],
    out: Path,
    *,
    seconds: float,
    share: Share | None,
) -> None:
    """Run the tasks and write the folder."""
    from zcontext.evaluation.predictions import PredictionLog
    from zcontext.evaluation.runner import run_tasks, spoken
    from zcontext.evaluation.suite import build_tasks
    from zcontext.evaluation.summary import summarise

    own = out / "predictions.jsonl"
    if share is not None:
        own = out / f"predictions-{share.number}-of-{share.of}.jsonl"
    found = (path for end in ("", ".gz") for path in sorted(out.glob(f"predictions*.jsonl{end}")))
    log = PredictionLog(own, also=[path for path in found if path != own])
    tasks = build_tasks(settings, data, bench)
    n = sum(len(task) * len(task.conditions) for task in tasks)
    say(f"{len(tasks)} tasks, {n:,} predictions; a first chunk of each tells how long it takes")
    with progress_bar("measuring") as progress:
        took = run_tasks(
            tasks, log=log, announce=say, progress=progress, seconds=seconds, share=share
        )
    if share is not None:
        say(
            f"part {share.number} of {share.of} is done in {spoken(took)}; when the others are, "
            "the same command without --part writes the report"
        )
        return
    figures = summarise(
        tasks,
        log,
        seed=settings.seed,
        facts=facts | _told_of(settings, bench),
        run={
            "seconds": took,
            "machine": _machine(bench.model),
            "times": _times(settings, data, bench),
        },
    )
    _write(figures, out)
    say(f"done in {spoken(took)}: {out}/report.md, report.json and the plots")


def _readers(bundle: str) -> dict[str, str]:
    """Digests of the parts that reports depend on and codecs do not: INFER and FOCUS."""
    from zcontext.bundle import read_manifest
    from zcontext.bundles import find_bundle

    parts = read_manifest(find_bundle(bundle))["parts"]
    return {part: parts[part]["sha256"] for part in ("infer", "focus") if part in parts}


def _told_of(settings: SuiteSettings, bench: Bench) -> dict[str, Any]:
    from zcontext import __version__
    from zcontext.evaluation.suite import settings_dict

    return {
        "zcontext": __version__,
        "codec": bench.compressor.codec,
        "control": bench.control,
        "peers": list(bench.peers),
        "evictors": list(bench.evictors),
        "context_length": min(r.context_length for r in bench.respondents.values()),
        "settings": settings_dict(settings),
    }


def _times(settings: SuiteSettings, data: SuiteData, bench: Bench) -> list[dict[str, Any]]:
    """Times of compressing, reading and answering, where there is a model to time."""
    from zcontext.evaluation.timing import text_of, time_length

    if bench.model is None or not settings.time_tokens:
        return []
    say("taking times")
    asked = [row.context for rows in data.questions.values() for row in rows]
    source = "\n\n".join([*data.books[:1], *data.texts[:2000]] or asked)
    given: dict[str, Any] = {"ratios": settings.ratios, "n_output": 16}
    lengths = sorted(settings.time_tokens)
    time_length(bench.model, text_of(bench.model, source, 128), repeats=1, **given)  # warms up
    return [
        time_length(
            bench.model,
            text_of(bench.model, source, n_tokens),
            repeats=settings.time_repeats,
            **given,
        )
        for n_tokens in lengths
    ]


def _write(found: dict[str, Any], out: Path) -> None:
    from zcontext.evaluation.pages import page
    from zcontext.evaluation.plots import draw_plots
    from zcontext.evaluation.report import write_json

    write_json(found, out / "report.json")
    plots = draw_plots(found, out)
    text = page(found, title="Report", plots=plots)
    (out / "report.md").write_text(text, encoding="utf-8")
    for bug in found["bugs"]:
        say(bug)


def _share(part: str | None) -> Share | None:
    from zcontext.evaluation.runner import Share

    if part is None:
        return None
    number, slash, of = part.partition("/")
    if not slash or not number.isdecimal() or not of.isdecimal():
        raise ConfigError(
            f"a part is written K/N, such as 1/2; got {part!r}", field="part", value=part
        )
    return Share(int(number), int(of))


def _read(text: list[str], questions: list[Path], books: list[str]) -> tuple[SuiteData, list[str]]:
    """The data, and the names of their files."""
    from zcontext.evaluation.questions import all_rows
    from zcontext.evaluation.suite import SuiteData

    names = [_name(str(path)).partition(".")[0] for path in questions]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two files of questions have one name ({', '.join(names)}); rename one",
            field="questions",
            value=names,
        )
    data = SuiteData(
        texts=list(islice(corpus_texts(text, field="text"), MAX_TEXTS)),
        questions={name: all_rows(path) for name, path in zip(names, questions, strict=True)},
        books=list(islice(corpus_texts(books, field="text"), MAX_BOOKS)),
    )
    return data, [_name(str(path)) for path in (*text, *questions, *books)]


def _name(path: str) -> str:
    """A file's own name: reports do not tell where things lie on a machine."""
    return Path(path).name


def _machine(model: Any) -> str:
    from zcontext.evaluation.timing import machine

    found = machine(model)
    device = found["accelerator"] or f"{found['cpu']} with {found['threads']} threads"
    return f"{device}, {found['cores']} CPU cores, torch {found['torch']}"
