"""Runs tasks under all their conditions, item by item, and goes on where an earlier run stopped.

First a batch of everything is done, which tells how long the rest will take; then the rest, all
tasks moving on alike and every batch of items under all conditions, so that a run that is stopped
has whole items of every task. It knows tasks through their Protocol and the log of predictions; no
engine, no score.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from zcontext.errors import ConfigError
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
        """Figures of the items measured under all conditions, JSON-ready."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the work a run does; the others are other processes, or other machines.

    Attributes:
        number: Its own, from 1.
        of: How many there are.

    Raises:
        ConfigError: There is no such part.
    """

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ConfigError(
                f"parts are counted from 1: {self.number}/{self.of} is none of them",
                field="part",
                value=f"{self.number}/{self.of}",
            )

    def has(self, chunk: int) -> bool:
        """Whether a chunk of items is in this part."""
        return chunk % self.of == self.number - 1


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

    @property
    def line(self) -> tuple[str, str]:
        """Task and condition: batches alike take alike long."""
        return self.task.name, self.condition.name


@dataclass(frozen=True, slots=True)
class Chunk:
    """The same items under all conditions that they still lack.

    Attributes:
        order: How far in its task it stands, 0 to 1.
        batches: One per condition.
    """

    order: float
    batches: tuple[Batch, ...]


def open_chunks(tasks: Sequence[Task], log: PredictionLog, share: Share) -> list[Chunk]:
    """What is still to be done.

    Args:
        tasks: The tasks.
        log: Predictions made before.
        share: Which part of it.

    Returns:
        Chunks by how far in their tasks they stand, so that all tasks move on alike.
    """
    found = []
    for number, task in enumerate(tasks):
        n_chunks = math.ceil(len(task) / task.batch)
        for chunk in range(n_chunks):
            # Moved on by the task, or the first part had every task that is one chunk.
            if not share.has(chunk + number):
                continue
            members = range(chunk * task.batch, min(len(task), (chunk + 1) * task.batch))
            batches = [
                Batch(task, condition, todo)
                for condition in task.conditions
                if (todo := tuple(k for k in members if task.key(k, condition) not in log))
            ]
            if batches:
                found.append(Chunk(chunk / n_chunks, tuple(batches)))
    return sorted(found, key=lambda chunk: chunk.order)


@dataclass(slots=True)
class _Pace:
    """Seconds that a batch of each kind has taken, per item."""

    spent: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def took(self, batch: Batch, seconds: float) -> None:
        self.spent[batch.line].append(seconds / len(batch))

    def knows(self, chunk: Chunk) -> bool:
        return all(batch.line in self.spent for batch in chunk.batches)

    def of(self, chunk: Chunk) -> float:
        return sum(
            len(batch) * sum(self.spent[batch.line]) / len(self.spent[batch.line])
            for batch in chunk.batches
        )


def run_tasks(
    tasks: Sequence[Task],
    *,
    log: PredictionLog,
    announce: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
    clock: Callable[[], float] = time.perf_counter,
    seconds: float = math.inf,
    share: Share | None = None,
) -> float:
    """Measure whatever the log does not hold yet.

    Args:
        tasks: The tasks.
        log: Predictions made before; new ones are added after every batch.
        announce: Told in advance how long it will take, and now and then where it stands.
        progress: Told after every batch.
        clock: Tells the time, in seconds.
        seconds: What would take longer than this, all in all, is left for another run; a first
            chunk of every task is always done.
        share: Which part of the work is done; None is all of it.

    Returns:
        Seconds it took.
    """
    chunks = open_chunks(tasks, log, share or Share())
    total = sum(len(task) * len(task.conditions) for task in tasks)
    todo = sum(len(batch) for chunk in chunks for batch in chunk.batches)
    done, started, pace = total - todo, clock(), _Pace()
    if done:
        told = "here from before" if share is None else "here from before, or another part's"
        announce(f"{done:,} of {total:,} predictions are {told}")

    def measure(chunk: Chunk) -> None:
        nonlocal done
        for batch in chunk.batches:
            begun = clock()
            found = batch.task.run(batch.items, batch.condition)
            about = {"task": batch.task.name, "condition": batch.condition.name}
            log.add(found, [{**about, **batch.task.detail(item)} for item in batch.items])
            done += len(batch)
            pace.took(batch, clock() - begun)
            progress(f"{batch.task.name}: {batch.condition.name}", done, total)

    rest = []
    for chunk in chunks:
        if pace.knows(chunk):
            rest.append(chunk)
        else:
            measure(chunk)
    if rest:
        n_first = len(chunks) - len(rest)
        ahead, n = sum(map(pace.of, rest)), sum(len(b) for c in rest for b in c.batches)
        announce(
            f"the first {n_first} chunks took {spoken(clock() - started)}; "
            f"about {spoken(ahead)} to go for {n:,} predictions"
        )
    _finish(rest, measure, pace, announce, lambda: seconds - (clock() - started))
    return clock() - started


def _finish(
    rest: Sequence[Chunk],
    measure: Callable[[Chunk], None],
    pace: _Pace,
    announce: Callable[[str], None],
    left: Callable[[], float],
) -> None:
    """Measure chunks that there is time for; say now and then how many are done."""
    n_left_out, told = 0, 1
    for number, chunk in enumerate(rest, start=1):
        if pace.of(chunk) > left():
            n_left_out += 1
            continue
        measure(chunk)
        if number * 10 >= told * len(rest) and number < len(rest):
            told += 1
            ahead = spoken(min(left(), sum(map(pace.of, rest[number:]))))
            announce(f"{number} of {len(rest)} chunks are done; about {ahead} to go")
    if n_left_out:
        announce(
            f"{n_left_out} of {len(rest)} chunks are left out, because the time is over; the same "
            "command goes on with them"
        )


def spoken(seconds: float) -> str:
    """A time as people say it: `45 seconds`, `12 minutes`, `3.4 hours`."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
