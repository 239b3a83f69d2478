"""ZPruner: texts cut down for readers that are not ours, by what the plain base finds surprising.

The surprisal is that of the base itself, all adapters off and at full depth. The writer's head
would be cheaper, but it is trained to place slots and not to be reported: shares of surprisal kept
are claims about the text, and those rest on real probabilities. What this module does not know: how
stretches of text are chosen (`pruning` does), symbols, readers.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from zcontext.config import DEFAULT_RATIO, CompressSettings
from zcontext.model import ZLanguageModel
from zcontext.pruning import PrunedText, prune_text
from zcontext.surprisal import finite
from zcontext.tokenization import text_tokenizer
from zcontext.vocabulary import utf8_bytes

WINDOW: Final = 1024
"""Tokens of one pass."""
REREAD: Final = 256
"""Of these, tokens that were read before, so that none stands without what precedes it."""


class ZPruner:
    """Cuts texts down under the budgets of a compressor, to readable text.

    Args:
        model: The model whose base says what is surprising.
        settings: Used where a call gives none.
    """

    def __init__(self, model: ZLanguageModel, *, settings: CompressSettings | None = None) -> None:
        self.model = model
        self._settings = settings or CompressSettings()
        self._tokens = text_tokenizer(model.tokenizer)

    def prune(
        self,
        text: str,
        *,
        settings: CompressSettings | None = None,
        ratio: float | None = None,
        max_symbols: int | None = None,
    ) -> PrunedText:
        """One text cut down; keywords given replace those of `settings`.

        Args:
            text: The source.
            settings: Budget, `protect`, `on_symbols` and `max_tokens` hold; the rest is about
                symbols.
            ratio: Source tokens per token left; 4 if there is no budget.
            max_symbols: Most tokens left.

        Returns:
            What is left, never over the budget.

        Raises:
            ConfigError: A setting is out of range, or the text longer than `max_tokens`.
            SymbolCollisionError: The text spells symbols and the settings say to refuse.
            VocabularyError: The text is not str, holds a lone surrogate, or nothing the base has
                a token for.
            ModelError: The base gives surprisals that are not finite.
        """  # noqa: DOC502 - raised by the steps
        chosen = (settings or self._settings).replace(ratio=ratio, max_symbols=max_symbols)
        return self.prune_many([text], settings=chosen)[0]

    def prune_many(
        self, texts: Sequence[str], *, settings: CompressSettings | None = None
    ) -> list[PrunedText]:
        """One pruned text per text, in order.

        Args:
            texts: The sources.
            settings: As for `prune`; the budget is that of each text.

        Returns:
            The pruned texts.

        Raises:
            ConfigError: A setting is out of range, or a text longer than `max_tokens`.
            SymbolCollisionError: A text spells symbols and the settings say to refuse.
            VocabularyError: A text is not str, holds a lone surrogate, or nothing the base has a
                token for.
            ModelError: The base gives surprisals that are not finite.
        """  # noqa: DOC502 - raised by the steps
        chosen = settings or self._settings
        return [self._prune(text, chosen) for text in texts]

    def count_tokens(self, text: str) -> int:
        """Base tokens of a text.

        Args:
            text: Any text.

        Returns:
            The count.

        Raises:
            VocabularyError: The text holds a lone surrogate.
        """  # noqa: DOC502 - raised by the tokenizer
        return self._tokens.count(text)

    def _prune(self, text: str, settings: CompressSettings) -> PrunedText:
        utf8_bytes(text)
        text = self.model.vocabulary.guard(text, on_symbols=settings.on_symbols)
        tokens = self._tokens.locate(text, max_tokens=settings.max_tokens)
        bits = token_bits(self.model, tokens.ids)
        return prune_text(
            text,
            starts=tokens.starts,
            bits=bits,
            budget=budget_of(settings, n_tokens=len(tokens), bits=sum(bits)),
            count=self._tokens.count,
            protect=settings.protect,
        )


def budget_of(settings: CompressSettings, *, n_tokens: int, bits: float) -> int:
    """The positions that settings leave a text.

    Args:
        settings: With one budget or none.
        n_tokens: Tokens of the text.
        bits: Their surprisal.

    Returns:
        0 for the empty text, else 1 to `n_tokens`.
    """
    if settings.max_symbols is not None:
        return min(n_tokens, settings.max_symbols)
    if settings.bits_per_symbol is not None:
        return min(n_tokens, math.ceil(bits / settings.bits_per_symbol))
    return min(n_tokens, max(1, int(n_tokens / (settings.ratio or DEFAULT_RATIO) + 1e-9)))


def token_bits(model: ZLanguageModel, ids: Sequence[int]) -> list[float]:
    """The surprisal of every token of a text under the plain base.

    Args:
        model: The model; all its adapters are off.
        ids: Tokens of the text.

    Returns:
        Bits, one for each token; the first is given the base's start token only.

    Raises:
        ModelError: The base gives surprisals that are not finite.
    """
    found: array[float] = array("d")
    window = min(WINDOW, model.context_length)
    stream = torch.tensor([model.start_token, *ids])
    with model.using(None), torch.no_grad():
        while len(found) < len(ids):
            start = max(0, len(found) - min(REREAD, window // 4))
            rows = stream[start : start + window].unsqueeze(0)
            targets = stream[start + 1 : start + 1 + rows.shape[1]]
            states = model.run(
                model.embed_tokens(rows),
                positions=torch.arange(rows.shape[1]).unsqueeze(0),
                mask=torch.ones_like(rows),
            ).hidden[0, : len(targets)]
            fresh = len(found) - start
            scores = model.logits(states[fresh:])
            nats = nn.functional.cross_entropy(
                scores, targets[fresh:].to(scores.device), reduction="none"
            )
            found.extend(finite(nats / math.log(2.0)).tolist())
    return list(found)
