"""Peers: what a user would shorten a context with instead, run in this process on the same base.

A `Peer` returns a shorter text; an `Evictor` answers from a shortened key-value cache. What it does
not know: how symbols are written, which questions are asked, how answers are scored.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Protocol

from zcontext.model import ZLanguageModel

logger = logging.getLogger(__name__)
_EXTRA = "pip install 'zcontext[peers]'"


class Peer(Protocol):
    """Shortens a text to a budget of the base's tokens.

    Attributes:
        name: What reports call it.
        sees_question: Whether what is left depends on the question.
        uses_base: Whether it runs the base over the whole text, and costs as much as reading it.
    """

    name: str
    sees_question: bool
    uses_base: bool

    def shorten(self, text: str, *, n_tokens: int, question: str | None = None) -> str:
        """The text, or what is left of it.

        Args:
            text: Any text.
            n_tokens: Base tokens the result may take, 0 or more.
            question: What will be asked, for peers that look at it.

        Returns:
            At most `n_tokens` tokens of the base's tokenizer; the text itself where it fits.
        """
        ...


class Evictor(Protocol):
    """Answers from a context of which only some positions stay in the key-value cache.

    Attributes:
        name: What reports call it.
    """

    name: str

    def answer(self, question: str, context: str, *, n_positions: int, max_new_tokens: int) -> str:
        """The answer, in the prompt of `ask`.

        Args:
            question: What is asked.
            context: The text to answer from.
            n_positions: Positions of the context kept in every layer.
            max_new_tokens: Tokens generated at most.

        Returns:
            The answer's text.
        """
        ...


def find_peers(model: ZLanguageModel) -> list[Peer]:
    """The peers that are installed; a log line names those that are not.

    Args:
        model: Its plain base is what every peer that needs a model uses.

    Returns:
        Peers, in the order of reports.
    """
    from zcontext.evaluation.peers.minilm import REMEDY, MiniLM, minilm_folder
    from zcontext.evaluation.peers.selective_context import SelectiveContext
    from zcontext.evaluation.peers.sentence_filter import SentenceFilter

    peers: list[Peer] = [SelectiveContext(model)]
    if minilm_folder() is None:
        logger.warning("peer minilm is left out; to have it: %s", REMEDY)
    else:
        peers.append(SentenceFilter(model, MiniLM()))
    if find_spec("llmlingua") is None:
        logger.warning("peers llmlingua and longllmlingua are left out; to have them: %s", _EXTRA)
    else:
        from zcontext.evaluation.peers.lingua import LLMLingua

        peers += [LLMLingua(model), LLMLingua(model, question_aware=True)]
    return peers


def find_evictors(model: ZLanguageModel) -> list[Evictor]:
    """The evictors that are installed; a log line names those that are not.

    Args:
        model: Its reader answers.

    Returns:
        Evictors, in the order of reports.
    """
    if find_spec("kvpress") is None:
        logger.warning(
            "evictors snapkv and expected-attention are left out; to have them: %s", _EXTRA
        )
        return []
    layers = getattr(model.base.model.base_model, "layers", None)
    if not layers or not hasattr(layers[0], "self_attn"):
        logger.warning(
            "evictors are left out: kvpress does not know bases like %s", model.base.name
        )
        return []
    from zcontext.evaluation.peers.eviction import kvpress_evictors

    return [*kvpress_evictors(model)]
