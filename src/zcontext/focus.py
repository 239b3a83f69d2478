"""Focus: where in a text the answer to a question stands, as far as the writer can tell.

The writer reads the question in front of the text, so its states on the text know what was asked.
A small head turns them into the odds that an answer stands at a token, with three helps: words of
the question that occur in the text (exactly, or as near embeddings), states that match the
question's, and what kind of thing is asked for. Where symbols go follows from it; what symbols mean
does not. What this module does not know: the base model's passes, windows, budgets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize

from zcontext.precision import in_full_precision, unit_rms

MATCHED = 48
"""Dimensions in which states of text and question are compared."""
SEEN = 24
"""Dimensions of what is kept of a state, an embedding, and the kind of thing asked for."""
WIDTH = 48
KERNEL = 9
"""Tokens that a convolution sees at once; the second sees as many, four apart."""
USUAL = 8.0
"""Nats of surprise in an ordinary content word, by its frequency alone."""
OF_READER = ("enough", "pairs")
"""What a focus keeps of the bundle's reader: set, not learned, and 0 in bundles from before."""


class Focus(nn.Module):
    """Odds, for every token of a text, that the answer to a question stands there.

    Args:
        hidden_size: Width of the base model.
        vocab_size: Tokens of the base model.
        dropout: Share of the inputs hidden in training.

    Attributes:
        commonness: Logarithm of each token's share of text, `[vocab]`: a rare word of the question
            tells most.
        enough: Symbols that the bundle's reader reads best for one question, beside one for each
            window, however many a ratio would allow; 0 where nobody has found that out.
        pairs: What an answer is worth to the bundle's reader that is written two tokens a symbol,
            over one that is written a token a symbol; 0 where it does not read such.
    """

    commonness: Tensor
    enough: Tensor
    pairs: Tensor

    def __init__(self, *, hidden_size: int, vocab_size: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.register_buffer("commonness", torch.full((vocab_size,), -USUAL))
        for name in OF_READER:
            self.register_buffer(name, torch.zeros(()))
        self.match = nn.Linear(hidden_size, MATCHED, bias=False)
        self.state = nn.Linear(hidden_size, SEEN)
        self.word = nn.Linear(hidden_size, SEEN)
        self.kind = nn.Linear(hidden_size, SEEN)
        self.stress = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.stress.weight)
        n_features = 5 + 3 * SEEN
        self.near = nn.Conv1d(n_features, WIDTH, KERNEL, padding=KERNEL // 2)
        self.far = nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=4 * (KERNEL // 2), dilation=4)
        self.out = nn.Conv1d(WIDTH, 1, 1)
        self.dropout = nn.Dropout(dropout)
        self.digest = ""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in OF_READER:
            state_dict.setdefault(f"{prefix}{name}", torch.zeros(()))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @in_full_precision
    def forward(self, hidden: Tensor, words: Tensor, ids: Tensor, n_question: int) -> Tensor:
        """Log-odds of an answer, up to a constant that is the question's.

        Args:
            hidden: The writer's states on question and text, `[n_question + n, hidden]`.
            words: Deviations of their embeddings from the mean of text, of the same shape.
            ids: Their tokens, int64 `[n_question + n]`.
            n_question: Tokens of the question, 1 or more.

        Returns:
            float32 `[n]`.
        """
        asked, states = torch.tensor_split(unit_rms(hidden), [n_question])
        asked_words, text_words = torch.tensor_split(words.float(), [n_question])
        rarity = -self.commonness[ids] / USUAL
        weight = rarity[:n_question] * self.stress(asked).squeeze(-1).clamp(-3, 3).exp()
        alike = normalize(text_words, dim=-1) @ normalize(asked_words, dim=-1).T
        alike = alike.clamp_min(0) ** 4 * weight
        same = (ids[n_question:, None] == ids[None, :n_question]) * rarity[:n_question]
        met = normalize(self.match(self.dropout(states)), dim=-1)
        met = met @ normalize(self.match(self.dropout(asked)), dim=-1).T
        kept = self.state(self.dropout(states))
        features = [
            alike.amax(-1, keepdim=True),
            alike.sum(-1, keepdim=True) / 4,
            same.amax(-1, keepdim=True),
            (met.clamp_min(0) * weight).amax(-1, keepdim=True),
            rarity[n_question:].unsqueeze(-1),
            kept,
            self.word(self.dropout(unit_rms(text_words))),
            kept * self.kind(asked[-2:].mean(0)),
        ]
        found = torch.cat(features, dim=-1).T.unsqueeze(0)
        found = self.dropout(gelu(self.near(found)))
        found = found + gelu(self.far(found))
        odds: Tensor = self.out(found)[0, 0]
        return odds
