"""Write measured figures into the README and the bundle's model card.

    python scripts/publish_figures.py

Reads benchmarks/results/{reconstruct,qa,scaling}.json, as `zcontext eval ... --out` and
benchmarks/scaling.py write them, and replaces what stands between the markers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zcontext.evaluation.pages import RESTORED, number

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BUNDLE = ROOT / "bundles" / "smollm2-135m"
BEGIN, END = "<!-- figures: scripts/publish_figures.py -->", "<!-- end of figures -->"


def load(name: str) -> dict[str, Any]:
    """One result file."""
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return data


def estimate(value: dict[str, float], digits: int) -> str:
    """A figure with its 95 % bootstrap interval."""
    low, high = value["low"], value["high"]
    return f"{value['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def reconstruction(found: dict[str, Any]) -> list[str]:
    """The table of `zcontext eval reconstruct`."""
    rows = sorted(found["rows"], key=lambda row: row["ratio"])
    lines = [
        "| ratio | " + " | ".join(f"{row['ratio']:g}x" for row in rows) + " |",
        "|---|" + "---|" * len(rows),
    ]
    for label, key, digits in RESTORED:
        lines.append(f"| {label} | " + " | ".join(number(r[key], digits) for r in rows) + " |")
    return lines


def answers(found: dict[str, Any]) -> list[str]:
    """The table of `zcontext eval qa`."""
    lines = ["| context | positions | EM | F1 | F1 over none |", "|---|---|---|---|---|"]
    for row in found["figures"]:
        gain = "-" if row["gain"] is None else estimate(row["gain"], 2)
        lines.append(
            f"| {row['condition']} | {row['n_positions']:.0f} | {number(row['exact_match'], 3)} | "
            f"{estimate(row['f1'], 3)} | {gain} |"
        )
    return lines


def section() -> str:
    """Everything between the markers."""
    restored, asked, scaled = load("reconstruct"), load("qa"), load("scaling")
    first, last = scaled["rows"][0], scaled["rows"][-1]
    lines = [
        f"Bundle `smollm2-135m`, codec `{restored['codec'][:12]}`: SmolLM2-135M-Instruct in nf4, "
        f"depth {restored['rows'][0]['depth']}, "
        f"{restored['n_windows']} windows of {restored['settings']['window_tokens']} tokens of the "
        "WikiText-2 validation split, which training never saw:",
        "",
        *reconstruction(restored),
        "",
        f"Answers to {asked['n_rows']} questions of XQuAD (English; development set, greedy, the "
        "INFER adapter throughout; 95 % bootstrap intervals in brackets):",
        "",
        *answers(asked),
        "",
        f"Compression time is linear in length: a token of a {last['n_tokens']:,}-token document "
        f"took {last['seconds_per_token_over_first']:.2f} times as long as one of a "
        f"{first['n_tokens']:,}-token document, with {last['extra_bytes'] / 2**20:.0f} MiB of "
        f"memory beside the model's (ratio 8, Z memory of {scaled['memory']} symbols).",
    ]
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def between(text: str, figures: str) -> str:
    """A page with its figures replaced."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{figures}\n{END}{tail}"


def main() -> None:
    """Fill both pages."""
    figures = section()
    for path in (ROOT / "README.md", BUNDLE / "README.md"):
        write(path, between(path.read_text(encoding="utf-8"), figures))
        print(f"{path.relative_to(ROOT)} holds the figures of benchmarks/results")


if __name__ == "__main__":
    main()
