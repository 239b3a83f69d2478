"""What compression costs and what it saves, against a plain prefill and raw prompts.

    python benchmarks/cost.py --out benchmarks/results/cost.json --plot

Every length runs in a process of its own, in which all conditions take turns, so that ratios come
from one run; every peak of memory is that of one more process. Figures are medians of repeats.
Answers are forced to the same number of tokens, whatever the reader would say.

The JSON, all times in seconds::

    {"schema": 1, "bundle", "codec", "text", "started", "seconds", "repeats", "answer_tokens",
     "machine": {"cpu", "cores", "threads", "accelerator", "system", "python", "torch",
                 "transformers", "malloc_tuned"},
     "model": {"base", "quantization", "dtype", "kv_bytes_per_position"},
     "rows": [                                             # one per length, shortest first
       {"n_tokens",                                        # of the source
        "prefill_seconds", "prefill_tokens_per_second",    # plain base, no scores, cache kept
        "raw":        {"n_positions", "first_token_seconds", "total_seconds", "kv_bytes"},
        "raw_cached": {the same},                          # the prompt up to the question was kept
        "peak_bytes": {"raw"},                             # above the loaded model; null: unknown
        "spans": [                                         # one per ratio, in the order given
          {"ratio", "n_symbols", "effective_ratio", "document_bytes",
           "compress_seconds", "compress_tokens_per_second",
           "compress_over_prefill",                        # speed over that of a plain prefill
           "cold":   {...},    # text is compressed, then read
           "stored": {...},    # symbols come from a SQLite store
           "cached": {...},    # the prompt up to the question was kept
           "first_token_speedup", "total_speedup",         # raw over stored
           "cached_total_speedup",                         # raw_cached over cached
           "break_even_questions",         # each question reads its prompt from the start
           "break_even_questions_cached",  # both sides keep the prefix; null: never
           "peak_bytes": {"compress", "stored"}}]}]}

`kv_bytes` is what the cache holds when the first token comes, measured on its tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from zcontext.evaluation.timing import MALLOC, machine, peak_of, text_of, time_length

LENGTHS = (1_000, 2_000, 4_000, 8_000)
RATIOS = (4.0, 8.0)
DOCUMENTS = Path(__file__).parent.parent / "examples" / "documents"
# For memory: what is freed goes back, so that a peak is what was needed.
FRUGAL = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def source_text(path: Path) -> str:
    """The text of a file, or of a folder's .txt files."""
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    if not text.strip():
        raise SystemExit(f"{path}: no text in it; give a .txt file, or a folder of them")
    return text + "\n\n"


def child(options: argparse.Namespace) -> None:
    """One length's times, or one peak, as a line of JSON."""
    from zcontext import ZCompressor

    started = time.perf_counter()
    model = ZCompressor.from_bundle(options.bundle, quantization=options.quantization).model
    text = text_of(model, source_text(options.text), options.length)
    if options.peak:
        print(json.dumps(peak_of(model, text, options.peak, options.ratios[0])))
        return

    def tell(what: str) -> None:
        seconds = time.perf_counter() - started
        print(f"  {options.length:,} tokens, {what} ({seconds:.0f} s)", file=sys.stderr, flush=True)

    given = {"ratios": options.ratios, "n_output": options.answer_tokens}
    short = text_of(model, source_text(options.text), min(options.length, 256))
    time_length(model, short, repeats=1, **given)  # first passes cost more
    row = time_length(model, text, repeats=options.repeats, tell=tell, **given)
    facts = {
        "base": model.base.name,
        "quantization": model.base.quantization,
        "dtype": str(model.base.dtype).removeprefix("torch."),
        "kv_bytes_per_position": model.kv_bytes_per_position,
    }
    line = {"row": row, "codec": model.codec, "model": facts, "machine": machine(model)}
    print(json.dumps(line))


def spawn(options: argparse.Namespace, length: int, *more: str, malloc: dict[str, str]) -> Any:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--length", str(length), "--bundle", options.bundle]
    command += ["--text", str(options.text), "--quantization", options.quantization]
    command += ["--repeats", str(options.repeats), "--answer-tokens", str(options.answer_tokens)]
    command += more or ("--ratios", *map(str, options.ratios))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**clean, **malloc}
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole table."""
    started = time.time()
    report: dict[str, Any] = {
        "schema": 1,
        "bundle": Path(options.bundle).name,
        "codec": "",
        "text": options.text.name,
        "started": time.strftime("%Y-%m-%d", time.gmtime(started)),
        "seconds": 0.0,
        "repeats": options.repeats,
        "answer_tokens": options.answer_tokens,
    }
    rows = []
    todo = sum(options.lengths)
    for length in sorted(options.lengths):
        timed = spawn(options, length, malloc=MALLOC)
        report |= {name: timed[name] for name in ("codec", "machine", "model")}
        row = timed["row"]
        if not options.no_memory:
            for at, ratio in enumerate(options.ratios):
                kinds = ("compress", "stored") if at else ("compress", "stored", "raw")
                for kind in kinds:
                    more = ("--peak", kind, "--ratios", str(ratio))
                    of = row if kind == "raw" else row["spans"][at]
                    of["peak_bytes"][kind] = spawn(options, length, *more, malloc=FRUGAL)
        rows.append(row)
        show(row)
        done = sum(sorted(options.lengths)[: len(rows)])
        if done < todo:
            left = (time.time() - started) * (todo - done) / done
            print(f"about {left / 60:.0f} minutes left", file=sys.stderr, flush=True)
    return {**report, "seconds": time.time() - started, "rows": rows}


def show(row: dict[str, Any]) -> None:
    """A row as a line for each ratio."""
    for span in row["spans"]:
        print(
            f"{row['n_tokens']:>7,} tokens  ratio {span['ratio']:g}  first token: "
            f"raw {row['raw']['first_token_seconds']:.2f} s, "
            + ", ".join(
                f"{name} {span[name]['first_token_seconds']:.2f} s"
                for name in ("cold", "stored", "cached")
            )
            + f"  compression at {span['compress_over_prefill']:.2f} of prefill speed, "
            f"paid after {span['break_even_questions'] or 'no number of'} question(s)",
            flush=True,
        )


def plot(report: dict[str, Any], path: Path) -> None:
    """Time to the first token against length, for every ratio."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from zcontext.evaluation.plots import draw_times

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    draw_times(report["rows"], axes)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Measure, write the JSON, and draw where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="smollm2-135m", help="name or folder")
    parser.add_argument("--text", type=Path, default=DOCUMENTS, help="a .txt file or a folder")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="source tokens")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--answer-tokens", type=int, default=16)
    parser.add_argument("--quantization", default="nf4", help="of the base")
    parser.add_argument("--no-memory", action="store_true", help="leave peaks of memory out")
    parser.add_argument("--quick", action="store_true", help="500 and 1,000 tokens, ratio 4, once")
    parser.add_argument("--plot", action="store_true", help="also a .png beside the JSON")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cost.json"))
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.length:
        child(options)
        return
    if options.quick:
        options.lengths, options.ratios, options.repeats = (500, 1_000), (4.0,), 1
    from zcontext.evaluation.report import write_json

    report = measure(options)
    write_json(report, options.out)
    if options.plot:
        plot(report, options.out.with_suffix(".png"))
    print(f"{options.out}: {report['seconds'] / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
