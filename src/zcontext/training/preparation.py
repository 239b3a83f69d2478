"""Surprisal of a corpus under the plain base, in batches that waste little.

What it is: the callable that `write_shards` takes as `surprise`. Documents are cut into windows of
at most 256 tokens, each read behind the start token, as the base reads a training window. What it
does not know: files, codecs, adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zcontext.errors import TrainingError
from zcontext.loading import LoadedBase
from zcontext.training.objective import BITS

WINDOW = 256
BATCH_TOKENS = 4096
"""Positions per forward pass, padding included."""

GROUP = 64
"""Batches sorted together: enough that hardly anything is padded, few enough to show progress."""

Row = tuple[int, int, list[int]]
"""Document, place in it, and the ids of a window."""


def _ignore(n_tokens: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class BaseSurprisal:
    """Bits of every token of some documents under a plain base; call it with their ids.

    Attributes:
        base: The base, without adapters.
        window: Longest window read.
        batch_tokens: Positions per forward pass.
        on_progress: Told after every batch how many tokens it held.
    """

    base: LoadedBase
    window: int = WINDOW
    batch_tokens: int = BATCH_TOKENS
    on_progress: Callable[[int], None] = _ignore

    def __call__(self, documents: list[list[int]]) -> list[npt.NDArray[np.float32]]:
        """Bits per token.

        Args:
            documents: Token ids.

        Returns:
            One float32 array per document, as long as it.

        Raises:
            TrainingError: The base gives values that are not numbers.
        """
        bits = [np.zeros(len(ids), np.float32) for ids in documents]
        for rows in self._batches(documents):
            found = self._forward([ids for _, _, ids in rows])
            for (document, start, ids), row in zip(rows, found, strict=True):
                values = row[: len(ids)]
                if not bool(torch.isfinite(values).all()):
                    raise TrainingError(
                        "the base gives surprisals that are not finite; load it in fp32 or bf16"
                    )
                bits[document][start : start + len(ids)] = values.numpy()
            self.on_progress(sum(len(ids) for _, _, ids in rows))
        return bits

    def _batches(self, documents: list[list[int]]) -> Iterator[list[Row]]:
        """Windows of like length together, sorted within groups of some batches."""
        rows = [
            (k, start, ids[start : start + self.window])
            for k, ids in enumerate(documents)
            for start in range(0, len(ids), self.window)
        ]
        per_group = GROUP * max(1, self.batch_tokens // self.window)
        for first in range(0, len(rows), per_group):
            group = sorted(rows[first : first + per_group], key=lambda row: -len(row[2]))
            while group:
                size = max(1, self.batch_tokens // len(group[0][2]))
                yield group[:size]
                group = group[size:]

    @torch.no_grad()
    def _forward(self, rows: list[list[int]]) -> Tensor:
        """Bits `[batch, n]` of right-padded windows; what stands on padding means nothing."""
        base = self.base
        tokenizer = base.tokenizer
        start = tokenizer.bos_token_id
        start = tokenizer.eos_token_id if start is None else start
        n = max(map(len, rows))
        ids = torch.full((len(rows), n), int(start))
        mask = torch.zeros_like(ids)
        for k, row in enumerate(rows):
            ids[k, : len(row)] = torch.tensor(row)
            mask[k, : len(row)] = 1
        ids, mask = ids.to(base.device), mask.to(base.device)
        inputs = torch.cat([torch.full_like(ids[:, :1], int(start)), ids[:, :-1]], dim=1)
        # The input at place i is token i - 1, so it is real wherever token i is: one mask for both.
        hidden = base.model.base_model(
            input_ids=inputs, attention_mask=mask, use_cache=False
        ).last_hidden_state
        head = base.model.get_output_embeddings()
        # Row by row: the scores of a whole batch would take a gigabyte.
        bits = [
            nn.functional.cross_entropy(head(states).float(), row, reduction="none")
            for states, row in zip(hidden, ids, strict=True)
        ]
        return torch.stack(bits).cpu() * BITS
