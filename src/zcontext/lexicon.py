"""The lexicon of a codec whose codes are names: which phrase each code names, and its row.

A row is the sum of what sets the phrase's tokens apart from the mean of text, taken from the
base's own table of embeddings: nothing of it is learned, and nothing but the tokens is stored. What
this module does not know: stages, latents, slots, text as characters.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from zcontext.phrases import LONGEST, Phrase, cut_starts

SILENT = 0
"""The code of a shared table that adds nothing: the symbol is said already."""

NO_TOKEN = -1
"""What a code names that names no token."""

CHUNK = 4096
"""Rows that are made at once: a phrase's tokens are looked up one by one before they are summed."""


@dataclass(frozen=True, slots=True)
class _Names:
    """The lexicon as Python values."""

    phrases: list[Phrase]
    codes: dict[Phrase, int]
    complete: bool


class Lexicon(nn.Module):
    """What codes name.

    Args:
        size: Codes, silence among them.
        token_embeddings: Table of the base, `[vocab, hidden]`; used as it is whenever it is asked.
    """

    named: Tensor

    def __init__(self, size: int, token_embeddings: Tensor) -> None:
        super().__init__()
        self.n_tokens = len(token_embeddings)
        self._embeddings = (token_embeddings,)  # the base's own, hidden from torch
        self.register_buffer("named", torch.full((size, LONGEST), NO_TOKEN))
        self._read: tuple[int, _Names] = (-1, _Names([], {}, False))
        self._table: tuple[tuple[int, ...], Tensor | None] = ((), None)

    @torch.no_grad()
    def name(self, phrases: Sequence[Phrase]) -> None:
        """Have codes name phrases.

        Args:
            phrases: What each code from 1 on names: one token, or up to `LONGEST` in a row; fewer
                than there are codes.
        """
        self.named.fill_(NO_TOKEN)
        for code, phrase in enumerate(phrases, start=1):
            self.named[code, : len(phrase)] = torch.tensor(phrase)

    @property
    def phrases(self) -> list[Phrase]:
        """What every code names; nothing for silence, and for a code that names none."""
        return self._names.phrases

    @property
    def codes(self) -> dict[Phrase, int]:
        """The code of every phrase that is named."""
        return self._names.codes

    @property
    def complete(self) -> bool:
        """Whether every token of the base has a name."""
        return self._names.complete

    @property
    def _names(self) -> _Names:
        version = self.named._version  # a bundle or a checkpoint may have been copied into it
        if self._read[0] != version:
            rows = self.named.tolist()
            phrases = [tuple(token for token in row if token != NO_TOKEN) for row in rows]
            codes = {phrase: code for code, phrase in enumerate(phrases) if phrase}
            complete = all((token,) in codes for token in range(self.n_tokens))
            self._read = (version, _Names(phrases, codes, complete))
        return self._read[1]

    # -- from codes to tokens ---------------------------------------------------------------------

    def tokens_of(self, codes: Sequence[Sequence[int]]) -> list[int]:
        """What some symbols name, in the order of the text.

        Args:
            codes: Of symbols, any number each.

        Returns:
            Base tokens; none for silence, and for a code that names none.
        """
        phrases = self.phrases
        return [token for symbol in codes for code in symbol for token in phrases[code]]

    def n_tokens_of(self, codes: Tensor) -> Tensor:
        """How many tokens symbols name.

        Args:
            codes: int64 `[..., depth]`.

        Returns:
            int64 `[...]`.
        """
        return (self.named[codes] != NO_TOKEN).sum((-1, -2))

    def words_of(self, codes: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that symbols name, each with its own row.

        Args:
            codes: int64 `[k, depth]`.
            mean: Mean embedding of text, `[hidden]`.

        Returns:
            Rows in the order of the text, `[k, most, hidden]`, zero behind the last one; and the
            tokens, int64 `[k, most]`, `NO_TOKEN` behind the last one.
        """
        tokens = self.named[codes].flatten(1)
        order = (tokens == NO_TOKEN).long().argsort(dim=-1, stable=True)
        tokens = tokens.gather(-1, order)
        return self._deviations(tokens, mean), tokens

    def rows_of(self, codes: Tensor, mean: Tensor) -> Tensor:
        """Rows of codes.

        Args:
            codes: int64 `[...]`.
            mean: Mean embedding of text, `[hidden]`.

        Returns:
            `[..., hidden]`, nothing for silence.
        """
        return self._deviations(self.named[codes], mean).sum(-2)

    def table(self, mean: Tensor) -> Tensor:
        """The rows of all codes; made when first asked for, and kept while nothing changes.

        Args:
            mean: Mean embedding of text, `[hidden]`.

        Returns:
            `[size, hidden]`.
        """
        key = (self.named._version, mean._version, mean.data_ptr())
        kept = self._table[1]
        if kept is None or self._table[0] != key:
            parts = torch.split(self.named, CHUNK)
            kept = torch.cat([self._deviations(some, mean).sum(-2) for some in parts])
            self._table = (key, kept)
        return kept

    def shortest(self, mean: Tensor) -> float:
        """Squared length of the shortest row of a code that names a single token.

        Args:
            mean: Mean embedding of text, `[hidden]`.

        Returns:
            The squared length; infinite where no token is named.
        """
        alone = self.named[(self.named[:, 0] != NO_TOKEN) & (self.named[:, 1] == NO_TOKEN), 0]
        energy = self._deviations(alone, mean).square().sum(-1)
        return float(energy.amin()) if len(energy) else torch.inf

    def _deviations(self, tokens: Tensor, mean: Tensor) -> Tensor:
        """Rows of tokens, nothing for `NO_TOKEN`, `[..., hidden]`."""
        table = self._embeddings[0].detach()
        found = nn.functional.embedding(tokens.clamp_min(0).to(table.device), table)
        return (found.to(mean) - mean) * (tokens != NO_TOKEN).unsqueeze(-1)

    # -- from tokens to codes ---------------------------------------------------------------------

    def cut(self, ids: Tensor, breaks: Sequence[Set[int]] | None = None) -> Tensor:
        """Where the phrases of some texts start.

        Args:
            ids: Tokens, int64 `[batch, n]`.
            breaks: Of each text, places that no phrase reaches across.

        Returns:
            bool `[batch, n]`, on the CPU.
        """
        found = _cut(ids.tolist(), self.codes, breaks or [set()] * len(ids))
        return torch.tensor(found, dtype=torch.bool).reshape(ids.shape)

    def named_at(self, ids: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """The phrases of texts whose segments are known; none reaches across two.

        Args:
            ids: Tokens, int64 `[batch, n]`.
            ends: Last token of every segment, `[batch, k]`.

        Returns:
            The code of the phrase that starts at each token, 0 for none, and where phrases start,
            both `[batch, n]`; behind the last segment every token stands for itself, without a
            code.
        """
        last, known = ends.tolist(), self.codes
        # A writer that goes symbol by symbol asks for one segment of a whole window each time.
        rows = [row[: own[-1] + 1] for row, own in zip(ids.tolist(), last, strict=True)]
        cuts = _cut(rows, known, [{end + 1 for end in own} for own in last])
        codes, starts = torch.full(ids.shape, SILENT), torch.ones(ids.shape, dtype=torch.bool)
        for row, (text, cut) in enumerate(zip(rows, cuts, strict=True)):
            places = [*(at for at, here in enumerate(cut) if here), len(text)]
            found = [known.get(tuple(text[a:b]), SILENT) for a, b in pairwise(places)]
            codes[row, places[:-1]] = torch.tensor(found, dtype=torch.long)
            starts[row, : len(text)] = torch.tensor(cut, dtype=torch.bool)
        return codes.to(ids.device), starts.to(ids.device)


def _cut(
    rows: Sequence[Sequence[int]], names: Collection[Phrase], breaks: Sequence[Set[int]]
) -> list[list[bool]]:
    return [cut_starts(row, names, at) for row, at in zip(rows, breaks, strict=True)]
