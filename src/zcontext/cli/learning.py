"""`prepare` and `train`: a corpus into shards, shards into a bundle."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zcontext.cli import engines
from zcontext.cli.console import Debug, errors, progress_bar, say, show_logs
from zcontext.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Text, JSON lines (also .gz) or parquet files, folders of them, or hf:NAME.",
            metavar="SOURCE...",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the shards.")],
    surprisal: Annotated[
        bool,
        typer.Option(
            "--surprisal/--no-surprisal",
            help="Store the base's surprisal too: minutes per million tokens, once instead of in "
            "every run.",
        ),
    ] = True,
    field: Annotated[str, typer.Option(help="Text field of rows.")] = "text",
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
