"""An embeddings filter: the sentences nearest to the question, as the frameworks offer it.

What LangChain's `EmbeddingsFilter` does to chunks and LlamaIndex's `SentenceEmbeddingOptimizer` to
sentences: cosine similarity to the question, the nearest are kept, in order. Here the cut is a
budget of tokens instead of a share. What it does not know: which encoder embeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from zcontext.evaluation.peers.trimming import best_pieces, sentences
from zcontext.model import ZLanguageModel
from zcontext.tokenization import text_tokenizer

KEPT = 64
"""Texts whose sentences' vectors are kept."""


class Encoder(Protocol):
    """Embeds texts."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors of length one.

        Args:
            texts: One or more.

        Returns:
            `[text, size]`.
        """
        ...


class SentenceFilter:
    """Keeps the sentences nearest to the question.

    Args:
        model: Its tokenizer counts.
        encoder: Embeds sentences and question.
        name: What reports call it.
    """

    def __init__(self, model: ZLanguageModel, encoder: Encoder, *, name: str = "minilm") -> None:
        self.name = name
        self.sees_question = True
        self.uses_base = False
        self._encoder = encoder
        self._tokens = text_tokenizer(model.tokenizer)
        # The same text is shortened to several budgets, for several questions.
        self._vectors = lru_cache(KEPT)(self._vectors_of)

    def shorten(self, text: str, *, n_tokens: int, question: str | None = None) -> str:
        """The nearest sentences, in order.

        Args:
            text: Any text.
            n_tokens: Base tokens the result may take.
            question: What they are compared with; without one, the mean of all sentences.

        Returns:
            The text itself where it fits.
        """
        if self._tokens.count(text) <= n_tokens:
            return text
        pieces = sentences(text)
        vectors = self._vectors(text)
        target = vectors.mean(0) if question is None else self._encoder.embed([question])[0]
        scores: list[float] = (vectors @ target).tolist()
        return best_pieces(pieces, scores, n_tokens=n_tokens, tokens=self._tokens)

    def _vectors_of(self, text: str) -> Tensor:
        return self._encoder.embed(sentences(text))
