"""`compress`, `decompress` and `inspect`: text to symbols, symbols to text, and where they went."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zcontext.bundles import DEFAULT_BUNDLE
from zcontext.cli import engines, files
from zcontext.cli.console import Debug, errors, progress_bar, results, say
from zcontext.config import DEFAULT_RATIO, CompressSettings, profile
from zcontext.errors import ConfigError, ZContextError
from zcontext.spans import SupportsCompress, ZDocument
from zcontext.vocabulary import Symbols, ZVocabulary, utf8_bytes

if TYPE_CHECKING:
    from zcontext.cli.files import Source

Format = Literal["json", "compact", "symbols"]

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
ProfileName = Annotated[
    str, typer.Option("--profile", help="legal, default or summary; other options replace its own.")
]

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
    exact: Exact = False,
    min_fidelity: MinFidelity = None,
    on_low_fidelity: OnLowFidelity = None,
    profile_: ProfileName = "default",
    format_: Annotated[
        str, typer.Option("--format", "-f", help="json, compact or symbols.")
    ] = "json",
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
    """Compress texts into symbols, one line for each.

    Formats: json has the whole document with its figures; compact is one short ASCII string that
    decompress reads too; symbols is the written form, to be put into prompts.

    Example:
      zcontext compress notes.txt --ratio 8 --out notes.spans.jsonl
      cat notes.txt | zcontext compress - --format symbols
    """  # noqa: DOC101, DOC103 - the options tell
    chosen = profile(profile_).replace(  # type: ignore[arg-type]  # checked there
        ratio=ratio,
        max_symbols=max_symbols,
        bits_per_symbol=bits_per_symbol,
        depth=depth,
        window=window,
        context=context,
        memory=memory,
        on_symbols=on_symbols,
        exact=exact or None,
        min_fidelity=min_fidelity,
        on_low_fidelity=on_low_fidelity,
    )
    shape = _format(format_)
    texts = files.read_sources(sources, field=jsonl)
    compressor = engines.open_engines(bundle, base, quantization, dtype, device).compressor(
        store=store
    )
    with files.open_sink(out) as sink:
        for source, document in compressed(texts, compressor, chosen):
            sink.line(written(document, shape, source=source, vocabulary=compressor.vocabulary))


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
    with files.open_sink(out) as sink, progress_bar("decompressing") as report:
        for start in range(0, len(documents), BATCH):
            batch = documents[start : start + BATCH]
            texts = decompressor.decompress_many(batch)
            for line, document, text in zip(lines[start:], batch, texts, strict=False):
                if json_:
                    row = {"source": line.name, "exact": _exact(document), "text": text}
                    sink.line(json.dumps(row, ensure_ascii=False))
                elif len(documents) == 1:
                    sink.write(text)
                else:
                    sink.line(text)
            report("decompressing", start + len(batch), len(documents))
    if not json_:
        n_exact = sum(map(_exact, documents))
        say(f"{n_exact} of {len(documents)} exact, checked (compress --exact makes them so)")


def inspect(
    source: Annotated[str, typer.Argument(help="A text file in UTF-8; - is standard input.")],
    ratio: Ratio = None,
    depth: Depth = None,
    exact: Exact = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a heat map as one HTML file.")
    ] = None,
    bundle: engines.Bundle = DEFAULT_BUNDLE,
    base: engines.Base = None,
    quantization: engines.Quantization = "nf4",
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    debug: Debug = False,
) -> None:
    """Show a text coloured by how many symbols each piece of it gets.

    Example:
      zcontext inspect notes.txt --ratio 8 --html notes.html
    """  # noqa: DOC101, DOC103 - the options tell
    from zcontext import inspection

    settings = CompressSettings(ratio=ratio or DEFAULT_RATIO, depth=depth, exact=exact)
    (text,) = files.read_sources([source])
    opened = engines.open_engines(bundle, base, quantization, dtype, device)
    shown = opened.vocabulary.guard(text.text, on_symbols="escape")
    ((_, document),) = compressed([files.Source(text.name, shown)], opened.compressor(), settings)
    pieces = inspection.pieces_of(document, shown, starts=opened.token_starts(shown))
    results().print(inspection.terminal_view(pieces, document=document))
    if html is not None:
        with files.open_sink(html) as sink:
            title = "standard input" if source == files.STDIN else Path(source).name
            sink.write(inspection.html_page(pieces, document=document, title=title))


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


def written(document: ZDocument, shape: Format, *, source: Source, vocabulary: ZVocabulary) -> str:
    """A document as one line.

    Args:
        document: What was compressed.
        shape: Which format.
        source: The text it was written from.
        vocabulary: The written form of its symbols.

    Returns:
        The line, without its end.
    """
    if shape == "compact":
        return document.to_compact()
    if shape == "symbols":
        return vocabulary.render(document.symbols)
    row = {
        "source": source.name,
        "n_tokens": document.n_tokens,
        "n_symbols": document.n_symbols,
        "ratio": round(document.ratio, 3) if document.n_symbols else None,
        "bits": document.bits,
        "errata_bits": document.errata_bits,
        "total_bits": document.total_bits,
        "utf8_bits": 8 * document.n_bytes,
        "gzip_bits": 8 * len(gzip.compress(utf8_bytes(source.text), 9, mtime=0)),
        "exact": document.exact,
        "document": document.to_dict(),
    }
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _exact(document: ZDocument | Symbols) -> bool:
    return isinstance(document, ZDocument) and document.exact


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


def _format(name: str) -> Format:
    match name:
        case "json" | "compact" | "symbols":
            return name
    raise ConfigError(
        f"format must be json, compact or symbols, got {name!r}", field="format", value=name
    )
