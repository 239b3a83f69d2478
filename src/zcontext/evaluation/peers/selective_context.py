"""Selective Context: drop what the base finds least surprising (Li et al., EMNLP 2023).

Self-information of every token under the plain base, averaged over a lexical unit; units with the
least are dropped, the question is not looked at. The paper takes noun phrases from a parser; here a
phrase ends at punctuation and where a function word follows a content word, and the cut is the
budget's, not a percentile. What it does not know: symbols, questions.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Sequence
from functools import lru_cache

import torch

from zcontext.evaluation.peers.trimming import best_pieces
from zcontext.model import ZLanguageModel
from zcontext.tokenization import TokenizedText, text_tokenizer

WINDOW, CONTEXT = 1024, 256
"""Tokens of one pass, and how many of them are only read again."""

KEPT = 64
"""Texts whose surprisals are kept: the same ones are shortened to several budgets."""

_WORD = re.compile(r"\s*(?:\w+(?:['\u2019\-]\w+)*|[^\w\s]+)|\s+\Z")
_FUNCTION_WORDS = frozenset(
    [
        "a",
        "about",
        "after",
        "all",
        "also",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "before",
        "both",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "during",
        "each",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "how",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "may",
        "more",
        "most",
        "no",
        "nor",
        "not",
        "of",
        "on",
        "one",
        "or",
        "other",
        "our",
        "over",
        "she",
        "should",
        "so",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "through",
        "to",
        "under",
        "until",
        "up",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "whose",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


def phrases(text: str) -> list[str]:
    """A text as short runs of words, punctuation closing the run before it.

    Args:
        text: Any text.

    Returns:
        Phrases; joined they are the text.
    """
    found: list[str] = []
    content = closed = False
    for match in _WORD.finditer(text):
        word = match.group()
        bare = word.strip().lower()
        is_word = bool(bare) and (bare[0].isalnum() or bare[0] == "_")
        function = bare in _FUNCTION_WORDS
        if not found or (is_word and (closed or (function and content))):
            found.append(word)
            content = False
        else:
            found[-1] += word
        content = content or (is_word and not function)
        closed = not is_word
    return found


def surprisals(model: ZLanguageModel, ids: Sequence[int]) -> list[float]:
    """Bits of every token under the plain base, in windows that see what came before.

    Args:
        model: Its adapters are switched off.
        ids: Token ids.

    Returns:
        One number of bits per token.
    """
    bits: list[float] = []
    while len(bits) < len(ids):
        done = len(bits)
        first = max(0, done - CONTEXT)
        last = min(len(ids), first + WINDOW)
        inputs = torch.tensor([[model.start_token, *ids[first : last - 1]]], device=model.device)
        targets = torch.tensor(ids[done:last], device=model.device)
        n = inputs.shape[1]
        with model.using(None), torch.no_grad():
            hidden = model.run(
                model.embed_tokens(inputs),
                positions=torch.arange(n).unsqueeze(0),
                mask=torch.ones(1, n, dtype=torch.long),
            ).hidden[0, done - first :]
            for start in range(0, len(hidden), 128):
                shares = model.logits(hidden[start : start + 128]).log_softmax(-1)
                picked = shares.gather(-1, targets[start : start + 128].unsqueeze(-1))
                bits += (picked.squeeze(-1) / -math.log(2)).tolist()
    return bits


class SelectiveContext:
    """Keeps the phrases, or sentences, that surprise the base most.

    Args:
        model: Its plain base is asked.
    """

    def __init__(self, model: ZLanguageModel) -> None:
        self.name = "selective-context"
        self.sees_question = False
        self.uses_base = True
        self._model = model
        self._tokens = text_tokenizer(model.tokenizer)
        self._surprisals = lru_cache(KEPT)(self._surprisals_of)

    def shorten(self, text: str, *, n_tokens: int, question: str | None = None) -> str:
        """The most surprising phrases, in order.

        Args:
            text: Any text.
            n_tokens: Base tokens the result may take.
            question: Not looked at: the method knows no question.

        Returns:
            The text itself where it fits.
        """
        located = self._tokens.locate(text, max_tokens=max(1, len(text.encode())))
        if len(located) <= n_tokens:
            return text
        pieces = phrases(text)
        scores = _means(pieces, located, self._surprisals(text))
        return best_pieces(pieces, scores, n_tokens=n_tokens, tokens=self._tokens)

    def _surprisals_of(self, text: str) -> list[float]:
        located = self._tokens.locate(text, max_tokens=max(1, len(text.encode())))
        return surprisals(self._model, located.ids)


def _means(pieces: Sequence[str], located: TokenizedText, bits: Sequence[float]) -> list[float]:
    """Mean surprisal of the tokens that start in each piece; 0 where none does."""
    ends = array("q")
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    sums, counts = [0.0] * len(pieces), [0] * len(pieces)
    at = 0
    for start, value in zip(located.starts, bits, strict=True):
        while start >= ends[at]:
            at += 1
        sums[at] += value
        counts[at] += 1
    return [total / n if n else 0.0 for total, n in zip(sums, counts, strict=True)]
