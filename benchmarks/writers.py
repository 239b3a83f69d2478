"""The autoregressive writer beside the one-pass writer, at equal numbers of symbols.

    python benchmarks/writers.py texts.jsonl.gz --bundle runs/gpu-autoregress/bundle --texts 20

Every text is one window. The autoregressive writer is asked for a ratio and decides how many
symbols it takes; the one-pass writer then gets exactly as many. For both: the share of tokens that
read back right, bits still missing per token, and seconds for each symbol (the best of `--repeats`,
the two writers in turn; on a CPU those of the process, so that other work on the machine does not
count). Then the lengths that were chosen, for the denser and the more predictable half of the texts
by the writer's own estimate of surprisal. The bundle must have the part "compose"; with --untrained
it is taken as it is before any training. One JSON line per ratio.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.fidelity import overall_fidelity
from zcontext.spans import ZDocument
from zcontext.tokenization import text_tokenizer
from zcontext.training.data import read_texts


def windows(compressor: ZCompressor, corpus: str, *, n_texts: int, n_tokens: int) -> list[str]:
    """Texts of one window each, cut where their tokens are."""
    tokens = text_tokenizer(compressor.model.tokenizer)
    found: list[str] = []
    for text in read_texts(corpus):
        located = tokens.locate(text, max_tokens=5_000_000)
        if len(located) > n_tokens:
            found.append(text[: located.char_at(n_tokens)])
        if len(found) == n_texts:
            break
    return found


def surprisal(compressor: ZCompressor, text: str) -> float:
    """Mean bits a token, as the writer estimates them."""
    model = compressor.model
    ids = torch.tensor([text_tokenizer(model.tokenizer).ids(text)], device=model.device)
    with model.using("compress"), torch.no_grad():
        return float(model.read(ids, torch.ones_like(ids)).surprisal.mean())


def seconds(compressor: ZCompressor, text: str, *, repeats: int, **how: Any) -> float:
    """The best time of some."""
    clock = time.process_time if compressor.model.device.type == "cpu" else time.perf_counter
    taken = []
    for _ in range(repeats):
        started = clock()
        compressor.compress(text, **how)
        taken.append(clock() - started)
    return min(taken)


def figures(documents: Sequence[ZDocument]) -> dict[str, float]:
    """Quality of documents that were measured."""
    n_tokens = sum(document.n_tokens for document in documents)
    measured = [overall_fidelity(document) for document in documents]
    pairs = zip(documents, measured, strict=True)
    right = sum(each.token_accuracy * document.n_tokens for document, each in pairs)
    return {
        "token_accuracy": round(right / n_tokens, 4),
        "bits_missing_per_token": round(sum(each.bits_missing for each in measured) / n_tokens, 4),
    }


def chosen_ratio(documents: Sequence[ZDocument]) -> float:
    """Tokens over symbols of some documents together."""
    n_symbols = sum(document.n_symbols for document in documents)
    return round(sum(document.n_tokens for document in documents) / n_symbols, 3)


def compare(
    compressor: ZCompressor, texts: Sequence[str], bits: Sequence[float], options: Any, ratio: float
) -> dict[str, Any]:
    """One row: both writers at one ratio."""
    settings = CompressSettings(window=options.tokens * 2, min_fidelity=0.0, on_symbols="escape")
    plain = CompressSettings(window=options.tokens * 2, on_symbols="escape")
    by_steps: list[ZDocument] = []
    at_once: list[ZDocument] = []
    spent = {"autoregressive": 0.0, "one-pass": 0.0}
    for text in texts:
        by_steps.append(
            compressor.compress(text, settings=settings, ratio=ratio, writer="autoregressive")
        )
        n = by_steps[-1].n_symbols
        at_once.append(compressor.compress(text, settings=settings, max_symbols=n))
        for writer, how in (("autoregressive", {"ratio": ratio}), ("one-pass", {"max_symbols": n})):
            spent[writer] += seconds(
                compressor, text, repeats=options.repeats, settings=plain, writer=writer, **how
            )
    order = sorted(range(len(texts)), key=lambda at: bits[at])
    half = len(order) // 2
    predictable, dense = order[:half], order[-half:]
    n_symbols = sum(document.n_symbols for document in by_steps)
    return {
        "asked": ratio,
        "chosen": chosen_ratio(by_steps),
        "texts": len(texts),
        "autoregressive": figures(by_steps),
        "one-pass": figures(at_once),
        "seconds_per_symbol": {
            writer: round(total / n_symbols, 5) for writer, total in spent.items()
        },
        "codes_alike": round(alike(by_steps, at_once), 4),
        "predictable": {
            "bits_per_token": round(sum(bits[at] for at in predictable) / half, 3),
            "chosen": chosen_ratio([by_steps[at] for at in predictable]),
        },
        "dense": {
            "bits_per_token": round(sum(bits[at] for at in dense) / half, 3),
            "chosen": chosen_ratio([by_steps[at] for at in dense]),
        },
    }


def alike(ones: Sequence[ZDocument], others: Sequence[ZDocument]) -> float:
    """Share of codes that both writers gave the symbol in the same place, in any order."""
    same = total = 0
    for one, other in zip(ones, others, strict=True):
        for codes, theirs in zip(one.symbols.codes, other.symbols.codes, strict=True):
            same += len(set(codes) & set(theirs))
            total += len(set(codes))
    return same / total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", help="texts: a .txt, .md or .jsonl file, or a folder")
    parser.add_argument("--bundle", default="smollm2-135m")
    parser.add_argument("--untrained", action="store_true", help="add the part as it begins")
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--ratio", type=float, action="append")
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=96, help="of each text")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    compressor = ZCompressor.from_bundle(options.bundle, quantization=options.quantization)
    if options.untrained:
        compressor.model.add_composer()
        compressor.model.seal()
    texts = windows(compressor, options.corpus, n_texts=options.texts, n_tokens=options.tokens)
    bits = [surprisal(compressor, text) for text in texts]
    rows = []
    for ratio in options.ratio or [4.0, 8.0]:
        rows.append(compare(compressor, texts, bits, options, ratio))
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
