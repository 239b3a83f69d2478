"""Text in, shorter text out: what the doors offer readers that know no symbols.

The second best beside `exchange`: chunks leave as readable extracts of themselves, under the same
budgets, with a record of what was lost. Framework-free and free of torch: it knows `SupportsPrune`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress

from zcontext.budget import Candidate, plan_budget
from zcontext.config import CompressSettings
from zcontext.errors import (
    CodecMismatchError,
    ConfigError,
    CorruptSpanError,
    SymbolCollisionError,
    VocabularyError,
)
from zcontext.integrations.items import Item, is_written, kept_source, shares
from zcontext.integrations.records import (
    ACTION,
    KEPT,
    LOST,
    N_POSITIONS,
    N_TOKENS,
    REASON,
    TEXT,
    Chunk,
    Exchanged,
    ExchangeSettings,
    Flat,
    stored_span,
)
from zcontext.pruning import PrunedText
from zcontext.spans import SupportsPrune
from zcontext.vocabulary import ZVocabulary, has_symbols

__all__ = ["PrunedExchange"]


class PrunedExchange:
    """Cuts lists of chunks down to text.

    Args:
        vocabulary: Of the codec in use; symbols have no place in what leaves.
        pruner: Gives the pruner, called when something has to be counted or cut.
        settings: Budgets, `min_tokens`, `on_symbols`, `keep_text` and `protect` hold.
    """

    def __init__(
        self,
        vocabulary: ZVocabulary,
        *,
        pruner: Callable[[], SupportsPrune],
        settings: ExchangeSettings,
    ) -> None:
        self.vocabulary = vocabulary
        self.settings = settings
        self._pruner = pruner

    def index(self, chunks: Sequence[Chunk]) -> list[Exchanged]:
        """Refused: what is pruned is pruned when it is retrieved.

        Args:
            chunks: Any number.

        Returns:
            Nothing.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"output='text' has nothing to store beside {len(chunks)} chunks: index them with "
            "output='symbols', or leave the step out and prune what is retrieved",
            field="output",
            value="text",
        )

    def swap(self, chunks: Sequence[Chunk]) -> list[Exchanged]:
        """Pruned texts in place of the texts.

        Args:
            chunks: Any number, in any state.

        Returns:
            One per chunk, in order; with `max_tokens`, those without room are marked "dropped"
            and have no text.

        Raises:
            ZContextError: if a text spells symbols, is not valid Unicode, or cannot be read.
        """
        items = [self._look(chunk) for chunk in chunks]
        budgets = self._budgets(items)
        result = []
        for item, budget in zip(items, budgets, strict=True):
            if item.dropped:
                result.append(item.left_out())
            elif item.raw:
                record: dict[str, Flat] = {ACTION: "raw", N_TOKENS: item.n_tokens}
                result.append(Exchanged(item.text, {**record, REASON: item.reason}))
            else:
                (pruned,) = self._pruner().prune_many([item.text], settings=self._of(budget))
                result.append(Exchanged(pruned.text, self._record(item, pruned)))
        return result

    def _look(self, chunk: Chunk) -> Item:
        item = Item(chunk, chunk.text)
        if not chunk.text.strip():
            item.stay("empty")
            return item
        found = None
        with suppress(CorruptSpanError):  # the text is there, and that is all that is needed
            found = stored_span(chunk.metadata)
        if found is not None and has_symbols(chunk.text) and is_written(chunk.text, found):
            kept = kept_source(chunk, found)
            if kept is None:
                raise CodecMismatchError(
                    f"{chunk.label} was exchanged for symbols, which have no place in text: "
                    "retrieve the source text, or compress with keep_text=True"
                )
            item.text = kept
        policy = "refuse" if self.settings.on_symbols == "keep" else self.settings.on_symbols
        try:
            item.text = self.vocabulary.guard(item.text, on_symbols=policy)
            item.n_tokens = self._pruner().count_tokens(item.text)
        except (SymbolCollisionError, VocabularyError) as error:
            raise type(error)(f"{chunk.label}: {error}") from error
        if item.n_tokens < self.settings.min_tokens:
            item.stay("short")
        return item

    def _budgets(self, items: Sequence[Item]) -> list[int | None]:
        """Most tokens of each chunk; None leaves it to the ratio."""
        if self.settings.max_tokens is not None:
            candidates = [
                Candidate(item.n_tokens, item.chunk.score, compressible=not item.raw)
                for item in items
            ]
            plan = plan_budget(
                candidates, max_tokens=self.settings.max_tokens, ratios=self.settings.ratios
            )
            for item, choice in zip(items, plan.choices, strict=True):
                item.take(choice)
            return [choice.n_positions for choice in plan.choices]
        wanted = [item for item in items if not item.raw]
        if self.settings.max_symbols is None or not wanted:
            return [None] * len(items)
        if len(wanted) > self.settings.max_symbols:
            raise ConfigError(
                f"max_symbols={self.settings.max_symbols} is too few for {len(wanted)} chunks: "
                "each takes one token at least. Raise it, retrieve fewer, or give a ratio instead.",
                field="max_symbols",
                value=self.settings.max_symbols,
            )
        split = iter(shares([item.n_tokens for item in wanted], self.settings.max_symbols))
        return [None if item.raw else next(split) for item in items]

    def _of(self, budget: int | None) -> CompressSettings:
        chosen = self.settings.compress or CompressSettings()
        if chosen.on_low_fidelity == "finer":
            chosen = chosen.replace(on_low_fidelity="keep")  # about symbols, and refuses a cap
        ratio = self.settings.ratio if budget is None else None
        return chosen.replace(
            ratio=ratio, max_symbols=budget, protect=self.settings.protect or None
        )

    def _record(self, item: Item, pruned: PrunedText) -> dict[str, Flat]:
        record: dict[str, Flat] = {
            ACTION: "pruned",
            N_TOKENS: pruned.n_tokens,
            N_POSITIONS: pruned.n_kept,
            KEPT: round(pruned.share, 6),
            LOST: json.dumps(list(pruned.lost), ensure_ascii=False),
        }
        if self.settings.keep_text:
            record[TEXT] = item.text
        return record
