"""Continuation as a task: how well the next tokens are foreseen from what stands before them.

Bits per token of the next 256 tokens, given the text before them raw, as symbols, cut to as many
positions (its end, the nearest text), as another text's symbols, or not at all. The share of the
way from no context to raw that symbols go is the retention of this task. It meets the models
through a `Foreteller`; `foretellers` has the real ones.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zcontext.errors import ConfigError
from zcontext.evaluation.conditions import FOR_QUESTIONS, Condition, Reader
from zcontext.evaluation.contexts import Contexts
from zcontext.evaluation.metrics import Estimate
from zcontext.evaluation.predictions import Prediction, PredictionLog, digest_of
from zcontext.evaluation.scoring import compare
from zcontext.spans import Part


@dataclass(frozen=True, slots=True)
class Passage:
    """A text and what follows it.

    Attributes:
        context: The text.
        following: Token ids of what follows.
    """

    context: str
    following: tuple[int, ...]


class Locates(Protocol):
    """Knows where tokens start."""

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a text, and the character at which each of them starts."""


class Foreteller(Protocol):
    """Foresees tokens from a context.

    Attributes:
        identity: Digest of everything its figures depend on.
    """

    identity: str

    def bits(self, context: Sequence[Part], following: Sequence[int]) -> float:
        """Mean bits per token of what follows a context; an empty one is allowed."""

    def count(self, parts: Sequence[Part]) -> int:
        """Positions that parts take."""


def cut_passages(
    texts: Sequence[str],
    *,
    judge: Locates,
    n_context: int,
    n_following: int,
    limit: int,
    seed: int = 0,
) -> list[Passage]:
    """Draw stretches of running text, cut in two.

    Neighbouring texts are joined until a stretch is long enough: the paragraphs of a corpus are
    short, and follow each other in the file as they did in the article.

    Args:
        texts: In the order in which they follow each other.
        judge: Knows the tokens.
        n_context: Tokens of the first part.
        n_following: Tokens of the second.
        limit: How many.
        seed: Of the draw.

    Returns:
        Passages in random order; no two share a token.

    Raises:
        ConfigError: The texts hold fewer than two: shuffling needs two.
    """
    found: list[Passage] = []
    held, wanted = "", n_context + n_following
    for text in texts:
        held = f"{held}\n{text}" if held else text
        if len(held) < 2 * wanted:  # a token has two characters at least, nearly everywhere
            continue
        _, starts = judge.encode(held)
        if len(starts) <= wanted:
            continue
        middle, end = starts[n_context], starts[wanted]
        following, _ = judge.encode(held[middle:end])
        found.append(Passage(held[:middle], tuple(following[:n_following])))
        held = ""
    random.Random(seed).shuffle(found)
    if len(found) < 2:
        raise ConfigError(
            f"the texts hold {len(found)} stretches of {wanted} tokens, at least 2 are needed; "
            "give longer texts or a shorter context",
            field="n_context",
            value=n_context,
        )
    return found[:limit]


class ContinuationTask:
    """Passages whose continuation is foreseen.

    Args:
        passages: From `cut_passages`.
        conditions: What stands before it.
        contexts: Makes what a reader is given; its cut text keeps the end.
        foretellers: The readers.
        about: One sentence for the report.
        name: What reports call it.
    """

    metric = "bits"
    batch = 4

    def __init__(
        self,
        passages: Sequence[Passage],
        *,
        conditions: Sequence[Condition],
        contexts: Contexts,
        foretellers: Mapping[Reader, Foreteller],
        about: str = "",
        name: str = "continuation",
    ) -> None:
        self.passages = list(passages)
        # Evictors answer questions; they have no bits to offer.
        without = (*FOR_QUESTIONS, "evictor")
        self.conditions = tuple(c for c in conditions if c.kind not in without)
        self.contexts = contexts
        self.foretellers = foretellers
        self.about = about
        self.name = name

    def __len__(self) -> int:
        return len(self.passages)

    def key(self, item: int, condition: Condition) -> str:
        """Digest of everything that shapes one prediction."""
        passage = self.passages[item]
        facts: list[Any] = [
            "continuation",
            self.foretellers[condition.reader].identity,
            self.contexts.writer if condition.is_written else "",
            condition.name,
            passage.context,
            passage.following,
            *condition.terms,
        ]
        if condition.kind == "shuffled":
            facts.append(self._other(item).context)
        return digest_of(*facts)

    def detail(self, item: int) -> dict[str, Any]:
        """How long it is, and how it begins."""
        passage = self.passages[item]
        return {"context": passage.context[:60], "n_following": len(passage.following)}

    def run(self, items: Sequence[int], condition: Condition) -> list[Prediction]:
        """Foresee some continuations.

        Args:
            items: Their numbers.
            condition: In which form the context is given.

        Returns:
            One prediction each; its text is the bits per token.
        """
        foreteller = self.foretellers[condition.reader]
        found = []
        for item in items:
            passage = self.passages[item]
            parts = self.contexts.parts(
                (passage.context,), condition, others=(self._other(item).context,)
            )
            bits = foreteller.bits(parts, passage.following)
            n = foreteller.count(parts)
            found.append(Prediction(self.key(item, condition), repr(bits), n))
        return found

    def scores(self, item: int, text: str) -> dict[str, float]:
        """Bits per token with the sign turned, so that more is better.

        Args:
            item: Of which passage.
            text: The bits, as they were kept.

        Returns:
            The one figure.
        """
        return {"bits": -float(text)}

    def report(self, log: PredictionLog, *, seed: int) -> dict[str, Any]:
        """Figures of all conditions; bits as they are, and the perplexity that they make.

        Args:
            log: Predictions; passages that lack some are left out.
            seed: Of the bootstrap.

        Returns:
            JSON-ready. Differences to rivals are in bits saved: more is better for symbols.
        """
        found = compare(self, log, seed=seed)
        rows = []
        for row in found.rows:
            saved = row.figures["bits"]
            bits = Estimate(-saved.value, -saved.high, -saved.low, saved.n)
            perplexity = Estimate(2**bits.value, 2**bits.low, 2**bits.high, bits.n)
            rows.append(dataclasses.replace(row, figures={"bits": bits, "perplexity": perplexity}))
        return found.to_dict(self, rows)

    def _other(self, item: int) -> Passage:
        return self.passages[(item + 1) % len(self.passages)]
