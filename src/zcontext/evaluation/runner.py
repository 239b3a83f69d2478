"""Runs tasks under all their conditions, item by item, and goes on where an earlier run stopped.

First a batch of everything is done, which tells how long the rest will take; then the rest. It
knows tasks through their Protocol and the log of predictions; no engine, no score.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zcontext.evaluation.conditions import Condition
from zcontext.evaluation.predictions import Prediction, PredictionLog
from zcontext.evaluation.progress import Progress, silent


class Task(Protocol):
    """Items that are measured under conditions.

    Attributes:
        name: What reports call it.
        conditions: Under which its items are measured.
        batch: Items measured together.
    """

    name: str
    conditions: tuple[Condition, ...]
    batch: int

    def __len__(self) -> int:
        """How many items there are."""

    def key(self, item: int, condition: Condition) -> str:
        """Digest of everything that shapes one prediction."""

    def detail(self, item: int) -> dict[str, Any]:
        """What stands beside a prediction for people who read the file."""

    def run(self, items: Sequence[int], condition: Condition) -> list[Prediction]:
        """Measure some items; one prediction each, in order."""

    def report(self, log: PredictionLog, *, seed: int) -> dict[str, Any]:
        """Figures of all items under all conditions, JSON-ready."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Items of a task that are measured together.

    Attributes:
        task: The task.
        condition: Under which.
        items: Their numbers.
    """

    task: Task
    condition: Condition
    items: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.items)


def open_batches(tasks: Sequence[Task], log: PredictionLog) -> list[list[Batch]]:
    """What is still to be done.

    Args:
        tasks: The tasks.
        log: Predictions made before.

    Returns:
        For every task and condition that has open items, its batches in order.
    """
    found = []
    for task in tasks:
        for condition in task.conditions:
            todo = [k for k in range(len(task)) if task.key(k, condition) not in log]
            batches = [
                Batch(task, condition, tuple(todo[start : start + task.batch]))
                for start in range(0, len(todo), task.batch)
            ]
            if batches:
                found.append(batches)
    return found


def run_tasks(
    tasks: Sequence[Task],
    *,
    log: PredictionLog,
    announce: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure whatever the log does not hold yet.

    Args:
        tasks: The tasks.
        log: Predictions made before; new ones are added after every batch.
        announce: Told in advance how long it will take, and where it stands when a task is over.
        progress: Told after every batch.
        clock: Tells the time, in seconds.

    Returns:
        Seconds it took.
    """
    lines = open_batches(tasks, log)
    total = sum(len(task) * len(task.conditions) for task in tasks)
    done = total - sum(len(batch) for line in lines for batch in line)
    if done:
        announce(f"{done:,} of {total:,} predictions are here from before")
    started = clock()
    spent: dict[tuple[str, str], float] = {}
    rest: list[Batch] = []
    later: list[float] = []

    def measure(batch: Batch) -> float:
        nonlocal done
        begun = clock()
        found = batch.task.run(batch.items, batch.condition)
        about = {"task": batch.task.name, "condition": batch.condition.name}
        log.add(found, [{**about, **batch.task.detail(item)} for item in batch.items])
        done += len(batch)
        progress(f"{batch.task.name}: {batch.condition.name}", done, total)
        return clock() - begun

    for line in lines:
        seconds = measure(line[0]) / len(line[0])
        spent[line[0].task.name, line[0].condition.name] = seconds
        rest += line[1:]
        later += [seconds * len(batch) for batch in line[1:]]
    if rest:
        announce(
            f"the first {len(lines)} batches took {spoken(clock() - started)}; "
            f"about {spoken(sum(later))} to go for {sum(map(len, rest)):,} predictions"
        )
    for number, batch in enumerate(rest):
        measure(batch)
        over = number + 1 == len(rest) or rest[number + 1].task.name != batch.task.name
        if over and number + 1 < len(rest):
            ahead = spoken(sum(later[number + 1 :]))
            announce(f"{batch.task.name} is done: {done:,} of {total:,}; about {ahead} to go")
    return clock() - started


def spoken(seconds: float) -> str:
    """A time as people say it: `45 seconds`, `12 minutes`, `3.4 hours`."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
