"""Figures of merit on texts, and how sure they are.

SQuAD's exact match and F1 by the official normalisation, sacrebleu, ROUGE-L, what survives of
numbers and names, and bootstrap intervals (Efron 1979). It knows strings and numbers; no model, no
symbols.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from zcontext.errors import ConfigError, MissingDependencyError
from zcontext.fragile import whole_words

N_RESAMPLES: Final = 1000
LEVEL: Final = 0.95

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: The figure on all items.
        low: Lower end of the 95 % bootstrap interval.
        high: Upper end.
        n: Items it was measured on.
    """

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float]:
        """JSON-ready form."""
        return asdict(self)

    def format(self, digits: int = 3) -> str:
        """Value and interval, as `0.712 [0.700, 0.725]`."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def bootstrap(
    *columns: Sequence[float],
    statistic: Callable[..., npt.NDArray[np.float64]] | None = None,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Estimate:
    """Percentile bootstrap of a function of means, items resampled as wholes.

    Args:
        *columns: One or more figures per item, all of one length; they stay paired.
        statistic: Means of the columns, `[n_resamples]` each, to the figure; None takes the first.
        seed: Of the resampling.
        n_resamples: Resamples drawn.

    Returns:
        The figure on all items and its interval. Resamples where it is not a number (a division
        by zero) are left out.

    Raises:
        ConfigError: There is no item, or the columns differ in length.
    """
    table = np.asarray(columns, dtype=np.float64)
    if table.ndim != 2 or not table.shape[1]:
        raise ConfigError(
            f"a mean needs items: got {[len(c) for c in columns]} in {len(columns)} columns",
            field="columns",
            value=len(columns),
        )
    compute = statistic or (lambda first: first)
    n = table.shape[1]
    generator = np.random.default_rng(seed)
    means = np.empty((len(table), n_resamples))
    for k in range(n_resamples):  # row by row: [n_resamples, n] at once is 80 MB for 10,000 items
        means[:, k] = table[:, generator.integers(0, n, n)].mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.asarray(compute(*table.mean(axis=1))))
        drawn = np.asarray(compute(*means), dtype=np.float64)
    drawn = drawn[np.isfinite(drawn)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (value, value)
    return Estimate(value, float(low), float(high), n)


# -- question answering -------------------------------------------------------------------------


def normalise_answer(text: str) -> str:
    """SQuAD's official normalisation: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals one of the answers after normalisation, else 0.0.

    Without answers (an unanswerable question) only the empty prediction is right.
    """
    said = normalise_answer(prediction)
    return float(any(said == normalise_answer(answer) for answer in answers or ("",)))


def f1_score(prediction: str, answers: Sequence[str]) -> float:
    """The best token F1 over the answers, as the official SQuAD script computes it."""
    return max(_f1(prediction, answer) for answer in answers or ("",))


def _f1(prediction: str, answer: str) -> float:
    said, wanted = normalise_answer(prediction).split(), normalise_answer(answer).split()
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


# -- reconstruction -----------------------------------------------------------------------------


def corpus_bleu(texts: Sequence[str], references: Sequence[str]) -> Estimate:
    """Corpus BLEU-4 of sacrebleu (default tokeniser), 0 to 100, with its own bootstrap interval.

    Args:
        texts: What was restored.
        references: The sources, in the same order.

    Returns:
        The score; the interval is the mean of sacrebleu's resamples plus or minus its half-width.

    Raises:
        MissingDependencyError: sacrebleu is not installed.
        ConfigError: There is no text.
    """
    if not texts:
        raise ConfigError("BLEU of no text is undefined; give some", field="texts", value=0)
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise MissingDependencyError(
            "BLEU needs sacrebleu: pip install 'zcontext[eval]'", extra="eval"
        ) from error
    # Restored text is tokenised on purpose, so sacrebleu's warning about it would be noise.
    metric = BLEU(force=True)
    score = metric.corpus_score(list(texts), [list(references)], n_bootstrap=N_RESAMPLES)
    centre, half = getattr(score, "_mean", -1.0), getattr(score, "_ci", -1.0)
    if len(texts) == 1 or half < 0:
        centre, half = score.score, 0.0
    return Estimate(
        float(score.score),
        float(max(0.0, centre - half)),
        float(min(100.0, centre + half)),
        len(texts),
    )


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F-measure of every pair, 0 to 1.

    Args:
        texts: What was restored.
        references: The sources, in the same order.

    Returns:
        One figure per pair.

    Raises:
        MissingDependencyError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingDependencyError(
            "ROUGE needs rouge-score: pip install 'zcontext[eval]'", extra="eval"
        ) from error
    scorer = RougeScorer(["rougeL"])
    return [
        float(scorer.score(reference, text)["rougeL"].fmeasure)
        for text, reference in zip(texts, references, strict=True)
    ]


def token_accuracy(found: Sequence[int], wanted: Sequence[int]) -> float:
    """Share of the wanted tokens that stand at their own place; 1.0 when nothing is wanted."""
    if not wanted:
        return 1.0
    return sum(a == b for a, b in zip(found, wanted, strict=False)) / len(wanted)


def kept_share(text: str, facts: Sequence[str]) -> float | None:
    """Share of facts (numbers, names) that a text still holds, as whole words.

    Args:
        text: What was restored.
        facts: What the source held; one that occurs twice must be found twice.

    Returns:
        The share, or None when there are no facts.
    """
    if not facts:
        return None
    kept = sum(
        min(count, len(whole_words(fact).findall(text))) for fact, count in Counter(facts).items()
    )
    return kept / len(facts)
