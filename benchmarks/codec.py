"""What the codec's own choices are worth: where slots stand, who gets symbols, and Z memory.

    python benchmarks/codec.py ../shared/data/corpus/wikitext2-dev.jsonl.gz

Teacher-forced: c is the decompressor's bits per token behind the symbols. Every pair is measured on
the same texts, and each difference has a 95 % bootstrap interval over texts.

The JSON::

    {"schema": 1, "bundle", "codec", "windows", "documents",
     "placement": [{"ratio", "depth", "effective_ratio", "hardest", "even", "difference",
                    "right": {"hardest", "even"}}],          # c of each; below 0: hardest is better
     "density": [{"ratio", "by_surprisal": {"dense", "plain", "quotient"},
                  "by_facts": ...}],   # symbols a token; facts are numbers and names
     "memory": [{"ratio", "depth", "documents", "symbols",
                 "with", "without", "difference"}]}                   # c of each; below 0: it pays
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import zcontext.writing
from zcontext import CompressSettings, ZCompressor, ZDocument
from zcontext.bundle import load_bundle
from zcontext.bundles import find_bundle
from zcontext.evaluation.foretellers import PlainForeteller
from zcontext.evaluation.metrics import bootstrap
from zcontext.evaluation.report import write_json
from zcontext.fidelity import Reading, read_spans
from zcontext.fragile import fragile_places
from zcontext.naming import place_symbols
from zcontext.segmentation import place_evenly
from zcontext.tokenization import text_tokenizer
from zcontext.training.data import read_texts

DOCUMENT_TOKENS = 4096
MEMORY = 64


@contextmanager
def slots_placed(how: Any) -> Iterator[None]:
    """Have the writer cut its windows in another way."""
    zcontext.writing.place_symbols = how
    try:
        yield
    finally:
        zcontext.writing.place_symbols = place_symbols


def evenly(
    config: object, surprisal: torch.Tensor, n_slots: int, **ignored: object
) -> torch.Tensor:
    """Segments of equal length, whatever is in them."""
    return torch.stack([place_evenly(len(row), n_slots) for row in surprisal])


def readings(compressor: ZCompressor, document: ZDocument, text: str) -> list[Reading]:
    """A document's spans, read against their text."""
    model = compressor.model
    tokens = text_tokenizer(model.tokenizer).locate(text, max_tokens=len(text))
    return list(read_spans(model, document, tokens))


def bits_of(found: list[Reading]) -> float:
    """Bits per token."""
    return sum(sum(each.bits) for each in found) / sum(len(each.bits) for each in found)


def right_of(found: list[Reading]) -> float:
    """Share of tokens right."""
    return sum(sum(each.right) for each in found) / sum(len(each.right) for each in found)


def estimate(values: list[float]) -> list[float]:
    """Mean and the ends of its interval."""
    found = bootstrap(values)
    return [round(x, 4) for x in (found.value, found.low, found.high)]


def placement(
    compressor: ZCompressor, texts: list[str], *, ratio: float, depth: int
) -> dict[str, Any]:
    """Slots by what is hardest to guess against even ones, at equal ratio."""
    settings = CompressSettings(ratio=ratio, depth=depth)
    c: dict[str, list[float]] = {"hardest": [], "even": []}
    right: dict[str, list[float]] = {"hardest": [], "even": []}
    ratios = []
    for text in texts:
        for name, how in (("hardest", place_symbols), ("even", evenly)):
            with slots_placed(how):
                document = compressor.compress(text, settings=settings)
            found = readings(compressor, document, text)
            c[name].append(bits_of(found))
            right[name].append(right_of(found))
        ratios.append(document.ratio)
    return {
        "ratio": ratio,
        "depth": depth,
        "effective_ratio": round(sum(ratios) / len(ratios), 2),
        **{name: estimate(values) for name, values in c.items()},
        "difference": estimate([a - b for a, b in zip(c["hardest"], c["even"], strict=True)]),
        "right": {name: estimate(values) for name, values in right.items()},
    }


def density(compressor: ZCompressor, texts: list[str], *, ratio: float) -> dict[str, Any]:
    """Symbols a token in the densest third of the windows, and in the least dense one.

    Dense is what is hard to guess for the plain base, or what is rich in numbers and names.
    """
    judge = PlainForeteller(compressor.model)
    rows = []
    for text in texts:
        document = compressor.compress(text, ratio=ratio)
        ids = text_tokenizer(compressor.model.tokenizer).ids(text)
        for span in document.spans:
            n = len(span.tokens)
            facts = len(fragile_places(text[span.chars.start : span.chars.end])) / n
            bits = judge.bits([], ids[span.tokens.start : span.tokens.end])
            rows.append({"surprisal": bits, "facts": facts, "symbols": len(span.symbols) / n})
    return {"ratio": ratio, **{f"by_{name}": thirds(rows, name) for name in ("surprisal", "facts")}}


def thirds(rows: list[dict[str, float]], by: str) -> dict[str, Any]:
    """Symbols a token in the first and the last third of some windows, ordered by something."""
    ordered = [row["symbols"] for row in sorted(rows, key=lambda row: row[by])]
    third = len(rows) // 3
    plain, dense = ordered[:third], ordered[-third:]
    return {
        "dense": estimate(dense),
        "plain": estimate(plain),
        "quotient": round(sum(dense) / sum(plain), 3),
    }


def memory(
    compressor: ZCompressor, texts: list[str], *, ratio: float, depth: int
) -> dict[str, Any]:
    """C with and without symbols of earlier windows in front."""
    c: dict[int, list[float]] = {MEMORY: [], 0: []}
    for text in texts:
        for n in c:
            settings = CompressSettings(ratio=ratio, depth=depth, memory=n)
            document = compressor.compress(text, settings=settings)
            c[n].append(bits_of(readings(compressor, document, text)))
    return {
        "ratio": ratio,
        "depth": depth,
        "documents": len(texts),
        "symbols": MEMORY,
        "with": estimate(c[MEMORY]),
        "without": estimate(c[0]),
        "difference": estimate([a - b for a, b in zip(c[MEMORY], c[0], strict=True)]),
    }


def cut(compressor: ZCompressor, texts: list[str], n_tokens: int, limit: int) -> list[str]:
    """Texts of so many tokens, of paragraphs that follow each other."""
    whole = "\n\n".join(texts)
    tokens = text_tokenizer(compressor.model.tokenizer).locate(whole, max_tokens=len(whole))
    step = max(n_tokens, len(tokens) // limit)
    starts = list(range(0, len(tokens) - n_tokens, step))[:limit]
    return [whole[tokens.char_at(at) : tokens.char_at(at + n_tokens)] for at in starts]


def main() -> None:
    """Measure, say it, write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="texts that training never saw")
    parser.add_argument("--bundle", default="smollm2-135m")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/codec.json"))
    options = parser.parse_args()
    chosen = {"quantization": options.quantization, "dtype": options.dtype}
    compressor = ZCompressor(load_bundle(find_bundle(options.bundle), **chosen))
    texts = list(read_texts(options.data))
    windows = cut(compressor, texts, 100, options.windows)
    documents = cut(compressor, texts, DOCUMENT_TOKENS, options.documents)
    report: dict[str, Any] = {
        "schema": 1,
        "bundle": Path(options.bundle).name,
        "codec": compressor.codec,
        "windows": len(windows),
        "documents": len(documents),
    }
    parts = {
        "placement": functools.partial(placement, compressor, windows),
        "density": functools.partial(density, compressor, documents),
        "memory": functools.partial(memory, compressor, documents),
    }
    depth = compressor.model.config.depth
    runs: list[tuple[str, dict[str, Any]]] = [
        *(("placement", {"ratio": r, "depth": d}) for d in (depth, 1) for r in (4.0, 8.0, 16.0)),
        *(("density", {"ratio": r}) for r in (4.0, 8.0, 16.0)),
        *(("memory", {"ratio": 16.0, "depth": d}) for d in (depth, 1)),
    ]
    for name, asked in runs:
        row = parts[name](**asked)
        report.setdefault(name, []).append(row)
        print(name, row, flush=True)
        write_json(report, options.out)


if __name__ == "__main__":
    main()
