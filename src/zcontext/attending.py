"""Where texts answer the questions in front of them: one pass of the first layers under FOCUS.

What this module does not know: windows, budgets, what becomes of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zcontext.errors import ModelError
from zcontext.model import ZLanguageModel


def relevance(
    model: ZLanguageModel, ids: Tensor, mask: Tensor, n_question: Sequence[int]
) -> list[Tensor]:
    """Log-odds that an answer stands at each token; FOCUS must be active.

    Args:
        model: A model with the part "focus".
        ids: Questions and texts, right-padded, int64 `[batch, n]`.
        mask: 1 on real tokens, `[batch, n]`.
        n_question: Tokens of each question, 1 or more.

    Returns:
        float32 `[n - n_question]` for each text, without its padding.

    Raises:
        ModelError: The codec has no focus.
    """
    if model.focus is None:
        raise ModelError("this codec has no part 'focus'; load a bundle that has it")
    tokens = model.embed_tokens(ids)
    positions = torch.arange(ids.shape[1], device=model.device).expand(len(ids), -1)
    layers = model.adapters.depth("focus")
    hidden = model.run(tokens, positions=positions, mask=mask, n_layers=layers).hidden
    words = tokens.float() - model.codebook.mean_embedding
    lengths = mask.sum(-1).tolist()
    return [
        model.focus(hidden[row, :n], words[row, :n], ids[row, :n], asked)
        for row, (n, asked) in enumerate(zip(lengths, n_question, strict=True))
    ]
