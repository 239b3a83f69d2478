"""`inspect`: where symbols went, what codes mean, what overlapping windows agree on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zcontext.bundles import DEFAULT_BUNDLE
from zcontext.cli import engines, files
from zcontext.cli.console import Debug, progress_bar, results
from zcontext.cli.spanning import Depth, Exact, Placement, Ratio, compressed
from zcontext.config import DEFAULT_RATIO, CompressSettings
from zcontext.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from zcontext.overlaps import Agreement
    from zcontext.polysemy.study import CodeReport

SUFFIXES = {".txt", ".md", ".rst"}
"""Files of a folder that are read."""

_CODES, _OVERLAP = "What codes mean", "Overlapping windows"


Source = Annotated[
    str,
    typer.Argument(help="A text file in UTF-8, or - for standard input; with --codes a folder."),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", help="Also write one HTML page: the heat map, or that of --codes."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="With --codes or --overlap: also write figures as JSON."),
]
Codes = Annotated[
    bool,
    typer.Option("--codes", help="What the codes mean in this text.", rich_help_panel=_CODES),
]
Pairs = Annotated[
    Path | None,
    typer.Option("--pairs", help="JSON lines with paraphrases a and b.", rich_help_panel=_CODES),
]
NCodes = Annotated[int, typer.Option(help="Codes looked at one by one.", rich_help_panel=_CODES)]
NContexts = Annotated[int, typer.Option(help="Contexts shown of each.", rich_help_panel=_CODES)]
MaxTokens = Annotated[int, typer.Option(help="Tokens looked at in all.", rich_help_panel=_CODES)]
Overlap = Annotated[
    bool,
    typer.Option("--overlap", help="How far windows that overlap agree.", rich_help_panel=_OVERLAP),
]
Window = Annotated[int, typer.Option(help="Tokens of a window.", rich_help_panel=_OVERLAP)]
Stride = Annotated[
    int, typer.Option(help="Tokens from window to window.", rich_help_panel=_OVERLAP)
]


def inspect(
    source: Source,
    ratio: Ratio = None,
    depth: Depth = None,
    exact: Exact = False,
    placement: Placement = None,
    html: Html = None,
    out: Out = None,
    codes: Codes = False,
    pairs: Pairs = None,
    n_codes: NCodes = 40,
    n_contexts: NContexts = 4,
    max_tokens: MaxTokens = 20_000,
    overlap: Overlap = False,
    window: Window = 1024,
    stride: Stride = 256,
    bundle: engines.Bundle = DEFAULT_BUNDLE,
    base: engines.Base = None,
    quantization: engines.Quantization = "nf4",
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    debug: Debug = False,
) -> None:
    """Show a text coloured by how many symbols each piece of it gets.

    With --codes, show instead what the codes mean in it: how often they fire, how alike their
    contexts are, what paraphrases share. With --overlap, show how far windows that overlap agree.

    Example:
      zcontext inspect notes.txt --ratio 8 --html notes.html
      zcontext inspect notes/ --codes --pairs paraphrases.jsonl --html codes.html --out codes.json
      zcontext inspect notes.txt --overlap --window 1024 --stride 256 --placement anchored
    """  # noqa: DOC101, DOC103 - the options tell
    opened = engines.open_engines(bundle, base, quantization, dtype, device)
    settings = CompressSettings(ratio=ratio or DEFAULT_RATIO, depth=depth, exact=exact)
    settings = settings.replace(placement=placement)
    if codes and overlap:
        raise ConfigError("give --codes or --overlap, not both", field="codes", value=True)
    if codes:
        look = {"n_codes": n_codes, "n_contexts": n_contexts}
        found = _codes(source, opened, settings, pairs=pairs, max_tokens=max_tokens, look=look)
        results().print(_code_table(found))
        _write_page(found, source, html)
        _write_json(found.to_dict(), out)
    elif overlap:
        agreement = _overlap(source, opened, settings, window=window, stride=stride)
        results().print(_overlap_table(agreement))
        _write_json(agreement.to_dict(), out)
    else:
        _heat_map(source, opened, settings, html=html)


def _heat_map(
    source: str, opened: engines.Engines, settings: CompressSettings, *, html: Path | None
) -> None:
    from zcontext import inspection

    (text,) = files.read_sources([source])
    shown = opened.vocabulary.guard(text.text, on_symbols="escape")
    ((_, document),) = compressed([files.Source(text.name, shown)], opened.compressor(), settings)
    pieces = inspection.pieces_of(document, shown, starts=opened.token_starts(shown))
    results().print(inspection.terminal_view(pieces, document=document))
    if html is not None:
        with files.open_sink(html) as sink:
            title = _named(source)
            sink.write(inspection.html_page(pieces, document=document, title=title))


def _codes(
    source: str,
    opened: engines.Engines,
    settings: CompressSettings,
    *,
    pairs: Path | None,
    max_tokens: int,
    look: dict[str, int],
) -> CodeReport:
    from zcontext.polysemy.codes import LookSettings
    from zcontext.polysemy.study import PolysemySettings, study_codes

    chosen = PolysemySettings(compress=settings, max_tokens=max_tokens, look=LookSettings(**look))
    texts = [text.text for text in _texts(source)]
    paraphrases = [] if pairs is None else list(_paraphrases(pairs))
    with progress_bar("looking at codes") as report:
        return study_codes(
            texts,
            compressor=opened.compressor(),
            model=opened.model,
            pairs=paraphrases,
            settings=chosen,
            progress=report,
        )


def _write_page(found: CodeReport, source: str, html: Path | None) -> None:
    from zcontext.polysemy.page import code_page

    if html is not None:
        with files.open_sink(html) as sink:
            sink.write(code_page(found, title=f"What the codes mean in {_named(source)}"))


def _overlap(
    source: str, opened: engines.Engines, settings: CompressSettings, *, window: int, stride: int
) -> Agreement:
    from zcontext.overlaps import measure_overlaps
    from zcontext.tokenization import text_tokenizer
    from zcontext.windows import WindowPlan

    plan = WindowPlan.sliding(window=window, stride=stride)
    (text,) = files.read_sources([source])
    with progress_bar("writing windows") as report:
        return measure_overlaps(
            text_tokenizer(opened.model.tokenizer).ids(text.text),
            model=opened.model,
            plan=plan,
            ratio=settings.ratio or DEFAULT_RATIO,
            depth=settings.depth,
            placement=settings.placement,
            progress=report,
        )


def _named(source: str) -> str:
    return "standard input" if source == files.STDIN else Path(source).name


def _texts(source: str) -> list[files.Source]:
    """The texts of a file or of a folder, in the order of their names."""
    folder = Path(source)
    if source == files.STDIN or not folder.is_dir():
        return files.read_sources([source])
    names = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not names:
        raise ConfigError(
            f"the folder {source} holds no file that ends in {', '.join(sorted(SUFFIXES))}; give "
            "the files' folder, or one file",
            field="source",
            value=source,
        )
    return files.read_sources(names)


def _paraphrases(path: Path) -> Iterator[tuple[str, str]]:
    sides = [files.read_sources([str(path)], field=field) for field in ("a", "b")]
    for a, b in zip(*sides, strict=True):
        yield a.text, b.text


def _write_json(figures: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        with files.open_sink(out) as sink:
            sink.write(json.dumps(figures, ensure_ascii=False, indent=1) + "\n")


def _code_table(found: CodeReport) -> Table:
    usage, alike = found.usage, found.consistency
    rows = [
        ("tokens", f"{found.n_tokens:,}", ""),
        ("symbols", f"{usage.n_symbols:,}", ""),
        ("codes that fired", f"{usage.n_used:,} of {usage.n_codes:,}", ""),
        ("entropy, bits", f"{usage.entropy_bits:.2f}", ""),
        ("Zipf slope", f"{usage.zipf_slope:.2f}", ""),
        ("contextual consistency", *_two(alike.codes, alike.shuffled)),
        ("the same, mean state taken away", *_two(alike.centred, alike.centred_shuffled)),
    ]
    if found.paraphrases is not None:
        shared = found.paraphrases
        rows.append(("codes shared by paraphrases", *_two(shared.codes, shared.codes_random)))
        rows.append(("tokens shared by paraphrases", *_two(shared.tokens, shared.tokens_random)))
    return _table(rows)


def _overlap_table(found: Agreement) -> Table:
    return _table(
        [
            ("windows", f"{found.n_windows:,} of {found.window:,}, stride {found.stride:,}", ""),
            ("placement", found.placement, ""),
            ("tokens in overlaps", f"{found.n_tokens:,}", ""),
            ("segments end alike", f"{found.ends:.3f}", f"{found.ends_by_chance:.3f}"),
            ("segments coincide", f"{found.segments:.3f}", ""),
            ("symbols compared", f"{found.n_symbols:,}", ""),
            ("codes shared", f"{found.codes:.3f}", f"{found.codes_by_chance:.3f}"),
            ("identical symbols", f"{found.identical:.3f}", ""),
        ]
    )


def _two(spread: Any, chance: Any) -> tuple[str, str]:
    return f"{spread.mean:.3f} +- {spread.std:.3f}", f"{chance.mean:.3f} +- {chance.std:.3f}"


def _table(rows: list[tuple[str, str, str]]) -> Table:
    from rich.table import Table

    table = Table("", "found", "by chance")
    for row in rows:
        table.add_row(*row)
    return table
