"""Question answering by one reader: what it answers from symbols, and from what else it could have.

Every row (`context, question, answers`) is asked under each condition; SQuAD EM and F1 by the
official normalisation, with intervals. Predictions are appended to a JSON-lines file as they are
made, so that an interrupted run goes on where it stopped. The full comparison, with a control and
other methods, is `suite`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zcontext.config import GenerationSettings
from zcontext.errors import ConfigError
from zcontext.evaluation.asking import Panel, QuestionTask
from zcontext.evaluation.conditions import FOR_QUESTIONS, Condition, Kind
from zcontext.evaluation.contexts import Contexts
from zcontext.evaluation.metrics import Estimate, bootstrap
from zcontext.evaluation.predictions import PredictionLog
from zcontext.evaluation.progress import Progress, silent
from zcontext.evaluation.questions import QARow
from zcontext.evaluation.respondents import ReaderRespondent
from zcontext.evaluation.runner import run_tasks
from zcontext.spans import SupportsCompress, SupportsRead

ANSWER = GenerationSettings(max_new_tokens=32, stop=("\n",))


@dataclass(frozen=True, slots=True)
class QASettings:
    """What is measured.

    Attributes:
        ratios: Of the symbols; truncated and shuffled follow each.
        limit: Rows asked at most, drawn from all.
        seed: Of the draw and of the bootstrap.
        depth: Codes per symbol; None means the codec's own depth.
        generation: How answers are generated.

    Raises:
        ConfigError: A value is out of its range.
    """

    ratios: tuple[float, ...] = (4.0,)
    limit: int = 200
    seed: int = 0
    depth: int | None = None
    generation: GenerationSettings = ANSWER

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(
                f"limit must be positive, got {self.limit}", field="limit", value=self.limit
            )
        if not self.ratios or any(ratio < 1 for ratio in self.ratios):
            raise ConfigError(
                f"ratios are source tokens per symbol, 1 or more; got {self.ratios}",
                field="ratios",
                value=self.ratios,
            )

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All conditions, those without symbols first."""
        kinds: tuple[Kind, ...] = ("symbols", *FOR_QUESTIONS, "truncated", "shuffled")
        return (
            Condition("raw"),
            Condition("none"),
            *(Condition(kind, ratio, self.depth) for ratio in self.ratios for kind in kinds),
        )


@dataclass(frozen=True, slots=True)
class QAFigures:
    """The figures of one condition.

    Attributes:
        condition: Its name.
        exact_match: Share of answers right to the word.
        f1: Mean token F1.
        n_positions: Mean positions of the context (tokens or symbols).
        gain: F1 / F1 without context; symbols only.
        retention: (F1 - none) / (raw - none); symbols only.
    """

    condition: str
    exact_match: Estimate
    f1: Estimate
    n_positions: float
    gain: Estimate | None = None
    retention: Estimate | None = None


@dataclass(frozen=True, slots=True)
class QAReport:
    """All figures of one run.

    Attributes:
        settings: What was measured.
        n_rows: Questions asked.
        codec: Digest of the codec.
        figures: One per condition.
    """

    settings: QASettings
    n_rows: int
    codec: str
    figures: tuple[QAFigures, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"task": "qa", **dataclasses.asdict(self)}


def answer_rows(
    rows: Sequence[QARow],
    *,
    compressor: SupportsCompress,
    reader: SupportsRead,
    settings: QASettings,
    log: PredictionLog | None = None,
    batch: int = 8,
    progress: Progress = silent,
) -> QAReport:
    """Ask every row under every condition and score the answers.

    Args:
        rows: From `read_rows`.
        compressor: Writes the symbols; every distinct context once per ratio.
        reader: Answers.
        settings: What is measured.
        log: Predictions made before; new ones are added.
        batch: Questions asked together, where the reader can.
        progress: Told after every batch.

    Returns:
        The report.
    """
    log = log or PredictionLog()
    task = QuestionTask(
        "qa",
        rows,
        conditions=settings.conditions,
        panel=Panel(
            Contexts(compressor),
            {"infer": ReaderRespondent(reader)},
            generation=settings.generation,
        ),
        batch=batch,
    )
    run_tasks([task], log=log, progress=progress)
    return _score(task, log, settings, reader.codec)


def _score(task: QuestionTask, log: PredictionLog, settings: QASettings, codec: str) -> QAReport:
    items = range(len(task))
    said = {c.name: [log[task.key(k, c)] for k in items] for c in task.conditions}
    scores = {
        name: [task.scores(k, p.text) for k, p in zip(items, found, strict=True)]
        for name, found in said.items()
    }
    f1 = {name: [score["f1"] for score in of] for name, of in scores.items()}
    seed = settings.seed
    figures = []
    for condition in task.conditions:
        name = condition.name
        gain = retention = None
        if condition.is_ours:
            gain = bootstrap(
                f1[name], f1["none"], statistic=lambda ours, none: ours / none, seed=seed
            )
            retention = bootstrap(
                f1[name],
                f1["none"],
                f1["raw"],
                statistic=lambda ours, none, raw: (ours - none) / (raw - none),
                seed=seed,
            )
        figures.append(
            QAFigures(
                condition=name,
                exact_match=bootstrap([s["exact_match"] for s in scores[name]], seed=seed),
                f1=bootstrap(f1[name], seed=seed),
                n_positions=sum(p.n_positions for p in said[name]) / len(said[name]),
                gain=gain,
                retention=retention,
            )
        )
    return QAReport(settings, len(task), codec, tuple(figures))
