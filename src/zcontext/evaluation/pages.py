"""A report as Markdown: figures with their intervals, headline first, and where symbols lose.

It knows the form of a report as `summary` makes it, and reads it back from JSON as well; it
measures nothing and writes no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zcontext.evaluation.conditions import OURS
from zcontext.evaluation.summary import comparisons

METRICS = {
    "f1": "F1",
    "exact_match": "EM",
    "contains": "contained",
    "refused": "said unknown",
    "bits": "bits per token",
    "perplexity": "perplexity",
}
RESTORED = (
    ("tokens per symbol, effective", "effective_ratio", 2),
    ("codes per symbol", "depth", 0),
    ("h: bits per token, plain base", "h", 2),
    ("c: bits per token behind the symbols", "c", 2),
    ("rate bound, bits per token", "bound", 2),
    ("share of the bound used", "bound_share", 2),
    ("shuffled gap, bits per token", "shuffled_gap", 2),
    ("tokens right, teacher-forced", "forced_accuracy", 3),
    ("tokens right, decoded freely", "free_accuracy", 3),
    ("BLEU-4, decoded freely", "bleu", 1),
    ("ROUGE-L, decoded freely", "rouge_l", 3),
    ("numbers and names kept", "facts_kept", 2),
)
LEGEND = (
    "Brackets hold 95 % bootstrap intervals, paired over items. `symbols@4` are our symbols at "
    "four tokens each (`d2`: two codes per symbol), `refocused` are these written again for the "
    "question, `asked` are written of the text for it, `recent` with emphasis on its end; "
    "`shuffled` are another passage's symbols; "
    "`truncated` is the text cut to as many positions; other names are other methods at the same "
    "positions. `/control` is read by the control, everything else by the bundle's INFER adapter. "
    "`over` counts overflows: items whose whole context did not fit the reader, so that only its "
    "beginning was read. Retention = (it - none) / (raw control - none), where none is the better "
    "reader without a context; there is none (`-`) where the control does no better with the text."
)


def page(report: dict[str, Any], *, title: str, plots: Sequence[str] = (), note: str = "") -> str:
    """The whole page.

    Args:
        report: The report, made or read.
        title: Its heading.
        plots: Paths of pictures, as seen from the page.
        note: What stands under the heading, such as how the page is made.

    Returns:
        Markdown that ends in a line end.
    """
    lines = [f"# {title}", ""]
    if note:
        lines += [note, ""]
    lines += [_facts(report), ""]
    lines += [f"**{sentence}**\n" for sentence in report.get("bugs", [])]
    lines += ["## Retention", "", *_headline(report), "", LEGEND, ""]
    for path in plots:
        lines += [f"![{path.rpartition('/')[2].removesuffix('.png')}]({path})", ""]
    lines += ["## Where we lose", "", *_losses(report), ""]
    for task in report["tasks"]:
        lines += [f"## {_heading(task)}", "", *_task(task), ""]
    if report["run"].get("times"):
        lines += ["## Time", "", *times(report["run"]["times"]), ""]
    if report.get("unmeasured"):
        lines += [f"Planned and not measured: {', '.join(report['unmeasured'])}.", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _facts(report: dict[str, Any]) -> str:
    peers = [*report.get("peers", []), *report.get("evictors", [])]
    size = "A quick run: few items, wide intervals. " if report.get("quick") else ""
    others = ", ".join(peers) or "none installed"
    return (
        f"{size}Bundle `{report['bundle']}`, codec `{report['codec'][:12]}`, base "
        f"`{report['base']}`. Raw control: {report['control']}. Data: "
        f"{', '.join(report['data']) or '-'}. Other methods: {others}. "
        f"Seed {report['seed']}. {report['run'].get('machine', '')}".rstrip()
    )


def _heading(task: dict[str, Any]) -> str:
    name = str(task["task"])
    return name[0].upper() + name[1:]


def _headline(report: dict[str, Any]) -> list[str]:
    """Retention of symbols and of the best rival, by task and ratio."""
    found = [(t, rows) for t, rows in comparisons(report) if any(r["retention"] for r in rows)]
    ratios = sorted({r["ratio"] for _, rows in found for r in rows if r["kind"] == "symbols"})
    if not ratios:
        return ["No task of this report has a raw control and a reader without context."]
    heads = [f" {kind}@{x:g} |" for x in ratios for kind in (*OURS, "best rival")]
    lines = ["| task | items |" + "".join(heads), "|---|---|" + "---|" * len(heads)]
    for task, rows in found:
        cells = []
        for ratio in ratios:
            rivals = [
                r
                for r in rows
                if r["ratio"] == ratio and r["kind"] in ("truncated", "peer", "evictor")
            ]
            for kind in OURS:
                ours = [r for r in rows if r["kind"] == kind and r["ratio"] == ratio]
                cells.append(estimate(ours[0]["retention"], 2) if ours else "-")
            best = max(rivals, key=lambda r: _value(r["retention"]), default=None)
            cells.append(f"{best['condition']}: {number(best['retention'], 2)}" if best else "-")
        lines.append(f"| {task['task']} | {task['n_items']} | " + " | ".join(cells) + " |")
    return lines


def _value(found: dict[str, Any] | None) -> float:
    value = None if found is None else found["value"]
    return float("-inf") if value is None else float(value)


def _losses(report: dict[str, Any]) -> list[str]:
    entries = report.get("lost", [])
    lines = []
    beaten = [e for e in entries if e["kind"] != "shuffled"]
    if beaten:
        lines += [
            "Better than our symbols at the same positions, beyond chance:",
            "",
            "| task | symbols | positions | better | symbols minus it |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {e['task']} | {e['condition']} | {e['positions']:.0f} | {e['to']} | "
            f"{estimate(e['difference'], 3)} |"
            for e in beaten
        ]
        lines.append("")
    mute = [f"{e['condition']} ({e['task']})" for e in entries if e["kind"] == "shuffled"]
    if mute:
        told = "Not shown to be better than another passage's symbols, so perhaps not read at all"
        lines += [f"{told}: {', '.join(mute)}.", ""]
    short = [
        f"{row['condition']} keeps {estimate(row['retention'], 2)} ({task['task']})"
        for task, rows in comparisons(report)
        for row in rows
        if row["kind"] in OURS
        and row["retention"]
        and row["retention"]["high"] is not None
        and row["retention"]["high"] < 1
    ]
    if short:
        lines += ["Below raw text beyond chance: " + "; ".join(short) + ".", ""]
    open_ = sum(
        entry["kind"] != "shuffled" and not entry["lost"] and entry["difference"]["low"] <= 0
        for _, rows in comparisons(report)
        for row in rows
        for entry in row["against"]
    )
    if open_:
        lines += [f"{open_} comparisons with rivals are within chance, either way.", ""]
    return lines[:-1] or ["Nowhere beyond chance, on these items."]


def _task(task: dict[str, Any]) -> list[str]:
    planned = task.get("n_planned", task["n_items"])
    of = f" of {planned} planned" if planned > task["n_items"] else ""
    lines = [f"{task['n_items']}{of} items: {task['about']}.", ""]
    if "by_place" not in task:
        return lines + _restored(task["rows"])
    metrics = list(task["rows"][0]["figures"])
    heads = [METRICS.get(metric, metric) for metric in metrics] + ["retention"]
    over = any(row.get("n_over") for row in task["rows"])
    if over:
        heads.append("over")
    lines.append("| condition | positions | " + " | ".join(heads) + " |")
    lines.append("|---|---|" + "---|" * len(heads))
    for row in task["rows"]:
        cells = [estimate(row["figures"][m], 1 if m == "perplexity" else 3) for m in metrics]
        cells.append(estimate(row["retention"], 2))
        if over:
            cells.append(f"{row['n_over']} of {task['n_items']}" if row["n_over"] else "-")
        lines.append(
            f"| {row['condition']} | {row['n_positions']:.0f} | " + " | ".join(cells) + " |"
        )
    return lines + _by_place(task)


def _by_place(task: dict[str, Any]) -> list[str]:
    places = task["by_place"]
    if not places:
        return []
    names = [
        row["condition"]
        for row in task["rows"]
        if row["kind"] in OURS or row["condition"] == "raw/control"
    ]
    metric = METRICS.get(task["metric"], task["metric"])
    lines = ["", f"{metric} by where the answer stands (0 first, 1 last):", ""]
    lines.append("| place | " + " | ".join(names) + " |")
    lines.append("|---|" + "---|" * len(names))
    lines += [
        f"| {place} | " + " | ".join(number(of.get(name), 2) for name in names) + " |"
        for place, of in places.items()
    ]
    return lines


def _restored(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| | " + " | ".join(row["condition"] for row in rows) + " |"]
    lines.append("|---|" + "---|" * len(rows))
    lines += [
        f"| {label} | " + " | ".join(estimate(row[key], digits) for row in rows) + " |"
        for label, key, digits in RESTORED
    ]
    return lines


def times(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Times of one run as a table.

    Args:
        rows: As `timing.time_length` makes them.

    Returns:
        One line per length and ratio; all but the first two figures are seconds.
    """
    lines = [
        "Seconds, on the machine named above; single times do not carry over to another. `cold` "
        "compresses first, `stored` looks symbols up, `kept` goes on from a kept prefix.",
        "",
        "| tokens | ratio | plain prefill | compression | first token: raw | cold | stored | "
        "kept | answer: raw | cold | stored | kept |",
        "|" + "---|" * 12,
    ]
    for row in rows:
        for span in row["spans"]:
            cells = [f"{row['n_tokens']:,}", f"{span['ratio']:g}"]
            cells += [number(row["prefill_seconds"], 2), number(span["compress_seconds"], 2)]
            for figure in ("first_token_seconds", "total_seconds"):
                cells.append(number(row["raw"][figure], 2))
                cells += [number(span[how][figure], 2) for how in ("cold", "stored", "cached")]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def estimate(found: Any, digits: int) -> str:
    """A figure with its interval where it has one.

    Args:
        found: A number, an estimate as a table, or None.
        digits: Behind the point.

    Returns:
        Such as `0.71 [0.70, 0.73]`; `-` for what there is not.
    """
    if not isinstance(found, dict) or found["value"] is None:
        return number(found, digits)
    ends = ", ".join(number(found[end], digits) for end in ("low", "high"))
    return f"{found['value']:.{digits}f} [{ends}]"


def number(found: Any, digits: int) -> str:
    """A figure without its interval; `-` for what there is not.

    Args:
        found: A number, an estimate as a table, or None.
        digits: Behind the point.

    Returns:
        The number.
    """
    value = found["value"] if isinstance(found, dict) else found
    return "-" if value is None else f"{value:.{digits}f}"
