"""The suite: which tasks a report is made of, at which sizes, from which data.

It puts tasks together from data and a bench, and reads their figures from the log; it opens no
model and no file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zcontext.config import CompressSettings, GenerationSettings
from zcontext.errors import ConfigError
from zcontext.evaluation.asking import ANSWER, Metric, Panel, QuestionTask
from zcontext.evaluation.bench import Bench
from zcontext.evaluation.conditions import Condition, all_conditions
from zcontext.evaluation.contexts import Contexts
from zcontext.evaluation.continuation import ContinuationTask, cut_passages
from zcontext.evaluation.distractors import unanswerable, with_distractors
from zcontext.evaluation.excerpts import cut_windows
from zcontext.evaluation.needles import N_ENTRIES, NEEDLE_KINDS, make_needles
from zcontext.evaluation.questions import QARow, draw
from zcontext.evaluation.restoration import Restorer
from zcontext.evaluation.restoring import ReconstructTask
from zcontext.evaluation.runner import Task

LONG_NEEDLE = 4096
"""Tokens above which needles are counted by `long_needles`."""

LONG_CONTEXT = 1500
"""Mean tokens from which contexts of a file are long documents: no distractors beside them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a task of questions is made of.

    Attributes:
        name: What reports call it.
        rows: The rows.
        metric: What its headline is about.
        about: One sentence about it.
    """

    name: str
    rows: list[QARow]
    metric: Metric
    about: str


@dataclass(frozen=True, slots=True)
class SuiteSettings:
    """How much is measured.

    Attributes:
        ratios: Source tokens per symbol.
        depths: Codes per symbol; None means the codec's own depth.
        seed: Of everything drawn, and of the intervals.
        questions: Questions of a file with their passage alone.
        hard: Questions of a file among distractors, and as many that have no answer.
        distractors: Other passages beside the right one; 0 leaves the task out.
        windows: Windows brought back, of each length.
        window_tokens: Their lengths. What is longer than the codec's window is several spans.
        passages: Passages continued.
        context_tokens: Tokens in front of a continuation.
        following_tokens: Tokens of it.
        needles: Needles of each kind at each length.
        long_needles: The same at lengths above 4,096 tokens, where each takes long.
        needle_tokens: Lengths of their texts; empty leaves needles out.
        rival_tokens: Mean length up to which contexts are also given to methods that run a model
            over all of them; longer ones leave cut text and what is as cheap.
        generation: How answers are generated.
        readers: How many of the bench's readers read what rivals leave of a text.
        evictors: Also methods that drop keys and values; they answer one question at a time.
        time_tokens: Lengths at which times are taken; empty takes none.
        time_repeats: Times each of them is taken; figures are medians.

    Raises:
        ConfigError: A value is out of its range.
    """

    ratios: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0)
    depths: tuple[int | None, ...] = (None,)
    seed: int = 0
    questions: int = 200
    hard: int = 100
    distractors: int = 3
    windows: int = 100
    window_tokens: tuple[int, ...] = (100, 512)
    passages: int = 40
    context_tokens: int = 512
    following_tokens: int = 256
    needles: int = 20
    long_needles: int = 20
    needle_tokens: tuple[int, ...] = (2048, 8192, 32768)
    rival_tokens: int = 65536
    generation: GenerationSettings = ANSWER
    readers: int = 2
    evictors: bool = True
    time_tokens: tuple[int, ...] = (1000, 2000, 4000, 8000)
    time_repeats: int = 3

    def __post_init__(self) -> None:
        least = {"questions": 2, "hard": 2, "distractors": 0, "windows": 2, "passages": 2}
        least |= {"context_tokens": 8, "following_tokens": 1, "needles": 2, "long_needles": 2}
        least |= {"readers": 1, "rival_tokens": 0, "time_repeats": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value < lowest:
                raise ConfigError(
                    f"{name} must be {lowest} or more, got {value}", field=name, value=value
                )
        for name in ("ratios", "depths", "window_tokens"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty: give one or more", field=name, value=())
        for ratio in self.ratios:
            for depth in self.depths:
                CompressSettings(ratio=ratio, depth=depth)
        for name, lowest in (("needle_tokens", 64), ("window_tokens", 8), ("time_tokens", 8)):
            found = getattr(self, name)
            if any(length < lowest for length in found):
                raise ConfigError(
                    f"{name} are texts of {lowest} tokens or more, got {found}",
                    field=name,
                    value=found,
                )


QUICK = SuiteSettings(
    ratios=(4.0, 8.0),
    questions=4,
    hard=2,
    distractors=2,
    windows=4,
    window_tokens=(64,),
    passages=2,
    context_tokens=256,
    needles=2,
    long_needles=2,
    needle_tokens=(512,),
    generation=GenerationSettings(max_new_tokens=12, stop=("\n",)),
    readers=1,
    evictors=False,
    time_tokens=(500,),
    time_repeats=1,
)
"""Small enough for two CPU cores in ten minutes; its intervals are wide and say so."""


@dataclass(frozen=True, slots=True)
class SuiteData:
    """What is measured on; what is empty leaves its tasks out.

    Attributes:
        texts: Running text, for reconstruction and continuation.
        questions: Rows by name of their file.
        books: Long texts that needles are hidden in.
    """

    texts: Sequence[str] = ()
    questions: Mapping[str, Sequence[QARow]] = field(default_factory=dict)
    books: Sequence[str] = ()


def build_tasks(settings: SuiteSettings, data: SuiteData, bench: Bench) -> list[Task]:
    """The tasks of a report.

    Args:
        settings: How much is measured.
        data: On what.
        bench: With what.

    Returns:
        Tasks, in the order in which they are run and told.

    Raises:
        ConfigError: There are no data, or too few.
    """
    conditions = all_conditions(
        settings.ratios,
        depths=settings.depths,
        peers=tuple(bench.peers),
        evictors=tuple(bench.evictors) if settings.evictors else (),
        readers=bench.readers[: settings.readers],
        evictor_reader=bench.readers[0],
    )
    tasks = _text_tasks(settings, data, bench, conditions) if data.texts else []
    contexts = Contexts(bench.compressor, peers=bench.peers)
    panel = Panel(contexts, bench.respondents, bench.evictors, settings.generation)
    found = [
        asked
        for name, rows in data.questions.items()
        for asked in _question_rows(name, rows, settings, bench)
    ]
    if data.books:
        found += _needle_rows(data.books, settings, bench)
    tasks += [_question_task(asked, conditions, panel, settings, bench) for asked in found]
    if not tasks:
        raise ConfigError(
            "there is nothing to measure on: give texts, questions or books",
            field="data",
            value=None,
        )
    return tasks


def _text_tasks(
    settings: SuiteSettings, data: SuiteData, bench: Bench, conditions: Sequence[Condition]
) -> list[Task]:
    seed, judge = settings.seed, bench.judge
    tasks: list[Task] = []
    for n_tokens in settings.window_tokens:
        windows = cut_windows(
            data.texts, judge=judge, n_tokens=n_tokens, limit=settings.windows, seed=seed
        )
        restorer = Restorer(
            windows, compressor=bench.compressor, decompressor=bench.decompressor, judge=judge
        )
        about = f"windows of {n_tokens} tokens brought back from their symbols"
        name = f"reconstruct {n_tokens}"
        tasks.append(ReconstructTask(restorer, conditions=conditions, about=about, name=name))
    n_context, n_following = settings.context_tokens, settings.following_tokens
    passages = cut_passages(
        data.texts,
        judge=judge,
        n_context=n_context,
        n_following=n_following,
        limit=settings.passages,
        seed=seed,
    )
    continued = ContinuationTask(
        passages,
        conditions=conditions,
        contexts=Contexts(bench.compressor, peers=bench.peers, keep_end=True),
        foretellers=bench.foretellers,
        about=f"bits per token of the {n_following} tokens after a context of {n_context}; "
        "cut text is the end of the context",
    )
    return [*tasks, continued]


def _question_task(
    asked: Asked,
    conditions: Sequence[Condition],
    panel: Panel,
    settings: SuiteSettings,
    bench: Bench,
) -> QuestionTask:
    """A task under the conditions that can be measured on it, and what it says of the others."""
    n_tokens = _mean_tokens(asked.rows, bench.compressor.count_tokens)
    room = min(respondent.context_length for respondent in bench.respondents.values())
    kept, about = list(conditions), asked.about
    if asked.metric == "refused":
        # They shorten contexts; where there is no answer, that is beside the point.
        kept = [c for c in kept if c.kind not in ("peer", "evictor")]
    if len({row.context for row in asked.rows}) < 2:
        kept = [c for c in kept if c.kind != "shuffled"]  # there is no other text to take
    largest = max(settings.ratios)
    tight = sorted({c.ratio for c in kept if 0 < c.ratio < largest and n_tokens > room * c.ratio})
    if tight:
        kept = [c for c in kept if c.ratio not in tight]
        told = ", ".join(f"{ratio:g}" for ratio in tight)
        about += f"; overflow at ratio {told}: the symbols do not fit {room:,} positions either"
    if n_tokens > settings.rival_tokens:
        slow = {c.method for c in kept if c.kind == "evictor"} | {
            name for name, peer in bench.peers.items() if peer.uses_base
        }
        kept = [c for c in kept if c.method not in slow]
        about += f"; not measured above {settings.rival_tokens:,} tokens: {', '.join(sorted(slow))}"
    long = n_tokens >= LONG_CONTEXT
    return QuestionTask(
        asked.name,
        asked.rows,
        conditions=kept,
        panel=panel,
        metric=asked.metric,
        about=about,
        batch=N_ENTRIES if long else 8,
        long=long,
    )


def _question_rows(
    name: str, rows: Sequence[QARow], settings: SuiteSettings, bench: Bench
) -> list[Asked]:
    """The tasks that one file of questions makes."""
    seed, k = settings.seed, settings.distractors
    good = [row for row in rows if row.answers]
    passages = [row.context for row in rows]
    if not good:
        raise ConfigError(f"{name} has no answerable question", field="questions", value=name)
    found: list[Asked] = [
        Asked(
            f"qa {name}",
            draw(good, limit=settings.questions, seed=seed),
            "f1",
            "questions with the passage that answers them",
        )
    ]
    chosen = draw(good, limit=settings.hard, seed=seed + 1)
    n_tokens = _mean_tokens(chosen[:20], bench.compressor.count_tokens)
    if n_tokens > LONG_CONTEXT or len(set(passages)) <= k:
        return found
    if k:
        about = f"the same with {k} other passages beside the right one, its place dealt out evenly"
        hard = with_distractors(chosen, passages=passages, k=k, seed=seed)
        found.append(Asked(f"qa {name} +{k}", hard, "f1", about))
    missing = unanswerable(rows, passages=passages, limit=settings.hard, seed=seed)
    about = "questions whose passage does not say; right is to answer `unknown`"
    if all(row.answers for row in rows):
        about += " (a passage without the answer was swapped in)"
    found.append(Asked(f"unanswerable {name}", missing, "refused", about))
    return found


def _needle_rows(books: Sequence[str], settings: SuiteSettings, bench: Bench) -> list[Asked]:
    """Every kind of needle at every length."""
    found: list[Asked] = []
    for kind in NEEDLE_KINDS:
        for length in settings.needle_tokens:
            rows = make_needles(
                books,
                kind=kind,
                n_tokens=length,
                limit=settings.needles if length <= LONG_NEEDLE else settings.long_needles,
                count_tokens=bench.compressor.count_tokens,
                seed=settings.seed,
            )
            about = f"a {kind} needle in {length:,} tokens of a book; the answer contains it"
            found.append(Asked(f"needle {kind} {length}", rows, "contains", about))
    return found


def _mean_tokens(rows: Sequence[QARow], count_tokens: Callable[[str], int]) -> float:
    some = rows[:20]
    return sum(count_tokens(row.context) for row in some) / max(1, len(some))


def settings_dict(settings: SuiteSettings) -> dict[str, Any]:
    """JSON-ready form of the settings."""
    return dataclasses.asdict(settings)
