"""Key-value eviction: the context is read whole, and most of it is dropped from the cache.

The presses of NVIDIA's `kvpress` choose what stays in every layer and head; the question and the
answer then see only that. Positions are counted as for symbols: those of the context that are kept,
while the prompt's own words stay beside them. Importing `kvpress` wraps the attention functions of
transformers; the wrappers do nothing for the presses used here. What it does not know: how a press
scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zcontext.caches import fork
from zcontext.config import GenerationSettings, Role
from zcontext.errors import ContextOverflowError
from zcontext.generation import Prefill, generate
from zcontext.model import ZLanguageModel
from zcontext.prompts import Piece, encode_messages, question_parts
from zcontext.vocabulary import Symbols

Press = Callable[[float, int], Any]
"""Makes a press from the fraction it removes and the positions at the end that it looks from."""

WINDOW = 64
"""Positions at the end that SnapKV looks from, at most: kvpress's default."""


class PressEvictor:
    """Answers from a cache that a press has pruned.

    Args:
        model: The reader.
        name: What reports call it.
        press: Makes the press.
        sees_question: Prune after the question was read, with the question's own positions as the
            window, and keep those. Otherwise the context is pruned before any question is known,
            as symbols are written, and one pruned cache serves many questions.
        role: The adapter that reads; the default is the reader of all other conditions.
    """

    def __init__(
        self,
        model: ZLanguageModel,
        *,
        name: str,
        press: Press,
        sees_question: bool = False,
        role: Role = "infer",
    ) -> None:
        self.name = name
        self._model = model
        self._press = press
        self._sees_question = sees_question
        self._role: Role = role
        self._kept: tuple[tuple[int, ...], int, Any] | None = None

    def answer(self, question: str, context: str, *, n_positions: int, max_new_tokens: int) -> str:
        """The answer, up to the end of its first line.

        Args:
            question: What is asked.
            context: The text to answer from.
            n_positions: Positions of the context kept in every layer.
            max_new_tokens: Tokens generated at most.

        Returns:
            The answer's text.

        Raises:
            ContextOverflowError: The prompt leaves no position for an answer.
        """
        ids, n_head, n_tail = self._prompt(question, context)
        room = self._model.context_length - len(ids)
        if room < 1:
            raise ContextOverflowError(
                f"the prompt takes {len(ids):,} positions of {self._model.context_length:,} before "
                "any of it is dropped; eviction cannot extend a context, give a shorter one"
            )
        n_context = len(ids) - n_head - n_tail
        past = None
        done = 0
        if n_context > n_positions:
            done = len(ids) - 1 if self._sees_question else n_head + n_context
            past = self._pruned(ids[:done], done - (n_context - n_positions), window=n_tail - 1)
        with self._model.using(self._role), torch.no_grad():
            embedded = self._model.embed_tokens(torch.tensor([ids[done:]]))[0]
        prompt = Prefill(
            embedded, torch.arange(done, len(ids)), len(ids), min(max_new_tokens, room)
        )
        settings = GenerationSettings(max_new_tokens=max_new_tokens, stop=("\n",))
        return generate(self._model, self._role, [prompt], settings=settings, past=past)[0].text

    def _prompt(self, question: str, context: str) -> tuple[list[int], int, int]:
        """The ids of the prompt of `ask`, and how many before and after the context are not its."""
        tokenizer = self._model.tokenizer
        ids = _ids(encode_messages(tokenizer, question_parts(question, (context,))))
        bare = _ids(encode_messages(tokenizer, question_parts(question, ())))
        n_head = _common(ids, bare)
        n_tail = min(_common(ids[::-1], bare[::-1]), min(len(ids), len(bare)) - n_head)
        return ids, n_head, n_tail

    def _pruned(self, ids: list[int], n_kept: int, *, window: int) -> Any:
        """Keys and values of a prefix, of which a press keeps some."""
        n = len(ids)
        key = (tuple(ids), n_kept)
        if self._kept is not None and self._kept[:2] == key:
            return fork(self._kept[2])
        # A fraction that comes to exactly n_kept positions when it is rounded down.
        removed = 1.0 - (n_kept + 0.5) / n
        if not self._sees_question:
            window = min(WINDOW, n_kept // 2)
        from transformers import DynamicCache

        base = self._model.base.model
        cache = DynamicCache()
        press = self._press(removed, max(1, window))
        with self._model.using(self._role), torch.no_grad(), _as_it_was(base), press(base):
            positions = torch.arange(n, device=self._model.device)
            base.base_model(
                inputs_embeds=self._model.embed_tokens(torch.tensor([ids])),
                position_ids=positions.unsqueeze(0),
                past_key_values=cache,
                use_cache=True,
                # Presses ask for it; since 5.3 transformers passes it on only where it is given.
                cache_position=positions,
            )
        self._kept = (*key, fork(cache))
        return cache


@contextmanager
def _as_it_was(base: Any) -> Iterator[None]:
    """Take away again what presses leave in the attention layers: a shared rotary module."""
    layers = [layer.self_attn for layer in base.base_model.layers]
    before = [set(layer._modules) for layer in layers]
    try:
        yield
    finally:
        for layer, names in zip(layers, before, strict=True):
            for name in set(layer._modules) - names:
                del layer._modules[name]


def _ids(pieces: list[Piece]) -> list[int]:
    return [token for piece in pieces if not isinstance(piece, Symbols) for token in piece]


def _common(one: list[int], other: list[int]) -> int:
    n = 0
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    return n


def kvpress_evictors(model: ZLanguageModel) -> list[PressEvictor]:
    """SnapKV, with and without a look at the question, and Expected Attention, of `kvpress`.

    Args:
        model: The reader; of a family that kvpress knows.

    Returns:
        Evictors.
    """
    from kvpress import ExpectedAttentionPress, SnapKVPress

    def snap(removed: float, window: int) -> Any:
        return SnapKVPress(compression_ratio=removed, window_size=window)

    def expected(removed: float, window: int) -> Any:
        return ExpectedAttentionPress(compression_ratio=removed)

    return [
        PressEvictor(model, name="snapkv", press=snap),
        PressEvictor(model, name="snapkv-question", press=snap, sees_question=True),
        PressEvictor(model, name="expected-attention", press=expected),
    ]
