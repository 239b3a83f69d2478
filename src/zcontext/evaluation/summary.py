"""The report of a suite as one JSON-ready value, and what in it speaks against the symbols.

Everything but `run` depends on data, weights, settings and seed alone. It knows tasks through their
Protocol, and the form of the report; it measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from zcontext.evaluation.predictions import PredictionLog
from zcontext.evaluation.report import finite
from zcontext.evaluation.runner import Task
from zcontext.evaluation.scoring import measured

FORMAT: Final = 1


def summarise(
    tasks: Sequence[Task],
    log: PredictionLog,
    *,
    seed: int,
    facts: dict[str, Any],
    run: dict[str, Any],
) -> dict[str, Any]:
    """Put a report together.

    Args:
        tasks: Those of which fewer than two items are measured are only named.
        log: Holds their predictions.
        seed: Of the intervals.
        facts: What was measured, on what, with what.
        run: When, where, how long: what another run may have differently.

    Returns:
        The report.
    """
    # An interval needs two.
    has_items = {task.name: len(measured(task, log)) > 1 for task in tasks}
    report: dict[str, Any] = {
        "format": FORMAT,
        **facts,
        "seed": seed,
        "tasks": [task.report(log, seed=seed) for task in tasks if has_items[task.name]],
        "unmeasured": [task.name for task in tasks if not has_items[task.name]],
        "run": run,
    }
    report["lost"] = list(lost(report))
    report["bugs"] = list(bugs(report))
    told: dict[str, Any] = finite(report)
    return told


def comparisons(report: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The tasks that compare conditions, and their rows.

    Args:
        report: The report.

    Yields:
        Task and rows; reconstruction is none of them.
    """
    for task in report["tasks"]:
        if "by_place" in task:
            yield task, task["rows"]


def lost(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Where symbols lose: to a rival beyond chance, or by being no better than wrong symbols.

    Args:
        report: The report.

    Yields:
        Task, condition, positions, what it lost to (and its kind), and by how much.
    """
    for task, rows in comparisons(report):
        for row in rows:
            for entry in row["against"]:
                if entry["lost"]:
                    yield {
                        "task": task["task"],
                        "condition": row["condition"],
                        "positions": row["n_positions"],
                        "to": entry["rival"],
                        "kind": entry["kind"],
                        "difference": entry["difference"],
                    }


def bugs(report: dict[str, Any]) -> Iterator[str]:
    """What cannot be true in a report.

    Args:
        report: The report.

    Yields:
        One sentence for every figure that beats the rate bound.
    """
    for task in report["tasks"]:
        for row in task["rows"]:
            if row.get("beats_bound"):
                yield (
                    f"{row['condition']}: h - c uses {row['bound_share']['value']:.2f} of the "
                    "bound. Symbols cannot carry more than it: this is a bug (text that leaks past "
                    "the symbols, or was memorised)"
                )
