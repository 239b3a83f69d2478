"""The main job on one document: compress it, show it back, answer two questions from symbols.

Run it with `make demo`, or `python examples/demo.py --document FILE --question "..."`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from zcontext import Inferencer, ZCompressor, ZContextError, ZDecompressor, ZDocument
from zcontext.accounting import Ledger
from zcontext.bundles import DEFAULT_BUNDLE
from zcontext.config import CompressSettings, GenerationSettings

DOCUMENTS = Path(__file__).parent / "documents"
QUESTIONS = {
    "memo.txt": ("Who leads the project?", "What is the budget?"),
    "mississippi.txt": ("How long is the river?", "Where did the mouth use to be?"),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--document", type=Path, default=DOCUMENTS / "memo.txt")
    parser.add_argument("--question", action="append", help="asked of the document; repeatable")
    parser.add_argument("--ratio", type=float, default=4.0, help="source tokens per symbol")
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE)
    return parser.parse_args()


def figures(document: ZDocument, *, kv_bytes: int, seconds: dict[str, float]) -> Table:
    """What went in, what came out, what is saved."""
    ledger = Ledger(kv_bytes_per_position=kv_bytes)
    ledger.add(document)
    kept = ledger.savings["kv_bytes"]
    table = Table(title="Compressed", title_justify="left", show_header=False)
    table.add_row("tokens -> symbols", f"{document.n_tokens:,} -> {document.n_symbols:,}")
    table.add_row("ratio", f"{document.ratio:.2f} tokens per symbol, depth {document.depth}")
    table.add_row("bits", f"{document.bits:,} in symbols ({document.n_bytes * 8:,} as UTF-8 text)")
    table.add_row(
        "KV cache", f"{_mib(kept.before.n)} -> {_mib(kept.after.n)}, {_mib(kept.saved)} saved"
    )
    for what, taken in seconds.items():
        table.add_row(what, f"{taken:.1f} s")
    return table


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"


def side_by_side(document: ZDocument, source: str, decompressor: ZDecompressor) -> Table:
    """Every span of the source beside what its symbols alone bring back."""
    table = Table(title="Source and what the symbols say", title_justify="left", show_lines=True)
    table.add_column("source", ratio=1)
    table.add_column("decompressed", ratio=1)
    texts = decompressor.decompress_many(document.spans)
    for span, text in zip(document.spans, texts, strict=True):
        table.add_row(_plain(source[span.chars.start : span.chars.end]), _plain(text))
    return table


def _plain(text: str) -> str:
    return text.strip().replace("[", r"\[")


def answers(
    questions: tuple[str, ...], document: ZDocument, source: str, compressor: ZCompressor
) -> Table:
    """The same questions to the same model: from symbols, from the text, from nothing.

    For each question the stored symbols are written again: their text is not needed for it.
    """
    table = Table(title="Answers", title_justify="left", show_lines=True)
    table.add_column("question")
    for name in ("symbols, written for it", "symbols as stored", "the text", "nothing"):
        table.add_column(f"from {name}")
    reader = Inferencer(compressor.model)
    settings = GenerationSettings(max_new_tokens=24, stop=("\n",))
    for question in questions:
        (written,) = compressor.compress_together([document], question=question)
        told = [
            reader.ask(question, context, settings=settings)
            for context in ([written.symbols], [document.symbols], [source], [])
        ]
        table.add_row(
            question,
            *(
                f"{_plain(answer.text)}\n[dim]{at_positions} positions, {answer.seconds:.1f} s[/]"
                for answer in told
                for at_positions in [answer.n_prompt_tokens + answer.n_prompt_symbols]
            ),
        )
    return table


def main() -> int:
    chosen = arguments()
    console = Console()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # advice on packages not needed here
    source = chosen.document.read_text(encoding="utf-8")
    questions = tuple(chosen.question or QUESTIONS.get(chosen.document.name, ()))
    seconds: dict[str, float] = {}

    console.print(f"[bold]zcontext[/] on {chosen.document.name}, bundle {chosen.bundle}")
    with Progress(console=console, transient=True) as bar:
        bar.add_task("loading the base and the bundle", total=None)
        started = time.perf_counter()
        compressor = ZCompressor.from_bundle(
            chosen.bundle, settings=CompressSettings(ratio=chosen.ratio)
        )
        seconds["loading"] = time.perf_counter() - started
    model = compressor.model

    started = time.perf_counter()
    (document,) = compressor.compress_many([source], progress=console.is_terminal)
    seconds["compressing"] = time.perf_counter() - started
    with Progress(console=console, transient=True) as bar:
        bar.add_task("decompressing", total=None)
        started = time.perf_counter()
        back = side_by_side(document, source, ZDecompressor(model))
        seconds["decompressing"] = time.perf_counter() - started

    console.print(figures(document, kv_bytes=model.kv_bytes_per_position, seconds=seconds))
    console.print(f"the first symbols: {_plain(model.vocabulary.render(document.symbols[:3]))} ...")
    console.print(back)
    if questions:
        console.print(answers(questions, document, source, compressor))
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except ZContextError as error:
        sys.exit(f"demo: {error}")
