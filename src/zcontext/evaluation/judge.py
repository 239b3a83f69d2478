"""The teacher-forced eye: bits per token with and without symbols, on a real model.

Reconstruction figures come from here: the plain base's bits (adapters off) and the decompressor's
bits behind a window's symbols. It knows tensors and one model; not files, ratios or reports.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from zcontext.fidelity import read_span
from zcontext.layouts import lay_out
from zcontext.model import ZLanguageModel
from zcontext.surprisal import base_surprisal
from zcontext.tokenization import text_tokenizer
from zcontext.vocabulary import Symbols

BATCH_TOKENS = 1024
"""Tokens per forward pass: their logits take 200 MB at 49,152 words."""

MAX_TOKENS = 50_000_000
"""Longest text that windows are cut from."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a decompressor is shown of a window.

    Attributes:
        symbols: Of the window, or of another one.
        ends: Where each symbol's segment ends, in tokens (exclusive); None spreads them evenly.
    """

    symbols: Symbols
    ends: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Forced:
    """One window under the teacher-forced decompressor.

    Attributes:
        bits: Bits per token of the text, the end token left out.
        accuracy: Share of tokens that were the most likely one.
    """

    bits: float
    accuracy: float


class Judge(Protocol):
    """Measures windows of base tokens."""

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a text, and the character at which each of them starts."""

    def plain_bits(self, windows: Sequence[Sequence[int]]) -> list[float]:
        """Mean bits per token of each window under the plain base, behind the start token."""

    def restored(self, windows: Sequence[Sequence[int]], shown: Sequence[Shown]) -> list[Forced]:
        """Each window under the decompressor, behind what is shown for it."""


class ModelJudge:
    """A `Judge` on a real model.

    Args:
        model: The model; its adapters are switched and put back.
        batch_tokens: Tokens per forward pass.
    """

    def __init__(self, model: ZLanguageModel, *, batch_tokens: int = BATCH_TOKENS) -> None:
        self.model = model
        self.batch_tokens = batch_tokens

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a text, and the character at which each of them starts."""
        found = text_tokenizer(self.model.tokenizer).locate(text, max_tokens=MAX_TOKENS)
        return found.ids.tolist(), found.starts.tolist()

    @torch.no_grad()
    def plain_bits(self, windows: Sequence[Sequence[int]]) -> list[float]:
        """Mean bits per token of each window under the plain base, behind the start token.

        Args:
            windows: Token ids; none empty.

        Returns:
            One figure per window.
        """
        bits = [0.0] * len(windows)
        for rows in self._batches(map(len, windows)):
            found = base_surprisal(self.model, torch.tensor([windows[row] for row in rows]))
            for row, value in zip(rows, found.mean(1).tolist(), strict=True):
                bits[row] = value
        return bits

    @torch.no_grad()
    def restored(self, windows: Sequence[Sequence[int]], shown: Sequence[Shown]) -> list[Forced]:
        """Each window under the decompressor, behind what is shown for it.

        Args:
            windows: Token ids; none empty.
            shown: One per window, written for a window of the same length.

        Returns:
            One result per window.
        """
        return [self._restored(ids, item) for ids, item in zip(windows, shown, strict=True)]

    def _restored(self, ids: Sequence[int], item: Shown) -> Forced:
        """One window, as a span that holds it is read."""
        layout = lay_out(self.model, item.symbols[:0], item.symbols, len(ids), ends=item.ends)
        reading = read_span(self.model, layout, ids)
        return Forced(sum(reading.bits) / len(ids), reading.accuracy)

    def _batches(self, lengths: Iterable[int]) -> Iterator[list[int]]:
        """Rows of one length together, so that nothing is padded."""
        alike: dict[int, list[int]] = defaultdict(list)
        for row, length in enumerate(lengths):
            alike[length].append(row)
        for length, rows in alike.items():
            size = max(1, self.batch_tokens // max(1, length))
            for start in range(0, len(rows), size):
                yield rows[start : start + size]
