"""From predictions to figures: means with intervals, retention, and who is beaten by whom.

All intervals are paired bootstraps over items. Retention is the share of the way from no context to
raw text that a condition goes: (it - none) / (raw control - none). None is the better of both
readers without context, so that a reader's habits of answering are not taken for what it read. It
knows numbers and conditions; no engine, no file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zcontext.evaluation.conditions import RAW_CONTROL, Condition, Kind
from zcontext.evaluation.metrics import Estimate, bootstrap
from zcontext.evaluation.predictions import Prediction, PredictionLog


@dataclass(frozen=True, slots=True)
class Rivalry:
    """Symbols against something else at the same positions.

    Attributes:
        rival: Name of the other condition.
        kind: Its kind.
        difference: Symbols minus the rival, in the task's metric.
    """

    rival: str
    kind: Kind
    difference: Estimate

    @property
    def is_lost(self) -> bool:
        """Whether this speaks against the symbols.

        A rival has to be better beyond chance. Against another passage's symbols it is the symbols
        that have to be: what is no better than those was not read.
        """
        if self.kind == "shuffled":
            return not self.difference.low > 0
        return self.difference.high < 0


@dataclass(frozen=True, slots=True)
class ConditionRow:
    """The figures of one condition.

    Attributes:
        condition: Its name.
        kind: Its kind.
        ratio: Source tokens per symbol, 0 where there is none.
        depth: Codes per symbol; None is the codec's own.
        reader: Who read.
        n_positions: Mean positions of the context.
        n_over: Items whose whole context did not fit the reader, so that its beginning was read.
        figures: By metric, the task's own first.
        retention: Share of the way from none to the raw control; None for these two, and where the
            control is no better with its context.
        against: Symbols only: every rival at the same ratio, and shuffled symbols.
    """

    condition: str
    kind: str
    ratio: float
    depth: int | None
    reader: str
    n_positions: float
    figures: dict[str, Estimate]
    retention: Estimate | None
    against: tuple[Rivalry, ...] = ()
    n_over: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; rivals that win are marked."""
        data = dataclasses.asdict(self)
        for entry, rivalry in zip(data["against"], self.against, strict=True):
            entry["lost"] = rivalry.is_lost
        return data


Columns = Mapping[str, Sequence[float]]
"""Figures by name, one per item; the task's own metric first, and more of it is better."""


def score_conditions(
    conditions: Sequence[Condition],
    columns: Mapping[str, Columns],
    *,
    n_positions: Mapping[str, Sequence[int]],
    n_over: Mapping[str, int] | None = None,
    seed: int = 0,
) -> tuple[ConditionRow, ...]:
    """Figures of all conditions of a task.

    Args:
        conditions: The conditions, the raw control and both nones among them.
        columns: By name of the condition; items in the same order everywhere.
        n_positions: Positions of every item's context, by name of the condition.
        n_over: Items whose context did not fit, by name of the condition; none where left out.
        seed: Of the bootstrap.

    Returns:
        One row per condition, in order.
    """
    main = {name: next(iter(of.values())) for name, of in columns.items()}
    none = best_none(conditions, main)
    raw = RAW_CONTROL.name
    rows = []
    for condition in conditions:
        name, places = condition.name, n_positions[condition.name]
        between = condition.kind != "none" and name != raw
        retention = None
        # Where raw text helps nobody there is no way to go, and no share of it.
        if between and none is not None and raw in main and sum(main[raw]) > sum(main[none]):
            retention = bootstrap(
                main[name], main[none], main[raw], statistic=_retention, seed=seed
            )
        rows.append(
            ConditionRow(
                condition=name,
                kind=condition.kind,
                ratio=condition.ratio,
                depth=condition.depth,
                reader=condition.reader,
                n_positions=sum(places) / len(places),
                figures={
                    metric: bootstrap(values, seed=seed) for metric, values in columns[name].items()
                },
                retention=retention,
                against=_rivalries(condition, conditions, main, seed),
                n_over=(n_over or {}).get(name, 0),
            )
        )
    return tuple(rows)


def _rivalries(
    ours: Condition, conditions: Sequence[Condition], main: Mapping[str, Sequence[float]], seed: int
) -> tuple[Rivalry, ...]:
    if not ours.is_ours:
        return ()
    return tuple(
        Rivalry(
            rival.name,
            rival.kind,
            bootstrap(main[ours.name], main[rival.name], statistic=_difference, seed=seed),
        )
        for rival in conditions
        if (rival.is_rival or rival.kind == "shuffled") and rival.ratio == ours.ratio
    )


class Kept(Protocol):
    """A task whose predictions are kept in a log."""

    conditions: tuple[Condition, ...]

    def __len__(self) -> int:
        """How many items there are."""

    def key(self, item: int, condition: Condition) -> str:
        """Under which a prediction is kept."""


class Scored(Kept, Protocol):
    """A task whose predictions can be turned into figures one by one."""

    name: str
    about: str

    @property
    def metric(self) -> str:
        """The figure that is compared."""

    def scores(self, item: int, text: str) -> dict[str, float]:
        """What a prediction is worth; the task's own metric first."""


def measured(task: Kept, log: PredictionLog) -> list[int]:
    """The items of a task that were measured under every condition: figures are paired.

    Args:
        task: The task.
        log: Predictions; a run that was stopped has not all of them.

    Returns:
        Their numbers, in order.
    """
    return [
        item
        for item in range(len(task))
        if all(task.key(item, condition) in log for condition in task.conditions)
    ]


def gather(
    task: Scored, items: Sequence[int], log: PredictionLog
) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[Prediction]]]:
    """The predictions of a task, and what they are worth.

    Args:
        task: The task.
        items: Which of its items.
        log: Holds their predictions under every condition.

    Returns:
        Columns, as `score_conditions` takes them, and predictions, both by name of the condition.
    """
    columns: dict[str, dict[str, list[float]]] = {}
    found: dict[str, list[Prediction]] = {}
    for condition in task.conditions:
        found[condition.name] = [log[task.key(item, condition)] for item in items]
        scores = [
            task.scores(item, p.text) for item, p in zip(items, found[condition.name], strict=True)
        ]
        columns[condition.name] = {
            metric: [score[metric] for score in scores] for metric in scores[0]
        }
    return columns, found


@dataclass(frozen=True, slots=True)
class Comparison:
    """The conditions of a task, compared on the items that all of them were measured on.

    Attributes:
        items: Their numbers.
        columns: Figures of every item, by name of the condition.
        rows: One per condition.
    """

    items: tuple[int, ...]
    columns: Mapping[str, Columns]
    rows: tuple[ConditionRow, ...]

    def to_dict(self, task: Scored, rows: Sequence[ConditionRow] | None = None) -> dict[str, Any]:
        """The entry of a report.

        Args:
            task: What was compared.
            rows: Told instead of its own; a task may put its figures in other units.

        Returns:
            JSON-ready.
        """
        return {
            "task": task.name,
            "about": task.about,
            "metric": task.metric,
            "n_items": len(self.items),
            "n_planned": len(task),
            "rows": [row.to_dict() for row in (self.rows if rows is None else rows)],
            "by_place": {},
        }


def compare(task: Scored, log: PredictionLog, *, seed: int) -> Comparison:
    """Compare the conditions of a task.

    Args:
        task: The task, one item of it measured or more.
        log: Predictions.
        seed: Of the bootstrap.

    Returns:
        Figures of every condition.
    """
    items = measured(task, log)
    columns, found = gather(task, items, log)
    rows = score_conditions(
        task.conditions,
        columns,
        n_positions={name: [p.n_positions for p in of] for name, of in found.items()},
        n_over={name: sum(p.n_over > 0 for p in of) for name, of in found.items()},
        seed=seed,
    )
    return Comparison(tuple(items), columns, rows)


def best_none(conditions: Sequence[Condition], main: Mapping[str, Sequence[float]]) -> str | None:
    """The reader that does best without a context.

    Args:
        conditions: The conditions.
        main: The task's own metric, by name of the condition.

    Returns:
        The name of its condition; None if nobody was asked without.
    """
    names = [c.name for c in conditions if c.kind == "none"]
    return max(names, key=lambda name: sum(main[name]), default=None)


def _retention(it: Any, none: Any, raw: Any) -> Any:
    return (it - none) / (raw - none)


def _difference(ours: Any, rival: Any) -> Any:
    return ours - rival
