"""Questions as a task: every row is asked under every condition, and scored.

Gold passage alone, among distractors, missing (unanswerable), or a needle in a long text: the rows
differ, the asking does not. It meets readers, compressor and evictors through their Protocols.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from zcontext.config import GenerationSettings, to_json
from zcontext.evaluation.conditions import FOR_QUESTIONS, TO_GO_ON, Condition, Reader
from zcontext.evaluation.contexts import Contexts
from zcontext.evaluation.metrics import exact_match, f1_score, normalise_answer
from zcontext.evaluation.peers import Evictor
from zcontext.evaluation.predictions import Prediction, PredictionLog, digest_of
from zcontext.evaluation.questions import QARow
from zcontext.evaluation.respondents import PROMPT_POSITIONS, Respondent
from zcontext.evaluation.scoring import compare

Metric = Literal["f1", "contains", "refused"]
ANSWER = GenerationSettings(max_new_tokens=24, stop=("\n",))
REFUSALS = frozenset({"", "unknown", "unanswerable", "no answer", "not mentioned", "not stated"})


@dataclass(frozen=True, slots=True)
class Panel:
    """Who answers, from what.

    Attributes:
        contexts: Makes what a reader is given.
        respondents: The readers.
        evictors: Methods that answer from fewer positions, by name.
        generation: How answers are generated.
    """

    contexts: Contexts
    respondents: Mapping[Reader, Respondent]
    evictors: Mapping[str, Evictor] = field(default_factory=dict)
    generation: GenerationSettings = ANSWER


class QuestionTask:
    """Rows that are asked.

    Args:
        name: What reports call it.
        rows: The rows.
        conditions: Under which they are asked.
        panel: Who answers.
        metric: What its headline is about: F1, containment, or having said `unknown`.
        about: One sentence for the report.
        batch: Questions asked together.
        long: Contexts are long, and neighbours may share one: questions are asked one by one, and
            what a prompt has in common with the one before is not read again.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[QARow],
        *,
        conditions: Sequence[Condition],
        panel: Panel,
        metric: Metric = "f1",
        about: str = "",
        batch: int = 8,
        long: bool = False,
    ) -> None:
        self.name = name
        self.rows = list(rows)
        # A question is about all of a text, not about its end.
        self.conditions = tuple(c for c in conditions if c.kind != TO_GO_ON)
        self.panel = panel
        self.metric = metric
        self.about = about
        self.batch = batch
        self.long = long

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, item: int, condition: Condition) -> str:
        """Digest of everything that shapes one prediction."""
        row, respondent = self.rows[item], self.panel.respondents[condition.reader]
        facts: list[Any] = [
            respondent.identity,
            self.panel.contexts.writer if condition.is_written else "",
            condition.name,
            to_json(self.panel.generation),
            row.pieces,
            row.question,
            *condition.terms,
        ]
        if condition.kind == "shuffled":
            facts.append(self._other(item).pieces)
        if condition.kind in FOR_QUESTIONS:
            facts.append(self.panel.contexts.focus)
        return digest_of(*facts)

    def detail(self, item: int) -> dict[str, Any]:
        """The question and what counts as right."""
        row = self.rows[item]
        return {"question": row.question, "answers": row.answers, "place": row.place}

    def run(self, items: Sequence[int], condition: Condition) -> list[Prediction]:
        """Ask some rows.

        Args:
            items: Their numbers.
            condition: In which form the context is given.

        Returns:
            One prediction each.
        """
        if condition.kind == "evictor":
            return [self._evicted(item, condition) for item in items]
        panel = self.panel
        respondent = panel.respondents[condition.reader]
        told = {item: self._told(item, condition) for item in items}
        if condition.ratio:
            pieces = [piece for of in told.values() for piece in of]
            panel.contexts.write(pieces, ratio=condition.ratio, depth=condition.depth)
        given = []
        for item in items:
            row = self.rows[item]
            parts = panel.contexts.parts(
                row.pieces,
                condition,
                text=row.context,
                others=told[item],
                question=row.question,
                room=self._room(row, respondent),
            )
            given.append((row.question, parts))
        texts = respondent.answer(given, settings=panel.generation, alike=self.long)
        return [
            Prediction(
                self.key(item, condition),
                text,
                respondent.count(parts),
                self._n_over(item, condition),
            )
            for item, text, (_, parts) in zip(items, texts, given, strict=True)
        ]

    def scores(self, item: int, text: str) -> dict[str, float]:
        """What an answer is worth; the task's own metric first.

        Args:
            item: To which row.
            text: The answer.

        Returns:
            Figures by name, higher is better for the first.
        """
        row = self.rows[item]
        refused = float(is_refusal(text))
        if self.metric == "refused":
            return {"refused": refused}
        if self.metric == "contains":
            return {"contains": contains(text, row.answers), "refused": refused}
        return {
            "f1": f1_score(text, row.answers),
            "exact_match": exact_match(text, row.answers),
            "refused": refused,
        }

    def report(self, log: PredictionLog, *, seed: int) -> dict[str, Any]:
        """Figures of all conditions, and by where the answer stands.

        Args:
            log: Predictions; rows that lack some are left out.
            seed: Of the bootstrap.

        Returns:
            JSON-ready.
        """
        found = compare(self, log, seed=seed)
        rows = found.rows
        if self.metric == "refused":
            # Who reads nothing refuses best: there is no way from none to raw to go.
            rows = tuple(dataclasses.replace(row, retention=None) for row in rows)
        places = [self.rows[item].place for item in found.items]
        by_place = {}
        for place in sorted({p for p in places if p is not None}):
            by_place[f"{place:.2f}"] = {
                name: fmean(v for v, at in zip(of[self.metric], places, strict=True) if at == place)
                for name, of in found.columns.items()
            }
        return {**found.to_dict(self, rows), "by_place": by_place}

    def _evicted(self, item: int, condition: Condition) -> Prediction:
        row = self.rows[item]
        respondent = self.panel.respondents[condition.reader]
        n = self.panel.contexts.n_positions(row.pieces, condition)
        # An evictor reads the whole text before it drops anything.
        whole = self.panel.contexts.parts(
            row.pieces,
            Condition("raw", reader=condition.reader),
            text=row.context,
            room=self._room(row, respondent),
        )
        text = self.panel.evictors[condition.method].answer(
            row.question,
            "".join(part for part in whole if isinstance(part, str)),
            n_positions=n,
            max_new_tokens=self.panel.generation.max_new_tokens,
        )
        # The others stop at a line's end too.
        over = self._n_over(item, condition)
        return Prediction(self.key(item, condition), text.split("\n")[0], n, over)

    def _told(self, item: int, condition: Condition) -> tuple[str, ...]:
        """The passages whose symbols are shown."""
        return (self._other(item) if condition.kind == "shuffled" else self.rows[item]).pieces

    def _n_over(self, item: int, condition: Condition) -> int:
        row, respondent = self.rows[item], self.panel.respondents[condition.reader]
        return self.panel.contexts.n_over(
            self._told(item, condition),
            condition,
            text=row.context,
            room=self._room(row, respondent),
        )

    def _room(self, row: QARow, respondent: Respondent) -> int:
        asked = self.panel.contexts.compressor.count_tokens(row.question) + PROMPT_POSITIONS
        free = respondent.context_length - asked - self.panel.generation.max_new_tokens
        return max(1, free)

    def _other(self, item: int) -> QARow:
        """The next row about another context: its symbols are the wrong ones."""
        n = len(self.rows)
        later = (self.rows[(item + step) % n] for step in range(1, n))
        mine = self.rows[item]
        return next((row for row in later if row.context != mine.context), mine)


def is_refusal(text: str) -> bool:
    """Whether an answer says that there is none, in the word that the prompt asks for."""
    return normalise_answer(text) in REFUSALS


def contains(text: str, answers: Sequence[str]) -> float:
    """1.0 if one of the answers stands in a text as whole words, else 0.0.

    Args:
        text: What was answered.
        answers: What counts as right.

    Returns:
        The score, after the official normalisation of both.
    """
    said = f" {normalise_answer(text)} "
    return float(any(f" {normalise_answer(answer)} " in said for answer in answers))
