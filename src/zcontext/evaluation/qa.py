"""Question answering: what a reader answers from symbols, and from what else it could be given.

Every row (`context, question, answers`) is asked under each condition; SQuAD EM and F1 by the
official normalisation, with intervals. Predictions are appended to a JSON-lines file as they are
made, so that an interrupted run goes on where it stopped. It meets engines through their Protocols
and leaves files to `questions` and `predictions`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from zcontext.config import GenerationSettings, to_json
from zcontext.errors import ConfigError
from zcontext.evaluation.metrics import Estimate, bootstrap, exact_match, f1_score
from zcontext.evaluation.predictions import Prediction, PredictionLog
from zcontext.evaluation.progress import Progress, silent
from zcontext.evaluation.questions import QARow
from zcontext.spans import Part, SupportsCompress, SupportsRead

Kind = Literal["symbols", "raw", "none", "truncated", "shuffled"]
ANSWER = GenerationSettings(max_new_tokens=32, stop=("\n",))


@dataclass(frozen=True, slots=True)
class Condition:
    """What the reader is given beside the question.

    Attributes:
        kind: "symbols" of the passage, the passage "raw", "none", the passage "truncated" to as
            many positions as its symbols take, or "shuffled": the symbols of another passage.
        ratio: Source tokens per symbol; 0 where no symbols are counted.
    """

    kind: Kind
    ratio: float = 0.0

    @property
    def name(self) -> str:
        """Such as `symbols@4`."""
        return f"{self.kind}@{self.ratio:g}" if self.ratio else self.kind


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
        kinds: tuple[Kind, ...] = ("symbols", "truncated", "shuffled")
        return (
            Condition("raw"),
            Condition("none"),
            *(Condition(kind, ratio) for ratio in self.ratios for kind in kinds),
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
    keys: dict[str, list[str]] = {}
    total = len(rows) * len(settings.conditions)
    done = 0
    for condition in settings.conditions:
        name = condition.name
        keys[name] = [_key(row, condition, settings, reader.codec) for row in rows]
        todo = [k for k, key in enumerate(keys[name]) if key not in log]
        done += len(rows) - len(todo)
        progress(name, done, total)
        # Symbols are those of all rows, so that a resumed run shuffles as the first one did.
        contexts = _contexts(rows, condition, compressor, settings.depth) if todo else []
        for start in range(0, len(todo), batch):
            chosen = todo[start : start + batch]
            answers = _ask(
                reader,
                [(rows[k].question, contexts[k]) for k in chosen],
                settings.generation,
            )
            log.add(
                [
                    Prediction(keys[name][k], text, reader.count(contexts[k]))
                    for k, text in zip(chosen, answers, strict=True)
                ],
                [rows[k] for k in chosen],
                name,
            )
            done += len(chosen)
            progress(name, done, total)
    return _score(rows, keys, log, settings, reader.codec)


def _key(row: QARow, condition: Condition, settings: QASettings, codec: str) -> str:
    facts = [
        codec,
        condition.name,
        settings.depth,
        to_json(settings.generation),
        row.context,
        row.question,
    ]
    if condition.kind == "shuffled":
        facts += [settings.seed, settings.limit]
    return sha256(json.dumps(facts).encode()).hexdigest()


def _ask(
    reader: SupportsRead,
    asked: Sequence[tuple[str, Sequence[Part]]],
    generation: GenerationSettings,
) -> list[str]:
    together = getattr(reader, "ask_many", None)
    if together is not None:
        answers = together([q for q, _ in asked], [c for _, c in asked], settings=generation)
        return [answer.text for answer in answers]
    return [reader.ask(q, c, settings=generation).text for q, c in asked]


def _contexts(
    rows: Sequence[QARow], condition: Condition, compressor: SupportsCompress, depth: int | None
) -> list[list[Part]]:
    """What each row's reader is given."""
    if condition.kind == "none":
        return [[] for _ in rows]
    if condition.kind == "raw":
        return [[row.context] for row in rows]
    distinct = list(dict.fromkeys(row.context for row in rows))
    # Longest first: windows of like length make one batch.
    order = sorted(range(len(distinct)), key=lambda k: (-len(distinct[k]), k))
    documents = compressor.compress_many(
        [distinct[k] for k in order], ratio=condition.ratio, depth=depth
    )
    symbols = {distinct[k]: document.symbols for k, document in zip(order, documents, strict=True)}
    if condition.kind == "truncated":
        cut = {text: cut_to(text, len(run), compressor) for text, run in symbols.items()}
        return [[cut[row.context]] for row in rows]
    if condition.kind == "shuffled":
        following = dict(zip(distinct, [*distinct[1:], distinct[0]], strict=True))
        return [[symbols[following[row.context]]] for row in rows]
    return [[symbols[row.context]] for row in rows]


def cut_to(text: str, n_tokens: int, compressor: SupportsCompress) -> str:
    """The longest beginning of a text that takes at most so many tokens.

    Args:
        text: Any text.
        n_tokens: Tokens it may take.
        compressor: Counts the tokens.

    Returns:
        The beginning.
    """
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if compressor.count_tokens(text[:middle]) <= n_tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def _score(
    rows: Sequence[QARow],
    keys: dict[str, list[str]],
    log: PredictionLog,
    settings: QASettings,
    codec: str,
) -> QAReport:
    f1 = {
        name: [f1_score(log[key].text, row.answers) for key, row in zip(of, rows, strict=True)]
        for name, of in keys.items()
    }
    figures = []
    for name, of in keys.items():
        exact = [exact_match(log[key].text, row.answers) for key, row in zip(of, rows, strict=True)]
        gain = retention = None
        if name.startswith("symbols"):
            gain = bootstrap(
                f1[name], f1["none"], statistic=lambda ours, none: ours / none, seed=settings.seed
            )
            retention = bootstrap(
                f1[name],
                f1["none"],
                f1["raw"],
                statistic=lambda ours, none, raw: (ours - none) / (raw - none),
                seed=settings.seed,
            )
        figures.append(
            QAFigures(
                condition=name,
                exact_match=bootstrap(exact, seed=settings.seed),
                f1=bootstrap(f1[name], seed=settings.seed),
                n_positions=sum(log[key].n_positions for key in of) / len(rows),
                gain=gain,
                retention=retention,
            )
        )
    return QAReport(settings, len(rows), codec, tuple(figures))
