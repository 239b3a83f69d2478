"""Who answers: the INFER adapter, or the control that reads raw text.

Two controls are known: another bundle, whose INFER adapter was trained on raw text, and the plain
base with every adapter off. Both get the same prompt. They know one model each; not what is asked,
nor how it is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from zcontext.config import GenerationSettings
from zcontext.evaluation.identities import base_identity, infer_identity
from zcontext.evaluation.predictions import digest_of
from zcontext.evaluation.rereading import Rereader
from zcontext.generation import Prefill, generate
from zcontext.model import ZLanguageModel
from zcontext.prompts import encode_messages, encode_parts, n_positions, question_parts
from zcontext.spans import ChatMessage, Part, SupportsRead
from zcontext.vocabulary import Symbols

PROMPT_POSITIONS = 96
"""Positions kept free for the wording around a context and the question in it."""

Asked = tuple[str, Sequence[Part]]
"""A question and the context to answer it from."""


class Respondent(Protocol):
    """Answers questions from contexts.

    Attributes:
        name: What reports call it.
        identity: Digest of everything its answers depend on; predictions are kept under it.
        context_length: Most positions, prompt and answer together.
    """

    name: str
    identity: str

    @property
    def context_length(self) -> int:
        """Most positions, prompt and answer together."""

    def answer(
        self, asked: Sequence[Asked], *, settings: GenerationSettings, alike: bool = False
    ) -> list[str]:
        """One answer per question, in order; `alike` where neighbours share a long context."""

    def count(self, parts: Sequence[Part]) -> int:
        """Positions that parts take."""


class ReaderRespondent:
    """A reader as a respondent.

    Args:
        reader: Answers, several questions together where it can (`ask_many`).
        name: What reports call it.
    """

    def __init__(self, reader: SupportsRead, *, name: str = "INFER") -> None:
        self.reader = reader
        self.name = name
        # What has no model (a stand-in in tests) is named by its codec.
        model = getattr(reader, "model", None)
        self.identity = reader.codec if model is None else infer_identity(model)
        bias = getattr(reader, "reply_bias", {})
        if bias:
            self.identity = digest_of(self.identity, *bias.items())
        self._one_by_one = None if model is None else Rereader(model, "infer", first_bias=bias)

    @property
    def context_length(self) -> int:
        """Most positions, prompt and answer together."""
        return self.reader.context_length

    def answer(
        self, asked: Sequence[Asked], *, settings: GenerationSettings, alike: bool = False
    ) -> list[str]:
        """One answer per question, in order.

        Args:
            asked: Questions and contexts.
            settings: How answers are generated.
            alike: Neighbours may share a long context: ask one by one, and read it once.

        Returns:
            Their texts.
        """
        if alike and self._one_by_one is not None:
            return _one_by_one(self._one_by_one, asked, settings)
        together = getattr(self.reader, "ask_many", None)
        if together is not None:
            answers = together([q for q, _ in asked], [c for _, c in asked], settings=settings)
            return [answer.text for answer in answers]
        return [self.reader.ask(q, c, settings=settings).text for q, c in asked]

    def count(self, parts: Sequence[Part]) -> int:
        """Positions that parts take."""
        return self.reader.count(parts)


class PlainBase:
    """The base model itself, every adapter off, in the prompt that INFER gets.

    Args:
        model: Its base answers.
    """

    def __init__(self, model: ZLanguageModel) -> None:
        self.model = model
        self.name = "plain base"
        self.identity = base_identity(model)
        self._one_by_one = Rereader(model, None)

    @property
    def context_length(self) -> int:
        """Most positions, prompt and answer together."""
        return self.model.context_length

    def answer(
        self, asked: Sequence[Asked], *, settings: GenerationSettings, alike: bool = False
    ) -> list[str]:
        """One answer per question, in order; contexts are text.

        Args:
            asked: Questions and contexts, no symbols in them.
            settings: How answers are generated.
            alike: Neighbours may share a long context: ask one by one, and read it once.

        Returns:
            Their texts.
        """
        if alike:
            return _one_by_one(self._one_by_one, asked, settings)
        return self.say([question_parts(*each) for each in asked], settings=settings)

    def say(
        self, chats: Sequence[Sequence[ChatMessage]], *, settings: GenerationSettings
    ) -> list[str]:
        """The next turn of each chat.

        Args:
            chats: No symbols in them.
            settings: How turns are generated.

        Returns:
            Their texts, in order.
        """
        rows = []
        for messages in chats:
            pieces = encode_messages(self.model.tokenizer, messages)
            ids = [token for piece in pieces if not isinstance(piece, Symbols) for token in piece]
            embedded = self.model.embed_tokens(torch.tensor([ids]))[0].detach()
            n = len(ids)
            rows.append(Prefill(embedded, torch.arange(n), n, settings.max_new_tokens))
        found = generate(self.model, None, rows, settings=settings)
        return [result.text for result in found]

    def count(self, parts: Sequence[Part]) -> int:
        """Positions that parts take."""
        return n_positions(encode_parts(self.model.tokenizer, parts))


def _one_by_one(
    reader: Rereader, asked: Sequence[Asked], settings: GenerationSettings
) -> list[str]:
    tokenizer = reader.model.tokenizer
    return [
        reader.generate(
            encode_messages(tokenizer, question_parts(question, context)), settings=settings
        )
        for question, context in asked
    ]
