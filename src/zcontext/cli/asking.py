"""`ask`: a question answered from symbols, or from the text itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from zcontext.bundles import DEFAULT_BUNDLE
from zcontext.cli import engines, files
from zcontext.cli.console import Debug
from zcontext.cli.spanning import Depth, Out, Ratio, Rows, Store, compressed, read_written
from zcontext.config import DEFAULT_RATIO, CompressSettings, GenerationSettings
from zcontext.errors import ConfigError
from zcontext.spans import Part, SupportsFocus, ZDocument
from zcontext.vocabulary import Symbols

AnyQuestion = Annotated[
    bool,
    typer.Option("--any-question", help="Use symbols that are not written for this question."),
]

AsJson = Annotated[
    bool, typer.Option("--json", help="The answer with its counts, as one JSON line.")
]
UnknownBias = Annotated[float, typer.Option(help="Above 0 it rather says `unknown` than guesses.")]


def ask(
    question: Annotated[str, typer.Argument(help="What is asked.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Text files, compressed now; - is standard input.", metavar="FILE..."),
    ] = None,
    spans: Annotated[
        list[str] | None,
        typer.Option("--spans", "-s", help="What compress wrote earlier; may be repeated."),
    ] = None,
    ratio: Ratio = None,
    depth: Depth = None,
    any_question: AnyQuestion = False,
    raw: Annotated[bool, typer.Option("--raw", help="Give the texts as they are.")] = False,
    jsonl: Rows = None,
    store: Store = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the answer; repeatable.")] = None,
    unknown_bias: UnknownBias = 0.0,
    json_: AsJson = False,
    out: Out = None,
    bundle: engines.Bundle = DEFAULT_BUNDLE,
    base: engines.Base = None,
    quantization: engines.Quantization = "nf4",
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    debug: Debug = False,
) -> None:
    """Answer a question from texts that the model reads as symbols.

    Symbols are written for the question, if the bundle can: those of texts, and again those that
    were stored for any question.

    Example:
      zcontext ask "Who approved the budget?" memo.txt --ratio 4
      zcontext ask "Who approved the budget?" --spans memo.spans.jsonl --json
    """  # noqa: DOC101, DOC103 - the options tell
    if not sources and not spans:
        raise typer.BadParameter("give texts (FILE...) or what compress wrote (--spans)")
    generation = GenerationSettings(
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, stop=tuple(stop or ())
    )
    settings = CompressSettings(ratio=ratio or DEFAULT_RATIO, depth=depth, on_symbols="escape")
    lines = files.read_lines(spans or [])
    texts = files.read_sources(sources or [], field=jsonl)
    opened = engines.open_engines(bundle, base, quantization, dtype, device)
    reader = opened.reader(unknown_bias=unknown_bias)
    stored = [read_written(line, opened.vocabulary) for line in lines]
    asked = "" if any_question else question
    written = _written(stored, [] if raw else texts, opened, settings, question=asked, store=store)
    parts = [(each,) if isinstance(each, Symbols) else each.parts for each in written]
    if raw:
        parts += [(reader.vocabulary.guard(text.text, on_symbols="escape"),) for text in texts]
    answer = reader.ask(question, _separated(parts), settings=generation)
    with files.open_sink(out) as sink:
        row = {"question": question, **dataclasses.asdict(answer)}
        sink.line(json.dumps(row, ensure_ascii=False) if json_ else answer.text)


def _written(
    stored: Sequence[ZDocument | Symbols],
    texts: Sequence[files.Source],
    opened: engines.Engines,
    settings: CompressSettings,
    *,
    question: str,
    store: Path | None,
) -> list[ZDocument | Symbols]:
    """What is stored, then the texts, all written for a question if any; bare symbols stay."""
    if not texts and (not question.strip() or all(isinstance(each, Symbols) for each in stored)):
        return list(stored)
    compressor = opened.compressor(store=store)
    focus = compressor if question.strip() and isinstance(compressor, SupportsFocus) else None
    if focus is None or store is not None:  # what goes into a store serves every question
        stored = [*stored, *(document for _, document in compressed(texts, compressor, settings))]
        texts = []
    if focus is None:
        return list(stored)
    again = [e for e in stored if isinstance(e, ZDocument)] if focus.refocuses else []
    given: list[str | ZDocument] = [*again, *(text.text for text in texts)]
    written = iter(focus.compress_together(given, question=question, settings=settings))
    kept = [next(written) if again and isinstance(e, ZDocument) else e for e in stored]
    return [*kept, *written]


def _separated(texts: list[tuple[Part, ...]]) -> list[Part]:
    """The parts of all texts, with a line's end between them: two texts are not one."""
    if not any(len(part) for parts in texts for part in parts):
        raise ConfigError(
            "the context is empty: there is nothing to answer from", field="sources", value=""
        )
    spaced: list[Part] = []
    for parts in texts:
        if spaced:
            spaced.append("\n")
        spaced += parts
    return spaced
