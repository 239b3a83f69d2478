"""Reconstruction as a task that can be interrupted: one prediction is one window's record.

It knows the measuring of windows (`restoration`) and the form of a task; no averages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from zcontext.evaluation.conditions import Condition
from zcontext.evaluation.predictions import Prediction, PredictionLog, digest_of
from zcontext.evaluation.reconstruct import row_of
from zcontext.evaluation.restoration import Restorer, WindowRecord
from zcontext.evaluation.scoring import measured


class ReconstructTask:
    """Windows that are compressed and brought back.

    Args:
        restorer: Has the windows.
        conditions: Ratios and depths; only those of kind "symbols" are measured.
        about: One sentence for the report.
        name: What reports call it.
    """

    metric = "bits"
    batch = 8

    def __init__(
        self,
        restorer: Restorer,
        *,
        conditions: Sequence[Condition],
        about: str = "",
        name: str = "reconstruct",
    ) -> None:
        self.restorer = restorer
        self.conditions = tuple(c for c in conditions if c.kind == "symbols")
        self.about = about
        self.name = name

    def __len__(self) -> int:
        return len(self.restorer.windows)

    def key(self, item: int, condition: Condition) -> str:
        """Digest of everything that shapes one prediction."""
        windows, codec = self.restorer.windows, self.restorer.compressor.codec
        # The wrong symbols are those of a neighbour, so the windows around count too.
        around = [windows[(item + step) % len(windows)].text for step in range(2)]
        return digest_of(
            "reconstruct", codec, condition.name, around, len(windows), *condition.terms
        )

    def detail(self, item: int) -> dict[str, Any]:
        """How the window begins."""
        return {"window": self.restorer.windows[item].text[:60]}

    def run(self, items: Sequence[int], condition: Condition) -> list[Prediction]:
        """Measure some windows.

        Args:
            items: Their numbers.
            condition: Ratio and depth.

        Returns:
            One prediction each; its text is the record.
        """
        found = self.restorer.measure(items, ratio=condition.ratio, depth=condition.depth)
        return [
            Prediction(self.key(item, condition), record.to_json(), record.n_symbols)
            for item, record in zip(items, found, strict=True)
        ]

    def report(self, log: PredictionLog, *, seed: int) -> dict[str, Any]:
        """Figures of all ratios and depths.

        Args:
            log: Predictions; windows that lack some are left out.
            seed: Of the bootstrap.

        Returns:
            JSON-ready.
        """
        rows = []
        items = measured(self, log)
        windows = [self.restorer.windows[item] for item in items]
        for condition in self.conditions:
            row = row_of(
                windows,
                self.records(condition, log, items),
                ratio=condition.ratio,
                judge=self.restorer.judge,
                seed=seed,
            )
            figures = dataclasses.asdict(row)
            # Times belong to the run, not to the figures: a run that went on has only some.
            del figures["compress_seconds"], figures["decompress_seconds"]
            rows.append({"condition": condition.name, **figures})
        return {
            "task": self.name,
            "about": self.about,
            "metric": self.metric,
            "n_items": len(items),
            "n_planned": len(self),
            "rows": rows,
        }

    def records(
        self, condition: Condition, log: PredictionLog, items: Sequence[int]
    ) -> list[WindowRecord]:
        """What was measured under a condition.

        Args:
            condition: Ratio and depth.
            log: Holds a prediction of every one of the items.
            items: Numbers of windows.

        Returns:
            One record per window.
        """
        return [WindowRecord.from_json(log[self.key(item, condition)].text) for item in items]
