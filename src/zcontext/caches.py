"""Key-value caches as values: fork one, keep some of its rows, weigh it.

A cache of transformers grows by concatenation, so a fork that shares its tensors is safe: whoever
extends one leaves the other as it was. What it does not know: what the positions stand for.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch


def fork(cache: Any) -> Any:
    """A cache that can be extended without changing the one it was made from.

    Args:
        cache: A `DynamicCache`.

    Returns:
        The fork; it shares the tensors until it grows.
    """
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked


def rows_of(cache: Any, rows: Sequence[int]) -> Any:
    """A fork with some rows of the batch, in the order given.

    Args:
        cache: A `DynamicCache`.
        rows: Indices; one may be given twice.

    Returns:
        The fork.
    """
    forked = fork(cache)
    device = forked.layers[0].keys.device
    forked.batch_select_indices(torch.tensor(list(rows), device=device))
    return forked


def n_bytes(cache: Any) -> int:
    """Memory that a cache's tensors take.

    Args:
        cache: A `DynamicCache`.

    Returns:
        Bytes.
    """
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    return sum(t.numel() * t.element_size() for t in tensors)
