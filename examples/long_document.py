"""Compress a long document window by window, keep it in a store, and ask it questions.

    python examples/long_document.py FILE "question" ["question" ...]

The second run on a file finds its symbols in `spans.sqlite` beside it and compresses nothing.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from zcontext import GenerationSettings, Inferencer, Ledger, SQLiteStore, ZCompressor
from zcontext.inspection import pieces_of


def main(file: str, *questions: str, model: str = "smollm2-135m", ratio: float = 4) -> None:
    """Print what was saved, the densest window, and the answers from symbols."""
    path = Path(file)
    text = path.read_text("utf-8")
    with SQLiteStore(path.with_name("spans.sqlite")) as store:
        compressor = ZCompressor.from_bundle(model, store=store)
        started = time.perf_counter()
        (document,) = compressor.compress_many([text], ratio=ratio, progress=sys.stderr.isatty())
        seconds = time.perf_counter() - started
    ledger = Ledger(kv_bytes_per_position=compressor.model.kv_bytes_per_position)
    ledger.add(document)
    print(f"{len(document.spans)} windows, {document.n_tokens:,} tokens -> {document.n_symbols:,}"
          f" symbols, {seconds:.1f} s\n{ledger}")  # fmt: skip
    densest = max(pieces_of(document, text), key=lambda piece: piece.density, default=None)
    if densest is not None:
        print(f"densest window: {densest.note}\n  {' '.join(densest.text.split())[:90]}...")

    reader = Inferencer(compressor.model)
    settings = GenerationSettings(max_new_tokens=32, stop=("\n",))
    for question in questions:
        (asked,) = compressor.compress_together([document], question=question)
        answer = reader.ask(question, [asked.symbols], settings=settings)
        print(f"{question}\n  {answer.text.strip()}  ({answer.seconds:.1f} s)")


if __name__ == "__main__":
    main(*sys.argv[1:])
