"""The models that foresee a continuation: INFER in the prompt it knows, and the plain base.

They know tensors and one model each; not what is compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from zcontext.config import Role
from zcontext.evaluation.identities import base_identity, infer_identity
from zcontext.layouts import embed_pieces
from zcontext.model import ZLanguageModel
from zcontext.prompts import Piece, encode_messages, encode_parts, n_positions
from zcontext.spans import ChatMessage, Part
from zcontext.training.objective import BITS
from zcontext.training.prompt_source import CONTINUE


class InferForeteller:
    """INFER, asked to continue a context of text and symbols.

    Args:
        model: The model; its INFER adapter reads.
    """

    def __init__(self, model: ZLanguageModel) -> None:
        self.model = model
        self.identity = infer_identity(model)

    def bits(self, context: Sequence[Part], following: Sequence[int]) -> float:
        """Mean bits per token of what follows a context, as the assistant's turn.

        Args:
            context: Text and symbols.
            following: Token ids.

        Returns:
            The mean.
        """
        message = ChatMessage("user", ("Context:\n", *context, CONTINUE))
        pieces = encode_messages(self.model.tokenizer, [message])
        return following_bits(self.model, "infer", pieces, following)

    def count(self, parts: Sequence[Part]) -> int:
        """Positions that parts take."""
        return n_positions(encode_parts(self.model.tokenizer, parts))


class PlainForeteller:
    """The plain base: the context, then what follows, with nothing around them.

    Args:
        model: Its base reads, every adapter off.
    """

    def __init__(self, model: ZLanguageModel) -> None:
        self.model = model
        self.identity = base_identity(model)

    def bits(self, context: Sequence[Part], following: Sequence[int]) -> float:
        """Mean bits per token of what follows a text, behind the start token.

        Args:
            context: Text; no symbols.
            following: Token ids.

        Returns:
            The mean.
        """
        pieces = encode_parts(self.model.tokenizer, context)
        start = [self.model.start_token]
        if not pieces or pieces[0][:1] != start:
            pieces = [start, *pieces]
        return following_bits(self.model, None, pieces, following)

    def count(self, parts: Sequence[Part]) -> int:
        """Positions that parts take."""
        return n_positions(encode_parts(self.model.tokenizer, parts))


@torch.no_grad()
def following_bits(
    model: ZLanguageModel, role: Role | None, pieces: Sequence[Piece], following: Sequence[int]
) -> float:
    """Mean bits per token of what follows a prompt, in one pass.

    Args:
        model: The model; the role is switched and put back.
        role: The adapter that reads; None is the plain base.
        pieces: The prompt, not empty.
        following: Token ids, one or more.

    Returns:
        The mean.
    """
    target = torch.tensor(list(following), device=model.device)
    n_prompt, n = n_positions(pieces), len(following)
    embedded = embed_pieces(model, [*pieces, list(following[:-1])]).unsqueeze(0)
    length = n_prompt + n - 1
    with model.using(role):
        hidden = model.run(
            embedded,
            positions=torch.arange(length).unsqueeze(0),
            mask=torch.ones(1, length, dtype=torch.long),
        ).hidden[0, n_prompt - 1 :]
        scores = model.logits(hidden)
    return float(nn.functional.cross_entropy(scores, target)) * BITS
