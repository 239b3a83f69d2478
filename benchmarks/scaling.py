"""Time and memory of compression against length: linear, and bounded.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json

Each length runs in a process of its own, so that its peak memory is its own. Ratios between lengths
come from one run on one machine; single times do not carry over to another.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

LENGTHS = (1_000, 4_000, 16_000, 64_000, 200_000)
DOCUMENTS = Path(__file__).parent.parent / "examples" / "documents"


def measure(n_tokens: int, bundle: str, memory: int) -> dict[str, float]:
    """Compress a text of about `n_tokens` tokens once.

    Args:
        n_tokens: Length wanted.
        bundle: Folder or name of a bundle.
        memory: Symbols of Z memory.

    Returns:
        Tokens, symbols, seconds and peak bytes above those of the loaded model.
    """
    from zcontext import CompressSettings, ZCompressor

    compressor = ZCompressor.from_bundle(bundle)
    source = "\n\n".join(p.read_text(encoding="utf-8") for p in sorted(DOCUMENTS.glob("*.txt")))
    source += "\n\n"
    per_copy = compressor.count_tokens(source)
    text = source * (n_tokens // per_copy + 1)
    text = text[: round(len(text) * n_tokens / compressor.count_tokens(text))]
    compressor.compress(source[:2000], ratio=8)
    loaded = _peak_bytes()
    started = time.perf_counter()
    document = compressor.compress(text, settings=CompressSettings(ratio=8, memory=memory))
    return {
        "n_tokens": document.n_tokens,
        "n_symbols": document.n_symbols,
        "seconds": time.perf_counter() - started,
        "extra_bytes": _peak_bytes() - loaded,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run every length and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="smollm2-135m")
    parser.add_argument("--memory", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.bundle, options.memory)))
        return
    rows = []
    for n_tokens in options.lengths:
        command = [sys.executable, __file__, "--one", str(n_tokens)]
        command += ["--bundle", options.bundle, "--memory", str(options.memory)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(output.strip().splitlines()[-1]))
        first = rows[0]
        row = rows[-1]
        row["seconds_per_token_over_first"] = (row["seconds"] / row["n_tokens"]) / (
            first["seconds"] / first["n_tokens"]
        )
        print(
            f"{row['n_tokens']:>9,} tokens  {row['n_symbols']:>7,} symbols  "
            f"{row['seconds']:8.1f} s  x{row['seconds_per_token_over_first']:.2f} a token  "
            f"+{row['extra_bytes'] / 2**20:.0f} MiB",
            flush=True,
        )
    facts = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    scratch = options.out.with_suffix(".tmp")
    scratch.write_text(
        json.dumps({**facts, "memory": options.memory, "rows": rows}, indent=2) + "\n"
    )
    scratch.replace(options.out)


if __name__ == "__main__":
    main()
