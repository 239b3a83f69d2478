"""`zcontext eval`: what symbols keep, and what readers do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zcontext.bundles import DEFAULT_BUNDLE
from zcontext.cli import engines, reporting
from zcontext.cli.console import Command, Debug, progress_bar, results, say
from zcontext.cli.learning import corpus_texts

app = typer.Typer(
    no_args_is_help=True,
    help="Measure a codec: what is kept, what is lost.",
    rich_markup_mode="rich",
)

app.command("report", cls=Command)(reporting.report)

Depth = Annotated[
    int | None, typer.Option("--depth", "-d", help="Codes per symbol; the codec's own if left out.")
]
Seed = Annotated[int, typer.Option(help="Of what is drawn, and of the intervals.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Also write the figures as JSON.")]
Ratios = Annotated[
    list[float] | None, typer.Option("--ratio", "-r", help="Tokens per symbol; repeatable.")
]


@app.command("reconstruct", cls=Command)
def reconstruct(
    data: Annotated[
        list[str],
        typer.Argument(help="Texts: .jsonl, .jsonl.gz, .txt, .parquet.", metavar="DATA..."),
    ],
    ratio: Ratios = None,
    window: Annotated[int, typer.Option(help="Tokens per window.")] = 100,
    limit: Annotated[int, typer.Option(help="Windows at most.")] = 200,
    seed: Seed = 0,
    depth: Depth = None,
    field: Annotated[str, typer.Option(help="Text field of rows.")] = "text",
    batch: Annotated[int, typer.Option(help="Windows handled together.")] = 16,
    out: Out = None,
    bundle: engines.Bundle = DEFAULT_BUNDLE,
    base: engines.Base = None,
    quantization: engines.Quantization = "nf4",
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    debug: Debug = False,
) -> None:
    """Compress windows of texts and bring them back: bits, bound, tokens, BLEU.

    Example:
      zcontext eval reconstruct dev.jsonl.gz --ratio 4 --ratio 8 --limit 100 --out dev.json
    """  # noqa: DOC101, DOC103 - the options tell
    from zcontext.evaluation import report
    from zcontext.evaluation.excerpts import cut_windows
    from zcontext.evaluation.reconstruct import RATIOS, ReconstructSettings
    from zcontext.evaluation.reconstruct import reconstruct as measure

    settings = ReconstructSettings(
        ratios=tuple(ratio or RATIOS),
        window_tokens=window,
        limit=limit,
        seed=seed,
        depth=depth,
        batch=batch,
    )
    opened = engines.open_engines(bundle, base, quantization, dtype, device)
    judge = opened.judge()
    texts = corpus_texts(data, field=field)
    windows = cut_windows(texts, judge=judge, n_tokens=window, limit=limit, seed=seed)
    with progress_bar("measuring") as progress:
        found = measure(
            windows,
            compressor=opened.compressor(),
            decompressor=opened.decompressor(batch_size=batch),
            judge=judge,
            settings=settings,
            progress=progress,
        )
    results().print(report.reconstruct_table(found))
    for bug in report.bugs(found):
        say(bug)
    if out is not None:
        report.write_json({**found.to_dict(), "data": [Path(name).name for name in data]}, out)


@app.command("qa", cls=Command)
def qa(
    data: Annotated[
        Path, typer.Argument(help="JSON lines of context, question, answers (also .gz).")
    ],
    ratio: Ratios = None,
    limit: Annotated[int, typer.Option(help="Questions at most.")] = 200,
    seed: Seed = 0,
    depth: Depth = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 32,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines where answers are kept; a run that finds its answers there goes on."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Questions asked together.")] = 8,
    out: Out = None,
    bundle: engines.Bundle = DEFAULT_BUNDLE,
    base: engines.Base = None,
    quantization: engines.Quantization = "nf4",
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    debug: Debug = False,
) -> None:
    """Ask questions from symbols, text, a cut text, wrong symbols and nothing: SQuAD EM and F1.

    Example:
      zcontext eval qa dev.jsonl.gz --ratio 4 --limit 200 --predictions runs/qa.jsonl
    """  # noqa: DOC101, DOC103 - the options tell
    from zcontext.config import GenerationSettings
    from zcontext.evaluation import report
    from zcontext.evaluation.predictions import PredictionLog
    from zcontext.evaluation.qa import QASettings, answer_rows
    from zcontext.evaluation.questions import read_rows

    settings = QASettings(
        ratios=tuple(ratio or (4.0,)),
        seed=seed,
        limit=limit,
        depth=depth,
        generation=GenerationSettings(max_new_tokens=max_new_tokens, stop=("\n",)),
    )
    rows = read_rows(data, limit=limit, seed=seed)
    log = PredictionLog(predictions)
    opened = engines.open_engines(bundle, base, quantization, dtype, device)
    with progress_bar("measuring") as progress:
        found = answer_rows(
            rows,
            compressor=opened.compressor(),
            reader=opened.reader(),
            settings=settings,
            log=log,
            batch=batch,
            progress=progress,
        )
    results().print(report.qa_table(found))
    if out is not None:
        report.write_json({**found.to_dict(), "data": data.name}, out)
