"""`compress` and `decompress`: text to symbols, symbols to text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from zcontext.bundles import DEFAULT_BUNDLE
from zcontext.cli import engines, files
from zcontext.cli.console import Debug, errors, progress_bar, say
from zcontext.cli.losses import Losses, parts_for_readers
from zcontext.cli.shortening import write_pruned
from zcontext.config import CompressSettings
from zcontext.errors import ConfigError, ZContextError
from zcontext.profiles import profile
from zcontext.sizes import Sizes, sizes_of
from zcontext.spans import SupportsCompress, ZDocument, written_parts
from zcontext.vocabulary import Symbols, ZVocabulary

if TYPE_CHECKING:
    from zcontext.cli.files import Sink, Source

Sources = Annotated[
    list[str], typer.Argument(help="Text files in UTF-8; - is standard input.", metavar="FILE...")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Write here instead of standard output, once complete."),
]
Ratio = Annotated[
    float | None,
    typer.Option("--ratio", "-r", help="Source tokens per symbol (4 if no budget is given)."),
]
Depth = Annotated[
    int | None, typer.Option("--depth", "-d", help="Codes per symbol; the codec's own if left out.")
]
Rows = Annotated[
    str | None,
    typer.Option("--jsonl", help="Sources are JSON lines; compress this field of every row."),
]
Store = Annotated[
    Path | None,
    typer.Option("--store", help="SQLite file where documents are kept and looked up."),
]

MaxSymbols = Annotated[int | None, typer.Option(help="At most so many symbols for each text.")]
BitsPerSymbol = Annotated[
    float | None, typer.Option(help="Bits of surprisal that one symbol stands for.")
]
Window = Annotated[
    int | None, typer.Option(help="Tokens written by one pass; the codec's own by default.")
]
Context = Annotated[int | None, typer.Option(help="Tokens read again before each window.")]
Memory = Annotated[int | None, typer.Option(help="Earlier symbols read before each window.")]
OnSymbols = Annotated[
    str | None, typer.Option(help="Text that spells symbols: refuse (default), escape or drop.")
]
MaxTokens = Annotated[
    int | None, typer.Option(help="Longest text accepted, in base tokens (5,000,000).")
]
Exact = Annotated[
    bool, typer.Option("--exact", help="Also store what makes decompression exactly the source.")
]
MinFidelity = Annotated[
    float | None,
    typer.Option(help="Share of tokens that should read back right; measures every window."),
]
OnLowFidelity = Annotated[
    str | None,
    typer.Option(help="Windows below that: keep (default), finer (more symbols) or raw."),
]
Question = Annotated[
    str | None,
    typer.Option(help="What will be asked: the texts are then written for this question."),
]
Emphasis = Annotated[
    str | None,
    typer.Option(help="end: for a text that will be gone on with, whose end then counts most."),
]
Writer = Annotated[
    str | None,
    typer.Option(help="one-pass (default), or autoregressive: symbol by symbol until END."),
]
Placement = Annotated[
    str | None,
    typer.Option(
        help="Where segments end: by surprisal (default), or anchored in the text, so that windows "
        "agree and edits stay local."
    ),
]
Facts = Annotated[
    bool | None,
    typer.Option(
        "--facts/--no-facts",
        help="Say numbers, names and addresses first (default), or what is hardest to guess.",
    ),
]
Surprisal = Annotated[
    str | None,
    typer.Option(
        help="Who says what is hard to guess: the writer, the whole base (slower, better), or auto."
    ),
]
ProfileName = Annotated[
    str,
    typer.Option(
        "--profile", help="legal, default, summary or sliding; other options replace its own."
    ),
]

Protect = Annotated[
    list[str] | None,
    typer.Option(
        help="Keep as text: tables, code, json, numbers, names, urls or re:PATTERN; repeatable."
    ),
]
OutputKind = Annotated[
    str, typer.Option(help="symbols; or text, shorter and readable, for models that know none.")
]
FormatName = Annotated[
    str | None,
    typer.Option("--format", "-f", help="json, compact or symbols; of text, text or json."),
]

SETTINGS: Final = frozenset(CompressSettings.__dataclass_fields__)
"""Options of `compress` that are named as settings are."""
BATCH = 8
"""Documents handed over together; after each batch what is done is written."""


def compress(
    sources: Sources,
    ratio: Ratio = None,
    max_symbols: MaxSymbols = None,
    bits_per_symbol: BitsPerSymbol = None,
    depth: Depth = None,
    window: Window = None,
    context: Context = None,
    memory: Memory = None,
    on_symbols: OnSymbols = None,
    max_tokens: MaxTokens = None,
    exact: Exact = False,
    min_fidelity: MinFidelity = None,
    on_low_fidelity: OnLowFidelity = None,
    question: Question = None,
    emphasis: Emphasis = None,
    writer: Writer = None,
    placement: Placement = None,
    facts: Facts = None,
    surprisal: Surprisal = None,
    profile_: ProfileName = "default",
    protect: Protect = None,
    output: OutputKind = "symbols",
    format_: FormatName = None,
    jsonl: Rows = None,
    store: Store = None,
    out: Out = None,
    bundle: engines.Bundle = DEFAULT_BUNDLE,
    base: engines.Base = None,
    quantization: engines.Quantization = "nf4",
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    debug: Debug = False,
) -> None:
    """Compress texts into symbols, one line for each; or into shorter text (--output text).

    Formats: json has the whole document with its figures; compact is one short ASCII string that
    decompress reads too; symbols is the written form, to be put into prompts. Text, for models that
    know no symbols, is written as it is, or with what was lost as json.

    Example:
      zcontext compress notes.txt --ratio 8 --out notes.spans.jsonl
      cat notes.txt | zcontext compress - --format symbols
      zcontext compress report.md --protect tables --protect code
    """  # noqa: DOC101, DOC103 - the options tell
    options = {name: value for name, value in locals().items() if name in SETTINGS}
    options |= {"exact": exact or None, "protect": tuple(protect or ()) or None}
    chosen = profile(profile_).replace(**options)  # type: ignore[arg-type]  # checked there
    shape = _format(format_, output)
    texts = files.read_sources(sources, field=jsonl)
    opened = engines.open_engines(bundle, base, quantization, dtype, device)
    if output == "text":
        with files.open_sink(out) as sink:
            write_pruned(texts, opened.pruner(), chosen, sink=sink, as_json=shape == "json")
        return
    compressor = opened.compressor(store=store)
    with files.open_sink(out) as sink:
        found = compressed(texts, compressor, chosen)
        _write_symbols(found, opened, shape, sink=sink, settings=chosen)


def _write_symbols(
    found: Iterator[tuple[Source, ZDocument]],
    opened: engines.Engines,
    shape: str,
    *,
    sink: Sink,
    settings: CompressSettings,
) -> None:
    """Write documents line by line; say what was lost, and what exact ones take."""
    totals: list[Sizes] = []
    losses = Losses(settings.min_fidelity, settings.on_low_fidelity)
    spread = False
    for at, (source, document) in enumerate(found):
        # Those without a span need no errata, and are nothing to be held against the model.
        exact = document.exact and document.n_errata_bytes > 0
        bits = opened.token_bits(source.text) if exact else None
        sizes = sizes_of(document, source.text, token_bits=bits)
        losses.add(document)
        if shape == "symbols":
            text = opened.vocabulary.guard(source.text, on_symbols=settings.on_symbols)
            parts = parts_for_readers(document, text, floor=settings.floor)
            line = written_parts(opened.vocabulary, parts)
        else:
            line = written(document, shape, source=source, sizes=sizes)
        spread = spread or "\n" in line
        if spread and at > 0:
            raise ConfigError(
                "protected text of several lines has no place in --format symbols with several "
                "texts; use --format json or compact",
                field="format",
                value=shape,
            )
        sink.line(line)
        if exact:
            totals.append(sizes)
    losses.tell()
    if totals:
        say(f"exact: {sum(totals[1:], totals[0])}")


def decompress(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="What compress wrote, in any format; - is standard input.", metavar="FILE..."
        ),
    ],
    json_: Annotated[
        bool, typer.Option("--json", help="One JSON line per text instead of the bare texts.")
    ] = False,
    out: Out = None,
    bundle: engines.Bundle = DEFAULT_BUNDLE,
    base: engines.Base = None,
    quantization: engines.Quantization = "nf4",
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    debug: Debug = False,
) -> None:
    """Bring texts back from their symbols.

    A single text is written as it is, without a newline of ours; several are each ended by one.

    Example:
      zcontext decompress notes.spans.jsonl
      zcontext compress notes.txt --format compact | zcontext decompress - --json
    """  # noqa: DOC101, DOC103 - the options tell
    lines = files.read_lines(sources)
    opened = engines.open_engines(bundle, base, quantization, dtype, device)
    documents = [read_written(line, opened.vocabulary) for line in lines]
    decompressor = opened.decompressor()
    n_exact = 0
    with files.open_sink(out) as sink, progress_bar("decompressing") as report:
        for start in range(0, len(documents), BATCH):
            batch = documents[start : start + BATCH]
            texts = decompressor.decompress_many(batch)
            for line, document, text in zip(lines[start:], batch, texts, strict=False):
                exact = _is_source(text, document)
                n_exact += exact
                if json_:
                    row = {"source": line.name, "exact": exact, "text": text}
                    sink.line(json.dumps(row, ensure_ascii=False))
                elif len(documents) == 1:
                    sink.write(text)
                else:
                    sink.line(text)
            report("decompressing", start + len(batch), len(documents))
    if not json_:
        sure = "" if n_exact == len(documents) else " (compress --exact makes sure of it)"
        say(f"{n_exact} of {len(documents)} exact, by the SHA-256 of the source{sure}")


def compressed(
    texts: Sequence[Source], compressor: SupportsCompress, settings: CompressSettings
) -> Iterator[tuple[Source, ZDocument]]:
    """Documents of texts, batch by batch, with a progress bar.

    Args:
        texts: The sources.
        compressor: Writes them.
        settings: How.

    Yields:
        Each source with its document, in order.
    """
    if len(texts) == 1:  # one long text: the compressor itself knows how far it is
        watched = errors().is_terminal
        found = compressor.compress_many([texts[0].text], settings=settings, progress=watched)
        yield texts[0], found[0]
        return
    with progress_bar("compressing") as report:
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            found = compressor.compress_many([source.text for source in batch], settings=settings)
            report("compressing", start + len(batch), len(texts))
            yield from zip(batch, found, strict=True)


def written(document: ZDocument, shape: str, *, source: Source, sizes: Sizes) -> str:
    """A document as one line.

    Args:
        document: What was compressed.
        shape: "json" or "compact".
        source: The text it was written from.
        sizes: What it and its text take.

    Returns:
        The line, without its end.
    """
    if shape == "compact":
        return document.to_compact()
    row = {
        "source": source.name,
        "n_tokens": document.n_tokens,
        "n_symbols": document.n_symbols,
        "n_positions": document.n_positions,
        "ratio": round(document.ratio, 3) if document.n_positions else None,
        "bits": sizes.bits,
        "errata_bits": sizes.errata_bits,
        "total_bits": sizes.total_bits,
        "utf8_bits": sizes.utf8_bits,
        "gzip_bits": sizes.gzip_bits,
        "zstd_bits": sizes.zstd_bits,
        "model_bits": sizes.model_bits,
        "exact": document.exact,
        "document": document.to_dict(),
    }
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _is_source(text: str, document: ZDocument | Symbols) -> bool:
    """Whether a decompression is what was compressed; bare symbols do not know."""
    digest = sha256(text.encode("utf-8", "replace")).hexdigest()
    return isinstance(document, ZDocument) and document.text_sha256 == digest


def read_written(line: Source, vocabulary: ZVocabulary) -> ZDocument | Symbols:
    """The inverse of `written`, for any format.

    Args:
        line: One line.
        vocabulary: The written form of symbols.

    Returns:
        A document, or symbols where only they were written.

    Raises:
        ConfigError: The line is none of the formats, or was altered; it says which line.
    """
    text = line.text
    try:
        if text.startswith("{"):
            row = json.loads(text)
            return ZDocument.from_dict(row.get("document", row))
        if text.startswith("zdoc"):
            return ZDocument.from_compact(text)
        return vocabulary.parse(text)
    except (ZContextError, ValueError, RecursionError) as error:
        raise ConfigError(f"{line.name}: {error}", field="sources", value=line.name) from error


def _format(name: str | None, output: str) -> str:
    """The format asked for, or the usual one of the output."""
    formats = {"symbols": ("json", "compact", "symbols"), "text": ("text", "json")}.get(output)
    if formats is None:
        raise ConfigError(
            f"output must be symbols or text, got {output!r}", field="output", value=output
        )
    if name not in (None, *formats):
        raise ConfigError(
            f"format must be {', '.join(formats[:-1])} or {formats[-1]}, got {name!r}",
            field="format",
            value=name,
        )
    return name or formats[0]
