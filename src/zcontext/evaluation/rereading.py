"""One prompt after another by one reader, what they begin with in common read once.

Questions about one long context differ at their end only; the keys and values of the rest are kept
from one to the next, whatever the context is made of. Answers are those of reading every prompt
from its start. It knows one model and one role; not what is asked.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zcontext.caches import fork
from zcontext.config import GenerationSettings, Role
from zcontext.generation import Prefill, generate
from zcontext.layouts import embed_pieces
from zcontext.model import ZLanguageModel
from zcontext.prompts import Piece
from zcontext.vocabulary import Symbols


class Rereader:
    """Generates behind prompts, and keeps the last one's keys and values.

    Args:
        model: The model.
        role: The adapter that reads; None is the plain base.
        first_bias: Added to the scores of tokens where an answer begins.

    Attributes:
        n_read: Positions read so far, without those that were kept.
    """

    def __init__(
        self,
        model: ZLanguageModel,
        role: Role | None,
        *,
        first_bias: Mapping[int, float] | None = None,
    ) -> None:
        self.model = model
        self._first_bias = first_bias or {}
        self.n_read = 0
        self._role: Role | None = role
        self._signs: list[Hashable] = []
        self._past: Any = None

    def generate(self, pieces: Sequence[Piece], *, settings: GenerationSettings) -> str:
        """What follows a prompt.

        Args:
            pieces: The prompt; it leaves room for an answer.
            settings: How to generate.

        Returns:
            The text.
        """
        signs = [sign for piece in pieces for sign in _signs(piece)]
        n = len(signs)
        # The last position is always read again: its scores choose the first token.
        n_shared = min(_common(signs, self._signs), n - 1)
        embedded = embed_pieces(self.model, pieces)
        past = self._read(embedded, n_shared)
        self._signs, self._past = signs, past
        longest = min(settings.max_new_tokens, self.model.context_length - n)
        last = torch.arange(n - 1, n)
        prompt = Prefill(embedded[n - 1 :], last, n, longest, first_bias=self._first_bias)
        found = generate(self.model, self._role, [prompt], settings=settings, past=fork(past))
        return found[0].text

    def _read(self, embedded: Tensor, n_shared: int) -> Any:
        """Keys and values of all positions but the last, the first of them kept from before."""
        last = len(embedded) - 1
        past = None
        if n_shared:
            past = fork(self._past)
            for layer in past.layers:  # the sign of `crop`'s argument depends on transformers
                layer.keys = layer.keys[..., :n_shared, :]
                layer.values = layer.values[..., :n_shared, :]
        if last == n_shared:
            return past
        self.n_read += last - n_shared
        with self.model.using(self._role), torch.no_grad():
            return self.model.run(
                embedded[n_shared:last].unsqueeze(0),
                positions=torch.arange(n_shared, last).unsqueeze(0),
                mask=torch.ones(1, last, dtype=torch.long),
                cache=past,
                use_cache=True,
            ).cache


def _signs(piece: Piece) -> list[Hashable]:
    """What each position holds: a token's id, or a symbol's codes."""
    return [*piece.codes] if isinstance(piece, Symbols) else [*piece]


def _common(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    n = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        n += 1
    return n
