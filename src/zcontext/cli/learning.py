"""`prepare`, `questions`, `instructions`: a corpus into what `train` makes a bundle of."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zcontext.cli import engines
from zcontext.cli.console import Debug, errors, progress_bar, say, show_logs
from zcontext.cli.files import open_sink
from zcontext.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from zcontext.training.instructions import Summarise
    from zcontext.training.questions import Question

Corpus = Annotated[
    list[str],
    typer.Argument(
        help="Text, JSON lines (also .gz) or parquet files, folders of them, or hf:NAME.",
        metavar="SOURCE...",
    ),
]
Field = Annotated[str, typer.Option(help="Text field of rows.")]
Rows = Annotated[
    Path, typer.Option("--out", "-o", help="JSON lines; compressed if the name ends in .gz.")
]


def prepare(
    sources: Corpus,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the shards.")],
    surprisal: Annotated[
        bool,
        typer.Option(
            "--surprisal/--no-surprisal",
            help="Store the base's surprisal too: minutes per million tokens, once instead of in "
            "every run.",
        ),
    ] = True,
    field: Field = "text",
    seed: Annotated[int, typer.Option(help="Of the shuffle.")] = 0,
    base: engines.Base = None,
    quantization: engines.Quantization = "nf4-dequantised",
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    debug: Debug = False,
) -> None:
    """Tokenise a corpus into training shards.

    Example:
      zcontext prepare wiki.jsonl.gz books/ --out data/shards
    """  # noqa: DOC101, DOC103 - the options tell
    from zcontext.loading import load_base
    from zcontext.tokenization import text_tokenizer
    from zcontext.training.data import write_shards
    from zcontext.training.preparation import BaseSurprisal

    loaded = load_base(base, quantization=quantization, dtype=dtype, device=device)
    with progress_bar("reading") as report:
        read = judged = 0

        def texts() -> Iterator[str]:
            nonlocal read
            for text in corpus_texts(sources, field=field):
                read += 1
                report(f"reading: {read:,} texts", 0, 0)
                yield text

        def on_progress(n_tokens: int) -> None:
            nonlocal judged
            judged += n_tokens
            report(f"surprisal: {judged:,} tokens", 0, 0)

        n_tokens = write_shards(
            texts(),
            out,
            encode=text_tokenizer(loaded.tokenizer).ids,
            surprise=BaseSurprisal(loaded, on_progress=on_progress) if surprisal else None,
            seed=seed,
        )
    say(f"{n_tokens:,} tokens of {read:,} texts written to {out}")


def questions(
    sources: Corpus,
    out: Rows,
    most: Annotated[int, typer.Option(min=1, help="Questions about one passage at most.")] = 3,
    writer: Annotated[
        str | None,
        typer.Option(
            help="Bundle whose INFER words the questions, trained with [read] ask_share; those "
            "that the teacher answers right are kept. Without it they are clauses with a gap.",
            metavar="BUNDLE",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Bundle whose INFER answers, if not the writer.", metavar="BUNDLE"),
    ] = None,
    field: Field = "text",
    seed: Annotated[int, typer.Option(help="Of the places that are asked for.")] = 0,
    base: engines.Base = None,
    quantization: engines.Quantization = "nf4-dequantised",
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    debug: Debug = False,
) -> None:
    """Make questions of a corpus: numbers, names and dates that a passage says once are asked for.

    Example:
      zcontext questions wiki.jsonl.gz --out data/cloze.jsonl.gz
      zcontext questions wiki.jsonl.gz --writer runs/writer/bundle --out data/asked.jsonl.gz
    """  # noqa: DOC101, DOC103 - the options tell
    import numpy as np

    from zcontext.training.cloze import cloze_questions

    if teacher is not None and writer is None:
        raise ConfigError(
            "--teacher judges the questions of a --writer; give one", field="teacher", value=teacher
        )
    texts = corpus_texts(sources, field=field)
    rows = cloze_questions(texts, np.random.default_rng(seed), most=most)
    if writer is not None:
        asking = judging = engines.open_engines(writer, base, quantization, dtype, device)
        if teacher is not None:
            judging = engines.open_engines(teacher, base, quantization, dtype, device)
        rows = _rewritten(rows, asking, judging)
    contexts: set[str] = set()
    n_questions = _write_lines(
        _question_lines(rows, contexts),
        out,
        sources,
        doing="asking",
        nothing="there is nothing to ask: give prose with numbers, names or dates, in passages of "
        "200 characters or more, and a writer, if any, that has learned to ask",
    )
    say(f"{n_questions:,} questions about {len(contexts):,} passages written to {out}")


def instructions(
    sources: Corpus,
    out: Rows,
    summaries: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the passages that the plain base summarises too. Summaries that tell a "
            "number or a name which the passage does not are dropped.",
        ),
    ] = 0.0,
    field: Field = "text",
    seed: Annotated[int, typer.Option(help="Of what is asked, and how.")] = 0,
    base: engines.Base = None,
    quantization: engines.Quantization = "nf4-dequantised",
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    debug: Debug = False,
) -> None:
    """Make instructions of a corpus: list names, numbers or dates, yes or no, compare, summarise.

    Example:
      zcontext instructions wiki.jsonl.gz --summaries 0.1 --out data/instructions.jsonl.gz
    """  # noqa: DOC101, DOC103 - the options tell
    import numpy as np

    from zcontext.training.instructions import corpus_instructions, line_of

    summarise = _plain_summaries(base, quantization, dtype, device) if summaries else None
    rows = corpus_instructions(
        corpus_texts(sources, field=field),
        np.random.default_rng(seed),
        summarise=summarise,
        summary_share=summaries,
    )
    n_rows = _write_lines(
        map(line_of, rows),
        out,
        sources,
        doing="instructing",
        nothing="there is nothing to instruct about: give prose with numbers, names or dates, in "
        "passages of 200 characters or more",
    )
    say(f"{n_rows:,} instructions written to {out}")


def _plain_summaries(
    base: str | None, quantization: engines.Quantization, dtype: engines.Dtype, device: str
) -> Summarise:
    """What the base says to some chats, one line each."""
    from zcontext.config import CodecConfig, GenerationSettings
    from zcontext.evaluation.respondents import PlainBase
    from zcontext.loading import load_base
    from zcontext.model import ZLanguageModel

    loaded = load_base(base, quantization=quantization, dtype=dtype, device=device)
    plain = PlainBase(ZLanguageModel(loaded, CodecConfig(depth=1, size=16)))  # no codec is asked
    settings = GenerationSettings(max_new_tokens=64, stop=("\n",))
    return lambda chats: plain.say(chats, settings=settings)


def _write_lines(
    lines: Iterable[str], out: Path, sources: Sequence[str], *, doing: str, nothing: str
) -> int:
    """Write what was made of a corpus; how many lines. None at all is an error."""
    n_lines = 0
    with progress_bar(doing) as report, open_sink(out) as sink:
        for line in lines:
            sink.line(line)
            n_lines += 1
            report(f"{doing}: {n_lines:,} lines", 0, 0)
        if not n_lines:
            raise ConfigError(nothing, field="sources", value=sources)
    return n_lines


def _question_lines(rows: Iterable[Question], contexts: set[str]) -> Iterator[str]:
    """Questions as lines of a file; their contexts are noted."""
    for row in rows:
        contexts.add(row.context)
        line = {"context": row.context, "question": row.question, "answers": [row.answer]}
        yield json.dumps(line, ensure_ascii=False)


def _rewritten(
    rows: Iterator[Question], writer: engines.Engines, teacher: engines.Engines
) -> Iterator[Question]:
    from zcontext.inferencer import Inferencer
    from zcontext.training.question_writing import QuestionWriter

    asking, judging = (Inferencer(each.model, prefix_cache_bytes=0) for each in (writer, teacher))
    return QuestionWriter(asking, judging).rewrite(rows)


def train(
    config: Annotated[Path, typer.Argument(help="Settings of the run.", metavar="CONFIG.toml")],
    minutes: Annotated[
        float | None, typer.Option(help="Stop, with a checkpoint and a bundle, after so long.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Replace a setting of the file; repeatable.", metavar="table.key=value"
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train a codec, or go on where a run stopped.

    For several processes: accelerate launch --module zcontext.cli train CONFIG.toml

    Example:
      zcontext train configs/autoencode.toml --minutes 60 --set run.seed=1
    """  # noqa: DOC101, DOC103 - the options tell
    overrides = dict(_override(item) for item in set_ or [])
    if minutes is not None:
        overrides["run__minutes"] = minutes
    from zcontext.training.config import TrainConfig

    settings = TrainConfig.load(config, **overrides)
    from zcontext.training.run import train as run

    show_logs()
    console = errors()
    result = run(settings, on_log=lambda line: _log(console, line))
    for name, value in sorted(result.get("figures", {}).items()):
        console.print(f"{name:>20}  {value:.4f}", highlight=False)
    say(f"{result['steps']} steps done; bundle written to {result['bundle']}")


def corpus_texts(sources: Sequence[str], *, field: str) -> Iterator[str]:
    """Texts of a corpus; see `training.data.read_texts`, which raises its errors.

    Args:
        sources: Files, folders or `hf:NAME`.
        field: Text field of rows.

    Yields:
        One document at a time.
    """
    from zcontext.training.data import read_texts

    for source in sources:
        yield from read_texts(source, field=field)


def _override(item: str) -> tuple[str, Any]:
    """`table.key=value` as the keyword that `TrainConfig.load` takes."""
    name, equals, value = item.partition("=")
    table, dot, key = name.strip().partition(".")
    if not equals or not dot or not table or not key:
        raise ConfigError(
            f"--set {item!r} is not table.key=value, as run.seed=1", field="set", value=item
        )
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()  # a string without quotes, which a shell takes away
    return f"{table}__{key}", parsed


def _log(console: Console, line: dict[str, float]) -> None:
    figures = "  ".join(
        f"[dim]{name}[/] {value:.4g}" for name, value in line.items() if name != "step"
    )
    console.print(f"[bold]{int(line['step']):>6}[/]  {figures}", highlight=False)
